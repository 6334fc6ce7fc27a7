/** Inputs over a SharedArrayBuffer that another thread writes during the calls. */
import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import {
  FapoError,
  fapoAdvantage,
  fapoPenalty,
  groupAdvantage,
  learningProgress,
  policyLoss,
  synchronize,
} from "fapo-kernels";
import type { Flipped } from "./support/flipWorker.ts";
import { assertSameMaps, bitsOf, times } from "./support/ops.ts";
import { forEachDevice } from "./support.ts";

/** Shared memory that holds `good`, and what a worker writes there. */
function flipping<Data extends Flipped["data"]>(
  type: { new (buffer: SharedArrayBuffer): Data; BYTES_PER_ELEMENT: number },
  good: readonly number[],
  bad: readonly number[],
): Flipped & { data: Data } {
  const data = new type(new SharedArrayBuffer(good.length * type.BYTES_PER_ELEMENT));
  data.set(good);
  return { data, good, bad };
}

forEachDevice(
  "a worker that writes offsets, ids, verdicts and masks meanwhile: every call is valid or refused",
  async (device) => {
    const groups = 40;
    const sequences = groups * 4;
    const tokens = sequences * 5;
    const wild = [-1, 0, 1, 7, 1e6, 2 ** 31 - 1, -(2 ** 31)];
    const ids = flipping(
      Int32Array,
      times(sequences, (i) => i % groups),
      wild,
    );
    const offsets = flipping(
      Int32Array,
      times(groups + 1, (k) => 4 * k),
      wild,
    );
    const cuSeqlens = flipping(
      Int32Array,
      times(sequences + 1, (s) => 5 * s),
      wild,
    );
    const lengths = flipping(
      Int32Array,
      times(sequences, () => 5),
      wild,
    );
    const correct = flipping(
      Uint8Array,
      times(sequences, (i) => i % 2),
      [0, 255],
    );
    const flawed = flipping(
      Int8Array,
      times(sequences, (i) => (i % 3) - 1),
      [-128, 5, 127],
    );
    const valid = flipping(
      Uint8Array,
      times(sequences, () => 1),
      [0, 0],
    );
    const mask = flipping(
      Uint8Array,
      times(tokens, () => 1),
      [0, 0],
    );
    const rewards = flipping(
      Float32Array,
      times(sequences, (i) => i % 5),
      [Number.NaN, Infinity, 3e38],
    );
    const logprobs = flipping(
      Float32Array,
      times(tokens, (i) => -(i % 7)),
      [Number.NaN, -Infinity, 3e38],
    );

    const calls: (() => object)[] = [
      () =>
        groupAdvantage({ rewards: rewards.data, groupIds: ids.data, groups, valid: valid.data, device: device.name }),
      () =>
        groupAdvantage({ rewards: rewards.data, groupOffsets: offsets.data, scale: "batch-std", device: device.name }),
      () =>
        fapoPenalty({
          correct: correct.data,
          flawed: flawed.data,
          responseLengths: lengths.data,
          overlong: { maxLength: 8, buffer: 4 },
          device: device.name,
        }),
      () =>
        fapoAdvantage({
          correct: correct.data,
          flawed: flawed.data,
          unknownVerdict: "exclude",
          groupOffsets: offsets.data,
          device: device.name,
        }),
      () =>
        fapoAdvantage({ correct: correct.data, flawed: flawed.data, groupIds: ids.data, groups, device: device.name }),
      () => learningProgress({ correct: correct.data, flawed: flawed.data, groupIds: ids.data, groups }),
      () => learningProgress({ correct: correct.data, flawed: flawed.data, groupOffsets: offsets.data }),
      () =>
        policyLoss({
          logprobs: logprobs.data,
          advantages: rewards.data,
          cuSeqlens: cuSeqlens.data,
          responseMask: mask.data,
          lossAggMode: "seq-mean-token-mean",
          device: device.name,
        }),
    ];
    const comparable = (result: object): unknown => ("groups" in result ? result : bitsOf(device, result));
    const expected = calls.map((call) => comparable(call()));

    const stop = new Int32Array(new SharedArrayBuffer(4));
    const flipped = [ids, offsets, cuSeqlens, lengths, correct, flawed, valid, mask, rewards, logprobs];
    const worker = new Worker(new URL("./support/flipWorker.js", import.meta.url), { workerData: { flipped, stop } });
    const ended = new Promise<number>((resolve, reject) => worker.once("exit", resolve).once("error", reject));
    await new Promise((resolve) => worker.once("message", resolve));

    const [passed, refused] = [calls.map(() => 0), calls.map(() => 0)];
    const end = Date.now() + 2000;
    while (Date.now() < end) {
      for (const [k, call] of calls.entries()) {
        try {
          call();
          passed[k]!++;
        } catch (error) {
          assert.ok(error instanceof FapoError, String(error));
          // Good when it was checked, bad when it was used: the op says that rather than compute with it.
          const changed = error.code === "ERR_INTERNAL" && error.message.endsWith("changed during the call");
          assert.ok(changed || error.code === "ERR_INVALID_ARGUMENT", String(error));
          refused[k]!++;
        }
      }
    }
    Atomics.store(stop, 0, 1);
    assert.equal(await ended, 0);
    for (const { data, good } of flipped) data.set(good);
    try {
      synchronize(device.name); // a GPU tells of what its last calls came upon
    } catch (error) {
      assert.equal((error as FapoError).code, "ERR_INVALID_ARGUMENT", String(error));
    }
    for (const [k, call] of calls.entries()) {
      assert.deepEqual(comparable(call()), expected[k]);
      assert.ok(passed[k]! > 0, `call ${k} never got through`);
    }
    // A GPU takes so long that the few calls may all fall between two writes.
    if (device.name === "cpu")
      assert.ok(
        refused.some((count) => count > 0),
        "the worker was never noticed",
      );
  },
);

