/** Nothing crashes the process: exits, workers that come and go, workers that are terminated inside a call. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** A loop of calls large enough to use the thread pool. */
const setup = `
const { tensor, tokenLogprob, fusedPolicyLoss } = await import("fapo-kernels");
const rows = 64, vocab = 32000;
const data = Float32Array.from({ length: rows * vocab }, (_, i) => Math.sin(i));
const logits = tensor(data, { shape: [rows, vocab] });
const tokenIds = new Int32Array(rows).fill(7), advantages = new Float32Array(rows).fill(1);
const call = () => tokenLogprob({ logits, tokenIds }).logprobs.data[0];
`;

const endings: [name: string, source: string, status: number | null, signal: string | null, stderr?: RegExp][] = [
  ["the end of the script", "call();", 0, null],
  ["process.exit(3)", "call(); process.exit(3);", 3, null],
  ["an uncaught error", 'call(); throw new Error("planted");', 1, null, /planted/],
  ["an unhandled rejection", 'call(); await Promise.reject(new Error("planted"));', 1, null, /planted/],
  ["SIGTERM", 'call(); process.kill(process.pid, "SIGTERM"); setTimeout(() => {}, 9e4);', null, "SIGTERM"],
  ["SIGINT", 'call(); process.kill(process.pid, "SIGINT"); setTimeout(() => {}, 9e4);', null, "SIGINT"],
  ["process.exit() in an exit handler after a call", 'process.on("exit", () => { call(); }); call();', 0, null],
  [
    "an exit while a worker is inside a call",
    `const { Worker } = await import("node:worker_threads");
     new Worker(\`(async () => { ${setup.replaceAll("`", "\\`")} for (;;) call(); })()\`, { eval: true });
     setTimeout(() => process.exit(0), 300); call();`,
    0,
    null,
  ],
  [
    "workers that come and go, without the main thread ever loading the addon",
    `const { Worker } = await import("node:worker_threads"); const { once } = await import("node:events");
     for (let i = 0; i < 12; i++) await once(new Worker(\`(async () => { ${setup.replaceAll("`", "\\`")} call(); })()\`, { eval: true }), "exit");`,
    0,
    null,
  ],
];

for (const [name, source, status, signal, stderr] of endings) {
  test(`the process ends as it should after ${name}`, () => {
    const body = name.startsWith("workers") ? source : setup + source;
    const child = spawnSync(process.execPath, ["--input-type=module", "--eval", body], { cwd: root, encoding: "utf8" });
    assert.deepEqual({ status: child.status, signal: child.signal }, { status, signal }, child.stderr);
    if (stderr) {
      assert.match(child.stderr, stderr);
    } else {
      assert.equal(child.stderr, "");
    }
  });
}

test("workers terminated inside calls leave the process and its results intact", { timeout: 60_000 }, async () => {
  const { tensor, tokenLogprob } = await import("fapo-kernels");
  const logits = tensor(
    Float32Array.from({ length: 64 * 32000 }, (_, i) => Math.sin(i)),
    { shape: [64, 32000] },
  );
  const tokenIds = new Int32Array(64).fill(7);
  const expected = Array.from(tokenLogprob({ logits, tokenIds }).logprobs.data);
  const source = `(async () => { ${setup} for (;;) call(); })()`;
  for (let round = 0; round < 10; round++) {
    const workers = Array.from({ length: 4 }, () => new Worker(source, { eval: true, env: process.env }));
    await Promise.all(workers.map((worker) => new Promise((online) => worker.once("online", online))));
    await new Promise((later) => setTimeout(later, 20 * round));
    await Promise.all(workers.map((worker) => worker.terminate()));
    assert.deepEqual(Array.from(tokenLogprob({ logits, tokenIds }).logprobs.data), expected);
  }
});

test("many workers at once compute the same bits as the main thread", { timeout: 60_000 }, async () => {
  const source = `(async () => { ${setup}
    const { parentPort } = await import("node:worker_threads");
    let last; for (let i = 0; i < 20; i++) last = tokenLogprob({ logits, tokenIds }).logprobs.data;
    parentPort.postMessage(last); })()`;
  const results = await Promise.all(
    Array.from({ length: 8 }, () => {
      const worker = new Worker(source, { eval: true });
      return new Promise<Float32Array>((done, fail) => {
        worker.once("message", done);
        worker.once("error", fail);
      });
    }),
  );
  for (const result of results) assert.deepEqual(result, results[0]);
});

test("a call at the limit of the stack is a RangeError that can be caught", () => {
  const child = spawnSync(
    process.execPath,
    [
      "--input-type=module",
      "--eval",
      `${setup} let caught; const dive = () => { try { dive(); } catch (e) { caught ??= e; call(); } };
       try { dive(); } catch (e) { caught = e; } console.log(caught instanceof RangeError);`,
    ],
    { cwd: root, encoding: "utf8", timeout: 60_000 },
  );
  assert.equal(child.stdout.trim(), "true", child.stderr);
});
