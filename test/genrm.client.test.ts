import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { GenRM, GenRMError, type GenRMEvent, type GenRMOptions, type JudgeItem } from "fapo-kernels/genrm";
import { type FakeJudge, fakeJudge } from "./support/genrm-server.ts";

const item = (verdict: number | string, ms = 0): JudgeItem => {
  return { problem: `verdict=${verdict} ms=${ms}`, answer: "7", solution: ["a", "b", "c", "d", "e", "f"] };
};
const items = (count: number, ms = 0) => Array.from({ length: count }, (_, i) => item(i % 3 === 0 ? i % 6 : -1, ms));

/** Runs `use` with servers and a client, and checks that nothing is left of either. */
async function withJudge(
  servers: FakeJudge[],
  options: Partial<GenRMOptions>,
  use: (judge: GenRM) => Promise<void>,
): Promise<void> {
  const judge = new GenRM({ servers: servers.map(({ url }) => url), model: "judge", ...options });
  try {
    await use(judge);
  } finally {
    await judge.close();
    await Promise.all(servers.map((server) => server.close()));
  }
}

test("asks as an OpenAI client would, and returns what the judge decided", async () => {
  const server = await fakeJudge();
  await withJudge([server], { body: { temperature: 0.6 }, maxTokens: 100 }, async (judge) => {
    const { ms, text, ...verdict } = await judge.judge(item(3));
    assert.deepEqual(verdict, {
      flawed: 1,
      step: 3,
      error: null,
      tokens: 7,
      server: server.url,
      attempts: 1,
      hedged: false,
    });
    assert.equal(text, "Let me see. so \\boxed{3}");
    assert.ok(ms > 0);
    assert.equal((await judge.judge(item(-1))).flawed, 0);
    const { messages, ...body } = server.bodies[0]!;
    assert.deepEqual(body, {
      model: "judge",
      max_tokens: 100,
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0.6,
    });
    assert.match(JSON.stringify(messages), /<paragraph_5>\\nf\\n<\/paragraph_5>/);
  });
});

test("spreads load by free capacity, keeps to the cap, and pulls no further ahead than the window", async () => {
  const servers = await Promise.all([fakeJudge(), fakeJudge(), fakeJudge()]);
  let pulled = 0;
  let got = 0;
  let ahead = 0;
  function* source() {
    for (const each of items(240, 4)) {
      pulled++;
      ahead = Math.max(ahead, pulled - got);
      yield each;
    }
  }
  await withJudge(servers, { maxInFlight: 8 }, async (judge) => {
    const seen = new Set<number>();
    for await (const { index, item: judged, verdict } of judge.judgeAll(source())) {
      got++;
      seen.add(index);
      assert.equal(verdict.step, Number(/verdict=(-?\d)/.exec(judged.problem)![1]));
    }
    assert.equal(seen.size, 240);
    assert.ok(ahead <= 2 * 24 + 1, `pulled ${ahead} ahead`);
    for (const { seen } of servers) assert.ok(seen.peak <= 8 && seen.served > 40, `peak ${seen.peak}, ${seen.served}`);
    const stats = judge.stats();
    assert.deepEqual([stats.asked, stats.done, stats.unknown, stats.queued], [240, 240, 0, 0]);
    assert.equal(stats.flawed, 80);
    assert.equal(stats.latency.count, 240);
    JSON.stringify(stats);
  });
});

test("requests go where the fewest are outstanding, for the weight of the server", async () => {
  const counts = async (weights: [number, number]) => {
    const servers = await Promise.all([fakeJudge(), fakeJudge()]);
    let most = [0, 0];
    await withJudge(
      servers,
      { servers: servers.map(({ url }, i) => ({ url, maxInFlight: 32, weight: weights[i]! })) },
      async (judge) => {
        const running = Array.from({ length: 12 }, () => judge.judge(item(1, 300)));
        while (servers.reduce((sum, { seen }) => sum + seen.requests, 0) < 12) await sleep(5);
        most = servers.map(({ seen }) => seen.requests);
        await Promise.all(running);
      },
    );
    return most;
  };
  assert.deepEqual(await counts([1, 1]), [6, 6]);
  assert.deepEqual(await counts([3, 1]), [9, 3]);
});

test("verdicts come in the order in which they are ready", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    const order: number[] = [];
    const source = [item(1, 150), item(1, 80), item(1, 10)];
    for await (const { index } of judge.judgeAll(source)) order.push(index);
    assert.deepEqual(order, [2, 1, 0]);
  });
});

test("an asynchronous source that is slow does not hold back the verdicts that are ready", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    let more = () => {};
    async function* source() {
      yield item(1);
      await new Promise<void>((resolve) => {
        more = resolve;
      });
      yield item(2);
    }
    const seen: (number | null)[] = [];
    for await (const { verdict } of judge.judgeAll(source())) {
      seen.push(verdict.step);
      more();
    }
    assert.deepEqual(seen, [1, 2]);
  });
});