forEachDevice("a growable SharedArrayBuffer is taken at the length it has", (device) => {
  const Growable = SharedArrayBuffer as unknown as new (
    length: number,
    options: { maxByteLength: number },
  ) => SharedArrayBuffer & { grow(length: number): void };
  const buffer = new Growable(16, { maxByteLength: 64 });
  const rewards = new Float32Array(buffer);
  rewards.set([1, 2, 3, 5]);
  const before = groupAdvantage({ rewards, groupSize: 2, device: device.name });
  const fixed = groupAdvantage({ rewards: [1, 2, 3, 5], groupSize: 2, device: device.name });
  assertSameMaps(bitsOf(device, before), bitsOf(device, fixed));
  buffer.grow(32);
  assert.equal(device.floats(groupAdvantage({ rewards, groupSize: 2, device: device.name }).advantages).length, 8);
});

forEachDevice("offsets that another thread breaks never lead outside the arrays they index", async (device) => {
  // A sentinel on both sides of the advantages: it would show in the gradient of a token of sequence -1 or S.
  const sequences = 8;
  const tokens = 16 * sequences;
  const around = new Float32Array(sequences + 2).fill(1e6);
  const advantages = around.subarray(1, sequences + 1).fill(1);
  const offsets = times(sequences + 1, (s) => 16 * s);
  const cuSeqlens = flipping(Int32Array, offsets, [16, 0, 7, tokens]);
  const logprobs = new Float32Array(tokens).fill(-1);

  const stop = new Int32Array(new SharedArrayBuffer(4));
  const workerData = { flipped: [cuSeqlens], stop };
  const worker = new Worker(new URL("./support/flipWorker.js", import.meta.url), { workerData });
  const ended = new Promise<number>((resolve, reject) => worker.once("exit", resolve).once("error", reject));
  await new Promise((resolve) => worker.once("message", resolve));
  let passed = 0;
  const end = Date.now() + 1500;
  while (Date.now() < end) {
    try {
      const { gradLogprobs } = policyLoss({
        logprobs,
        advantages,
        cuSeqlens: cuSeqlens.data,
        lossAggMode: "token-sum",
        device: device.name,
      });
      passed++;
      for (const gradient of device.floats(gradLogprobs)) assert.equal(gradient, -1);
    } catch (error) {
      assert.ok(error instanceof FapoError, String(error));
    }
  }
  Atomics.store(stop, 0, 1);
  assert.equal(await ended, 0);
  assert.ok(passed > 0);
});
