/** The same bits from tokenLogprob and its backward pass on any thread and any number of them. */
import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import { devices, setThreads, tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { logprobOf, softmaxRow } from "./reference/softmax.ts";
import { normalBatch } from "./support/logits.ts";
import { assertSameOutputs, type Outputs, runBoth, upstreamOf } from "./support/tokenLogprob.ts";
import { assertClose, floatDTypes, forEachDevice } from "./support.ts";
import { logprobTolerance } from "./tolerances.ts";

forEachDevice("the same bits run to run and for any number of threads", (device) => {
  const { threads } = devices().cpu;
  // Large enough to be shared between threads, with rows of different cost.
  const shapes: [rows: number, vocab: number][] = [
    [64, 4000],
    [7, 50_257],
    [3000, 33],
    [1, 70_000],
  ];
  try {
    for (const dtype of floatDTypes) {
      for (const [rows, vocab] of shapes) {
        const batch = normalBatch(rows, vocab, dtype, { sigma: 8 });
        const options = {
          temperature: 0.7,
          responseMask: Uint8Array.from({ length: rows }, (_, i) => (i % 5 === 0 ? 0 : 1)),
        };
        if (rows === 1) options.responseMask[0] = 1;
        setThreads(1);
        const expected = runBoth(device, batch, options);
        for (const count of [1, 2, 3, 8, 64, 2, 1]) {
          setThreads(count);
          assertSameOutputs(
            runBoth(device, batch, options),
            expected,
            `${dtype} [${rows}, ${vocab}], ${count} threads`,
          );
        }
      }
    }
  } finally {
    setThreads(threads);
  }
});

forEachDevice("a worker gives the bits of the main thread", async (device) => {
  const batch = normalBatch(20, 3000, "bfloat16");
  const upstream = upstreamOf(batch.rows);
  const expected = runBoth(device, batch, { temperature: 0.7 }, upstream);
  const source = `
    const { parentPort, workerData } = require("node:worker_threads");
    import("fapo-kernels").then(({ tensor, toDevice, tokenLogprob, tokenLogprobBackward }) => {
      const { batch, upstream, name } = workerData;
      const logits = toDevice(tensor(batch.data, { shape: [batch.rows, batch.vocab], dtype: batch.dtype }), name);
      const common = { logits, tokenIds: batch.tokenIds, temperature: 0.7 };
      const forward = tokenLogprob({ ...common, entropy: true });
      const back = tokenLogprobBackward({ ...common, ...forward, ...upstream });
      const read = (t) => toDevice(t, "cpu").data;
      parentPort.postMessage({ logprobs: read(forward.logprobs), lse: read(forward.lse), entropy: read(forward.entropy), gradLogits: read(back.gradLogits) });
    });`;
  const run = (): Promise<Outputs> =>
    new Promise((resolve, reject) => {
      const worker = new Worker(source, { eval: true, workerData: { batch, upstream, name: device.name } });
      worker.once("message", resolve).once("error", reject);
    });
  for (const got of await Promise.all([run(), run(), run()])) assertSameOutputs(got, expected, "worker");
});

forEachDevice("writing while an op reads gives numbers or an error, and no crash", async (device) => {
  if (device.name !== "cpu") return;
  const [rows, vocab] = [8, 500];
  const shared = (bytes: number): SharedArrayBuffer => new SharedArrayBuffer(bytes);
  const data = new Float32Array(shared(4 * rows * vocab));
  const tokenIds = new Int32Array(shared(4 * rows));
  const responseMask = new Uint8Array(shared(rows)).fill(1);
  const stop = new Int32Array(shared(4));
  const source = `
    const { workerData: { data, tokenIds, responseMask, stop } } = require("node:worker_threads");
    for (let k = 0; Atomics.load(stop, 0) === 0; k++) {
      tokenIds[k % tokenIds.length] = k % 3 === 0 ? 2147483647 - k : k % 500;
      data[(k * 7919) % data.length] = k % 5 === 0 ? NaN : k % 100;
      responseMask[k % responseMask.length] = k & 1;
    }`;
  const worker = new Worker(source, { eval: true, workerData: { data, tokenIds, responseMask, stop } });
  await new Promise((resolve) => worker.once("online", resolve));
  const logits = tensor(data, { shape: [rows, vocab] });
  const ones = new Float32Array(rows).fill(1);
  let [done, refused] = [0, 0];
  for (const until = Date.now() + 1000; Date.now() < until; ) {
    try {
      const forward = tokenLogprob({ logits, tokenIds, responseMask });
      tokenLogprobBackward({ logits, tokenIds, responseMask, ...forward, gradLogprobs: ones });
      done++;
    } catch (error) {
      assert.equal((error as { code: string }).code, "ERR_TOKEN_OUT_OF_RANGE");
      refused++;
    }
  }
  Atomics.store(stop, 0, 1);
  await new Promise((resolve) => worker.once("exit", resolve));
  assert.ok(done + refused > 100, `${done} done, ${refused} refused`);
  tokenIds.fill(3);
  data.fill(1);
  responseMask.fill(1);
  const expected = logprobOf(softmaxRow(data.subarray(0, vocab), {}), 3);
  assertClose([tokenLogprob({ logits, tokenIds }).logprobs.data[0]!], [expected], logprobTolerance);
});
