/**
 * Every fault a server can have, and what becomes of the items: each ends as a verdict or as unknown, none is lost.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { GenRM, type GenRMEvent, type GenRMOptions, type JudgeItem, type Verdict } from "fapo-kernels/genrm";
import { type FakeJudge, type Fault, fakeJudge } from "./support/genrm-server.ts";

const item = (verdict: number | string, ms = 0): JudgeItem => {
  return { problem: `verdict=${verdict} ms=${ms}`, answer: "7", solution: ["a", "b", "c", "d", "e", "f"] };
};
const truthOf = (i: number) => (i % 2 ? -1 : i % 6);

const quick: Partial<GenRMOptions> = {
  maxInFlight: 8,
  // Long enough for a machine that is busy with other things; tests of silence have their own.
  idleTimeout: 3000,
  timeout: 10_000,
  outageTimeout: 300,
  backoff: { base: 2, max: 20 },
  breaker: { failures: 3, cooldown: 20, maxCooldown: 50 },
};

interface Outcome {
  sent: number;
  verdicts: number;
  unknowns: number;
  codes: Record<string, number>;
  unknown: Verdict[];
  events: GenRMEvent[];
}

// The first fetch of a process loads and compiles undici, which may take longer than a short timeout of a test.
before(() => withServers([() => undefined], async ([server]) => void (await fetch(`${server!.url}/health`))));

const table: string[] = [];
after(() => {
  if (process.env.FAPO_FAULT_TABLE) process.stderr.write(`${table.join("\n")}\n`);
});

/** Sends 60 items; checks that each comes back exactly once, that verdicts are right, and that nothing is left running. */
async function send(
  name: string,
  servers: FakeJudge[],
  options: Partial<GenRMOptions> = {},
  source: JudgeItem[] = Array.from({ length: 60 }, (_, i) => item(truthOf(i), 3)),
): Promise<Outcome> {
  const events: GenRMEvent[] = [];
  const judge = new GenRM({
    servers: servers.map(({ url }) => url),
    model: "judge",
    ...quick,
    ...options,
    onEvent: (event) => events.push(event),
  });
  const outcome: Outcome = { sent: source.length, verdicts: 0, unknowns: 0, codes: {}, unknown: [], events };
  const seen = new Set<number>();
  for await (const { index, verdict } of judge.judgeAll(source)) {
    assert.ok(!seen.has(index), "an item came back twice");
    seen.add(index);
    if (verdict.error) {
      outcome.unknowns++;
      outcome.unknown.push(verdict);
      assert.deepEqual([verdict.flawed, verdict.step], [-1, null]);
      assert.ok(verdict.error.message.startsWith("GenRM: "), verdict.error.message);
      outcome.codes[verdict.error.code] = (outcome.codes[verdict.error.code] ?? 0) + 1;
    } else {
      outcome.verdicts++;
      assert.equal(verdict.step, Number(/verdict=(-?\d)/.exec(source[index]!.problem)![1]));
    }
  }
  const lost = outcome.sent - seen.size;
  table.push([name, outcome.sent, outcome.verdicts, outcome.unknowns, lost, JSON.stringify(outcome.codes)].join(" | "));
  assert.equal(lost, 0);
  const stats = judge.stats();
  assert.deepEqual([stats.done, stats.queued, stats.unknown], [outcome.sent, 0, outcome.unknowns]);
  assert.ok(stats.servers.every(({ inFlight }) => inFlight === 0));
  await judge.close();
  for (let i = 0; i < 200 && servers.some(({ seen: { running } }) => running > 0); i++) await sleep(5);
  for (const { seen: at } of servers) assert.equal(at.running, 0);
  return outcome;
}

async function withServers<T>(faults: FakeJudge["fault"][], use: (servers: FakeJudge[]) => Promise<T>): Promise<T> {
  const servers = await Promise.all(faults.map((fault) => fakeJudge(fault)));
  try {
    return await use(servers);
  } finally {
    await Promise.all(servers.map((server) => server.close()));
  }
}

/** A server that is not there: its port was free a moment ago. */
async function deadServer(): Promise<FakeJudge> {
  const server = await fakeJudge();
  await server.close();
  return server;
}

test("a dead server costs nothing but its share of the first requests", async () => {
  await withServers([() => undefined], async ([live]) => {
    const dead = await deadServer();
    const { unknowns, events } = await send("dead server beside a live one", [live!, dead]);
    assert.equal(unknowns, 0);
    const toDead = events.filter((event) => event.type === "retry" && event.server === dead.url).length;
    assert.ok(toDead >= 3 && toDead <= 12, `${toDead} requests went to the dead server before it was left alone`);
    assert.ok(events.some((event) => event.type === "breaker" && event.state === "open"));
  });
});