test("one signal cancels everything, the servers see it, and its reason is what rejects", async () => {
  const server = await fakeJudge();
  await withJudge([server], { maxInFlight: 8, flavor: "sglang" }, async (judge) => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on("warning", onWarning);
    const abort = new AbortController();
    const reason = new Error("the step is over");
    setTimeout(() => abort.abort(reason), 60);
    const source = items(50, 5000);
    const all = (async () => {
      for await (const _ of judge.judgeAll(source, { signal: abort.signal })) assert.fail("no verdict is due");
    })();
    const flags = judge.flags({ correct: source.map(() => 1), items: source }, { signal: abort.signal });
    const single = judge.judge(source[0]!, { signal: abort.signal });
    for (const promise of [all, flags, single]) await assert.rejects(promise, reason);
    await assert.rejects(judge.judge(source[0]!, { signal: abort.signal }), reason);
    await sleep(50);
    assert.deepEqual([server.seen.left, server.seen.running], [8, 0]);
    assert.deepEqual(server.aborted.sort(), server.bodies.map(({ rid }) => rid as string).sort());
    assert.equal(judge.stats().servers[0]!.inFlight, 0);
    assert.equal(judge.stats().queued, 0);
    process.off("warning", onWarning);
    assert.deepEqual(warnings, []);
    assert.equal((await judge.judge(item(2))).step, 2);
  });
});

test("leaving the loop cancels what runs and ends the source", async () => {
  const server = await fakeJudge();
  await withJudge([server], { maxInFlight: 4 }, async (judge) => {
    let ended = false;
    function* source() {
      try {
        while (true) yield item(1, server.seen.requests < 4 ? 10 : 5000);
      } finally {
        ended = true;
      }
    }
    for await (const _ of judge.judgeAll(source())) break;
    assert.ok(ended);
    await sleep(30);
    assert.equal(server.seen.running, 0);
  });
});

test("leaving the loop does not wait for a source that never comes back", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    async function* source() {
      yield item(1);
      await new Promise(() => {});
    }
    for await (const _ of judge.judgeAll(source())) break;
  });
});

test("a source that throws loses no verdict of the items before", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    function* source() {
      yield* items(5, 20);
      throw new Error("the file ended early");
    }
    let got = 0;
    await assert.rejects(async () => {
      for await (const _ of judge.judgeAll(source())) got++;
    }, /the file ended early/);
    assert.equal(got, 5);
  });
});

test("flags judges right answers only and is ready for fapoPenalty", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    const asked = [item(2), item(4), item(-1), item("none"), item(0)];
    const { flawed, steps, ms, counts, codes } = await judge.flags({ correct: [1, 0, 1, 1, 1], items: asked });
    assert.deepEqual([...flawed], [1, 0, 0, -1, 1]);
    assert.deepEqual([...steps], [2, -2, -1, -2, 0]);
    assert.deepEqual(
      [...ms].map((each) => each > 0),
      [true, false, true, true, true],
    );
    assert.deepEqual(counts, { judged: 4, sound: 1, flawed: 2, unknown: 1 });
    assert.deepEqual(codes, { ERR_GENRM_UNPARSED: 1 });
    assert.equal(server.seen.requests, 4);
    assert.equal((await judge.flags({ correct: new Uint8Array(0), items: [] })).flawed.length, 0);
    await assert.rejects(judge.flags({ correct: [1], items: [] }), {
      code: "ERR_INVALID_ARGUMENT",
      message: "GenRM.flags: expected items to be of 1 elements, like correct, got []",
    });
  });
});

test("a group's verdicts can be awaited alone, and groups come as they are complete", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    const group = (ms: number) => ({ name: `${ms} ms`, correct: [true, true], items: [item(1, ms), item(-1)] });
    const order: string[] = [];
    for await (const { index, group: done, flawed } of judge.flagGroups([group(200), group(20), group(100)])) {
      order.push(`${index}: ${done.name}`);
      assert.deepEqual([...flawed], [1, 0]);
    }
    assert.deepEqual(order, ["1: 20 ms", "2: 100 ms", "0: 200 ms"]);
  });
});

test("hedging passes by a straggler, within its budget", async () => {
  const [fast, slow] = await Promise.all([fakeJudge(), fakeJudge(() => "hang")]);
  const events: GenRMEvent[] = [];
  const options = { maxInFlight: 4, hedge: { after: 40, maxFraction: 1 }, onEvent: (e: GenRMEvent) => events.push(e) };
  await withJudge([fast, slow], options, async (judge) => {
    const started = performance.now();
    let hedged = 0;
    for await (const { verdict } of judge.judgeAll(items(12, 5))) {
      assert.equal(verdict.error, null);
      assert.equal(verdict.server, fast.url);
      hedged += Number(verdict.hedged);
    }
    assert.ok(performance.now() - started < 2000);
    assert.ok(hedged > 0);
    assert.equal(events.filter(({ type }) => type === "hedge").length, hedged);
    await sleep(20);
    assert.equal(slow.seen.running, 0, "the copy that lost is cancelled");
    const [, { state }] = judge.stats().servers as [unknown, { state: string }];
    assert.equal(state, "closed", "losing is no failure");
  });

  const pair = await Promise.all([fakeJudge(), fakeJudge()]);
  await withJudge(pair, { hedge: { after: 1, maxFraction: 0.1 } }, async (judge) => {
    for await (const _ of judge.judgeAll(items(60, 10)));
    const { hedges, requests } = judge.stats();
    assert.ok(hedges > 0 && hedges <= 0.1 * requests + 1, `${hedges} of ${requests}`);
  });
});

