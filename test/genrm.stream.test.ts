/**
 * What the client makes of a server's bytes: through an injected `fetch`, so that every split of the stream can be tried.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { GenRM, type GenRMEvent, type GenRMOptions, type Verdict } from "fapo-kernels/genrm";
import fc from "fast-check";

const item = { problem: "p", answer: "7", solution: ["a", "b", "c", "d"] };

function respond(pieces: readonly Uint8Array[], init: ResponseInit = {}): typeof fetch {
  return async () => {
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) controller.enqueue(piece);
        controller.close();
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" }, ...init });
  };
}

async function judged(fetch: typeof globalThis.fetch, options: Partial<GenRMOptions> = {}): Promise<Verdict> {
  await using judge = new GenRM({ servers: ["http://a"], model: "m", retries: 0, fetch, ...options });
  return await judge.judge(item);
}

const encoder = new TextEncoder();
const data = (value: unknown) => `data: ${JSON.stringify(value)}\n\n`;
const delta = (content: string, finish: string | null = null) =>
  data({ choices: [{ index: 0, delta: { content }, finish_reason: finish }] });
const stream = [
  ": ping\r\n\r\n",
  "event: message\nid: 1\n",
  data({ choices: [{ index: 0, delta: { role: "assistant" }, finish_reason: null }] }),
  delta("Schritt 2 ist falsch, größer als π 😀: "),
  'data: {\ndata: "choices": []}\n\n',
  delta("\\boxed{").replaceAll("\n", "\r\n"),
  delta("2}", "stop"),
  data({ choices: [], usage: { completion_tokens: 321 } }),
  "data: [DONE]",
].join("");

test("any split of the stream into pieces gives the same verdict", async () => {
  const bytes = encoder.encode(stream);
  const cuts = fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 40 });
  await fc.assert(
    fc.asyncProperty(cuts, async (at) => {
      const edges = [0, ...at.sort((a, b) => a - b), bytes.length];
      const pieces = edges.slice(1).map((end, i) => bytes.slice(edges[i], end));
      const { text, step, tokens } = await judged(respond(pieces));
      assert.equal(text, "Schritt 2 ist falsch, größer als π 😀: \\boxed{2}");
      assert.deepEqual([step, tokens], [2, 321]);
    }),
    { numRuns: 200, seed: 3 },
  );
});

test("any garbage ends as an unknown verdict with a code, never as an exception", async () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 40 }),
    fc
      .constantFrom(
        "data: ",
        "\n\n",
        "[DONE]",
        '{"choices":',
        '{"choices":[{}]}',
        "null",
        "data: 7\n\n",
        "data: []\n\n",
      )
      .map((t) => encoder.encode(t)),
    fc.json().map((json) => encoder.encode(`data: ${json}\n\n`)),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 12 }), fc.boolean(), async (pieces, json) => {
      const headers = { "content-type": json ? "application/json" : "text/event-stream" };
      const { flawed, error } = await judged(respond(pieces, { headers }));
      assert.equal(flawed, -1);
      assert.match(error!.code, /^ERR_GENRM_(HTTP|TRUNCATED)$/);
      assert.equal(error!.server, "http://a");
    }),
    { numRuns: 300, seed: 3 },
  );
});

test("what a server parts off as reasoning is no verdict", async () => {
  const choices = [{ delta: { reasoning_content: "\\boxed{1}" }, finish_reason: "stop" }];
  const { error, text } = await judged(respond([encoder.encode(data({ choices }))]));
  assert.deepEqual([error?.code, text], ["ERR_GENRM_UNPARSED", ""]);
});

test("an answer cut by its token limit is unknown, unless it holds a verdict already", async () => {
  const cut = (text: string) => judged(respond([encoder.encode(delta(text, "length"))]));
  assert.equal((await cut("\\boxed{3} because")).step, 3);
  assert.equal((await cut("because \\boxed{")).error?.code, "ERR_GENRM_TRUNCATED");
});

test("a server that keeps the stream open after the last word does not hold its slot", async () => {
  const fetch: typeof globalThis.fetch = async () => {
    const body = new ReadableStream({
      start: (controller) => controller.enqueue(encoder.encode(delta("\\boxed{1}", "stop"))),
    });
    return new Response(body);
  };
  const { step, ms } = await judged(fetch);
  assert.equal(step, 1);
  assert.ok(ms < 3000);
});

test("Retry-After may be a date, and is obeyed for a minute at most", async () => {
  for (const [headers, least, most] of [
    [{ "retry-after": new Date(Date.now() + 10_000).toUTCString() }, 7000, 10_000],
    [{ "retry-after": "86400" }, 60_000, 60_000],
    [{ "retry-after-ms": "250", "retry-after": "5" }, 250, 250],
    [{ "retry-after": "soon" }, 1, 500],
    [{ "retry-after": "-5" }, 0, 0],
  ] as [Record<string, string>, number, number][]) {
    const events: GenRMEvent[] = [];
    const fetch = async () => new Response("busy", { status: 429, headers });
    const { error } = await judged(fetch, { onEvent: (event) => events.push(event) });
    assert.equal(error?.status, 429);
    const pause = events.find((event) => event.type === "pause")?.ms ?? 0;
    assert.ok(pause >= least && pause <= most, `${JSON.stringify(headers)}: ${pause} ms`);
  }
});

test("the 300 s limit of fetch is named as what it is", async () => {
  const cause = Object.assign(new Error("Headers Timeout Error"), { code: "UND_ERR_HEADERS_TIMEOUT" });
  const { error } = await judged(async () => Promise.reject(new TypeError("fetch failed", { cause })));
  assert.equal(error?.code, "ERR_GENRM_NETWORK");
  assert.match(error!.message, /UND_ERR_HEADERS_TIMEOUT: fetch gives up after 300 s of silence.*inject a fetch/);
});

test("thousands of items leave nothing behind: no timer, no listener, no memory", async () => {
  const bytes = [encoder.encode(stream)];
  const abort = new AbortController();
  await using judge = new GenRM({
    servers: ["http://a", "http://b"],
    model: "m",
    hedge: {},
    fetch: (...call) => respond(bytes)(...call),
  });
  let count = 0;
  function* source() {
    for (let i = 0; i < 5000; i++) yield item;
  }
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const before = timers();
  for await (const { verdict } of judge.judgeAll(source(), { signal: abort.signal }))
    count += Number(verdict.step === 2);
  assert.equal(count, 5000);
  assert.ok(timers() <= before);
  const { servers } = judge.stats();
  assert.ok(servers.every(({ inFlight, answered }) => inFlight === 0 && answered > 2000));
});