for (const [fault, code] of [
  ["500", "ERR_GENRM_HTTP"],
  ["reset", "ERR_GENRM_NETWORK"],
  ["cut", "ERR_GENRM_TRUNCATED"],
  ["hang", "ERR_GENRM_IDLE"],
  ["stall", "ERR_GENRM_IDLE"],
  ["garbage-json", "ERR_GENRM_HTTP"],
  ["html", "ERR_GENRM_TRUNCATED"],
  ["long-line", "ERR_GENRM_HTTP"],
  ["error-event", "ERR_GENRM_HTTP"],
  ["abort", "ERR_GENRM_TRUNCATED"],
] as [Fault, string][]) {
  const options = code === "ERR_GENRM_IDLE" ? { idleTimeout: 400 } : {};
  test(`a server that answers every request with ${fault} is avoided, and named when it is alone`, async () => {
    const beside = withServers([() => fault, () => undefined], async (servers) => {
      const { unknowns } = await send(`${fault}, beside a good server`, servers, options);
      assert.equal(unknowns, 0);
    });
    const alone = withServers([() => fault], async (servers) => {
      const source = [0, 1, 2, 3].map((i) => item(truthOf(i)));
      const { verdicts, unknown } = await send(`${fault}, alone`, servers, options, source);
      assert.equal(verdicts, 0);
      for (const { error } of unknown) {
        assert.equal(error!.code, code, error!.message);
        assert.ok(error!.message.includes(servers[0]!.url), error!.message);
      }
    });
    await Promise.all([beside, alone]);
  });
}

test("a stream cut after its finish reason has lost nothing, nor has an answer in one piece", async () => {
  for (const fault of ["cut-after-finish", "whole-json"] as const) {
    await withServers([() => fault], async (servers) => {
      const { unknowns, events } = await send(fault, servers);
      assert.equal(unknowns, 0);
      assert.equal(events.filter(({ type }) => type === "retry").length, 0);
    });
  }
});

test("an endless stream ends with the total timeout", async () => {
  await withServers([() => "endless"], async (servers) => {
    const { codes } = await send("endless stream", servers, { timeout: 80, retries: 0 }, [item(1), item(2)]);
    assert.deepEqual(codes, { ERR_GENRM_TIMEOUT: 2 });
  });
});

test("an answer without a verdict is unknown, and asked for again only if wanted", async () => {
  const source = [item("none"), item("1e0"), item(6), item("process"), item(2)];
  await withServers([() => undefined], async (servers) => {
    const { codes, verdicts } = await send("no verdict in the text", servers, {}, source);
    assert.deepEqual(codes, { ERR_GENRM_UNPARSED: 4 });
    assert.equal(verdicts, 1);
    assert.equal(servers[0]!.seen.requests, 5);
  });
  await withServers([() => "length"], async (servers) => {
    const { codes, unknown } = await send("out of tokens", servers, {}, [item(2)]);
    assert.deepEqual(codes, { ERR_GENRM_TRUNCATED: 1 });
    assert.equal(unknown[0]!.text, "Let me see. and");
    assert.match(unknown[0]!.error!.message, /ran out of tokens before a verdict \(7 of them\)/);
  });
  await withServers([(n) => (n === 0 ? "length" : undefined)], async (servers) => {
    const { verdicts } = await send("asked again", servers, { retryUnparsed: true }, [item(2)]);
    assert.equal(verdicts, 1);
  });
});

test("a refused request is not repeated and does not count against the server", async () => {
  await withServers([(n) => (n % 4 === 0 ? "400" : undefined)], async (servers) => {
    const { unknowns, unknown, events } = await send("400 for every fourth", servers);
    assert.equal(unknowns, 15);
    assert.deepEqual([unknown[0]!.error!.status, unknown[0]!.attempts], [400, 1]);
    assert.match(unknown[0]!.error!.message, /answered 400: .*the prompt is too long/);
    assert.ok(events.every(({ type }) => type === "verdict"));
  });
});

test("a storm of 429 is waited out, and Retry-After is obeyed", async () => {
  let until = 0;
  const storm = (fault: Fault) => () => (performance.now() < until ? fault : undefined);
  until = performance.now() + 150;
  await withServers([storm("429"), storm("429")], async (servers) => {
    const { unknowns } = await send("429 storm of 150 ms", servers, { retries: 8, backoff: { base: 10, max: 100 } });
    assert.equal(unknowns, 0);
  });
  await withServers([(n) => (n < 8 ? "429-retry-after" : undefined)], async (servers) => {
    const { unknowns, events } = await send("429 with Retry-After", servers);
    assert.equal(unknowns, 0);
    assert.equal(servers[0]!.seen.requests, 68, "eight that were turned away, then one for each item");
    const pauses = events.filter((event) => event.type === "pause");
    assert.ok(pauses.length === 8 && pauses.every(({ ms }) => ms === 100));
    assert.ok(
      events.every(({ type }) => type !== "breaker"),
      "a busy server is not broken",
    );
  });
});

test("a storm of 429 that does not end ends the items", async () => {
  await withServers([() => "429"], async (servers) => {
    const { codes, unknown } = await send("429 for ever", servers, { retries: 2 });
    assert.deepEqual(codes, { ERR_GENRM_HTTP: 60 });
    assert.deepEqual([unknown[0]!.error!.status, unknown[0]!.attempts], [429, 3]);
  });
});