test("closing ends every item as unknown, and later questions are refused", async () => {
  const server = await fakeJudge();
  await withJudge([server], { maxInFlight: 2 }, async (judge) => {
    const running = judge.flags({ correct: [1, 1, 1, 1], items: items(4, 5000) });
    const loop = (async () => {
      const codes: (string | undefined)[] = [];
      try {
        for await (const { verdict } of judge.judgeAll(items(100, 5000))) codes.push(verdict.error?.code);
      } catch (error) {
        return { codes, error };
      }
      return assert.fail("a loop that was cut short must not look complete");
    })();
    await sleep(30);
    await judge.close();
    await judge.close();
    assert.deepEqual((await running).codes, { ERR_GENRM_CLOSED: 4 });
    const { codes, error } = await loop;
    assert.ok(codes.length > 0 && codes.every((code) => code === "ERR_GENRM_CLOSED"));
    assert.ok(error instanceof GenRMError && error.code === "ERR_GENRM_CLOSED");
    await assert.rejects(judge.judge(item(1)), { code: "ERR_GENRM_CLOSED", message: "GenRM: the client is closed" });
    await sleep(20);
    assert.equal(server.seen.running, 0);
  });
});

test("await using closes", async () => {
  const server = await fakeJudge();
  let verdict: Promise<{ error: GenRMError | null }>;
  {
    await using judge = new GenRM({ servers: [server.url], model: "judge" });
    verdict = judge.judge(item(1, 5000));
  }
  assert.equal((await verdict).error?.code, "ERR_GENRM_CLOSED");
  await server.close();
});

test("a prompt that throws is the caller's error, a parser that throws is an unknown verdict", async () => {
  const server = await fakeJudge();
  await withJudge([server], {}, async (judge) => {
    await assert.rejects(judge.judge({ problem: 7 } as never), {
      message: "fapoPrompt: expected problem to be a string, got 7",
    });
  });
  const parse = () => {
    throw new Error("not today");
  };
  const other = await fakeJudge();
  await withJudge([other], { parse }, async (judge) => {
    const { flawed, error } = await judge.judge(item(1));
    assert.equal(flawed, -1);
    assert.equal(error?.code, "ERR_GENRM_UNPARSED");
    assert.match(String(error?.cause), /not today/);
  });
});

test("events tell of everything, in plain objects", async () => {
  const server = await fakeJudge((n) => (n === 0 ? "500" : undefined));
  const events: GenRMEvent[] = [];
  await withJudge([server], { backoff: { base: 1 }, onEvent: (event) => events.push(event) }, async (judge) => {
    await judge.judge(item(1));
    const [retry, verdict] = JSON.parse(JSON.stringify(events));
    assert.deepEqual([retry.type, retry.code, retry.attempt], ["retry", "ERR_GENRM_HTTP", 0]);
    assert.deepEqual([verdict.type, verdict.attempts, verdict.asked, verdict.done], ["verdict", 2, 1, 1]);
  });
});

test("names the option that is wrong", () => {
  const make = (options: object) => () => new GenRM({ servers: ["http://a"], model: "m", ...options } as GenRMOptions);
  const wrong: [object, string][] = [
    [{ servers: [] }, "GenRM: expected servers to be an array of at least one server, got []"],
    [{ servers: ["a:1"] }, 'GenRM.servers: expected url to be an http or https URL, got "a:1"'],
    [{ servers: ["http://a", "http://a/v1/"] }, "GenRM: expected servers to be different from each other, got"],
    [{ servers: ["http://me:secret@a"] }, "GenRM.servers: expected url to be without user and password"],
    [{ servers: [{ url: "http://a", cap: 3 }] }, "GenRM.servers: unknown option cap"],
    [{ model: "" }, 'GenRM: expected model to be a name, got ""'],
    [{ maxInflight: 3 }, "GenRM: unknown option maxInflight"],
    [{ maxInFlight: 0 }, "GenRM: expected maxInFlight to be a positive integer, got 0"],
    [{ timeout: Number.NaN }, "GenRM: expected timeout to be positive milliseconds below 2^31, or Infinity, got NaN"],
    [{ retries: -1 }, "GenRM: expected retries to be a non-negative integer, got -1"],
    [{ hedge: { quantile: 1 } }, "GenRM.hedge: expected quantile to be between 0 and 1, got 1"],
    [
      { breaker: { cooldown: Number.POSITIVE_INFINITY } },
      "GenRM.breaker: expected cooldown to be positive milliseconds",
    ],
  ];
  for (const [options, message] of wrong) {
    assert.throws(make(options), (error: GenRMError) => {
      assert.equal(error.code, "ERR_INVALID_ARGUMENT");
      assert.ok(error.message.startsWith(message), error.message);
      assert.doesNotMatch(error.message, /secret/);
      return true;
    });
  }
  make({})();
});