test("all servers down: every item ends as unknown after the outage timeout, soon", async () => {
  const dead = await Promise.all([deadServer(), deadServer()]);
  const started = performance.now();
  const { codes, unknown } = await send("all servers down", dead);
  assert.deepEqual(codes, { ERR_GENRM_NETWORK: 60 });
  assert.ok(performance.now() - started < 5000);
  const waited = unknown.find(({ attempts }) => attempts === 0);
  assert.match(
    waited!.error!.message,
    /no server has been in use for 300 ms; the last failure: .* failed: ECONNREFUSED/,
  );
  assert.equal(waited!.server, null);
});

test("a server that comes back is used again: health check, one request, then all", async () => {
  await withServers([() => undefined], async (servers) => {
    const server = servers[0]!;
    server.healthy = false;
    server.fault = () => (server.healthy ? undefined : "500");
    let whileIll = 0;
    const heal = setInterval(() => {
      if (server.healthy || server.seen.health < 2) return;
      server.healthy = true;
      whileIll = server.seen.requests;
    }, 2);
    const { unknowns, events } = await send("down for two health checks", servers, { outageTimeout: 5000 });
    clearInterval(heal);
    assert.equal(unknowns, 0);
    assert.ok(server.seen.health >= 3);
    assert.ok(whileIll <= 10, "nothing more is sent while the server says it is ill");
    const states = events.flatMap((event) => (event.type === "breaker" ? [event.state] : []));
    assert.deepEqual(states, ["open", "half-open", "closed"]);
  });
});

test("a mix of faults on all servers loses nothing", async () => {
  const faults: Fault[] = ["500", "429", "reset", "cut", "stall", "hang", "garbage-json", "html", "error-event"];
  let seed = 7;
  const random = () => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    return seed / 0x7fffffff;
  };
  const sometimes = (share: number) => () =>
    random() < share ? faults[Math.floor(random() * faults.length)] : undefined;
  await withServers([sometimes(0.4), sometimes(0.4), sometimes(0.1)], async (servers) => {
    const source = Array.from({ length: 300 }, (_, i) => item(truthOf(i), 2));
    const options = { retries: 6, idleTimeout: 500, hedge: { after: 30, maxFraction: 0.3 }, outageTimeout: 3000 };
    const { verdicts } = await send("mix of nine faults on three servers, hedged", servers, options, source);
    assert.ok(verdicts >= 270, `${verdicts} verdicts of 300`);
  });
});

test("a fetch that ignores its signal holds nothing up", async () => {
  const judge = new GenRM({
    servers: ["http://a"],
    model: "m",
    ...quick,
    idleTimeout: 100,
    retries: 0,
    fetch: () => new Promise(() => {}),
  });
  const started = performance.now();
  assert.equal((await judge.judge(item(1))).error?.code, "ERR_GENRM_IDLE");
  const abort = new AbortController();
  setTimeout(() => abort.abort(new Error("enough")), 20);
  await assert.rejects(judge.judge(item(1), { signal: abort.signal }), /enough/);
  await judge.close();
  assert.ok(performance.now() - started < 1000);
});

test("a training step that blocks the event loop makes no server look silent", async () => {
  const source = `
    const { createServer } = require("node:http");
    const { parentPort } = require("node:worker_threads");
    const server = createServer((request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      let n = 0;
      const timer = setInterval(() => {
        const last = ++n === 30;
        const delta = { content: last ? "\\\\boxed{1}" : "hm " };
        response.write("data: " + JSON.stringify({ choices: [{ delta, finish_reason: last ? "stop" : null }] }) + "\\n\\n");
        if (last) { clearInterval(timer); response.end("data: [DONE]\\n\\n"); }
      }, 20);
    }).listen(0, "127.0.0.1", () => parentPort.postMessage(server.address().port));`;
  const worker = new Worker(source, { eval: true });
  const port = await new Promise<number>((resolve) => worker.once("message", resolve));
  const judge = new GenRM({
    servers: [`http://127.0.0.1:${port}`],
    model: "m",
    ...quick,
    idleTimeout: 400,
    retries: 0,
  });
  const verdict = judge.judge(item(1));
  await sleep(100);
  const until = performance.now() + 1000;
  while (performance.now() < until); // a synchronous op
  assert.equal((await verdict).error, null);
  await judge.close();
  await worker.terminate();
});

test("after close() no timer is left, whatever the servers do", async () => {
  await withServers([() => "hang", () => "500"], async (servers) => {
    const dead = await deadServer();
    const before = process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
    const judge = new GenRM({
      servers: [...servers, dead].map(({ url }) => url),
      model: "judge",
      ...quick,
      idleTimeout: 60_000,
      hedge: { after: 10_000 },
      breaker: { failures: 1, cooldown: 60_000 },
    });
    const running = judge.flags({ correct: Array(40).fill(1), items: Array(40).fill(item(1)) });
    await sleep(50);
    await judge.close();
    assert.equal((await running).counts.unknown, 40);
    const left = process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
    assert.ok(left <= before, `${left} timers, ${before} before`);
  });
});
