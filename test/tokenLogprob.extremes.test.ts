/** tokenLogprob and tokenLogprobBackward at the ends of what numbers can be. */
import assert from "node:assert/strict";
import { tensor, tokenLogprob } from "fapo-kernels";
import { logprobOf, softmaxRow } from "./reference/softmax.ts";
import { batchOf, logitsTensor, normalBatch, rowOf } from "./support/logits.ts";
import { checkFiniteRow, runBoth } from "./support/tokenLogprob.ts";
import { assertClose, forEachDevice } from "./support.ts";
import { entropyTolerance, logprobTolerance, madeUpEntropyTolerance } from "./tolerances.ts";

forEachDevice("logits as far apart as float32 allows stay right", (device) => {
  for (const huge of [1e30, 3e38]) {
    const values = Float32Array.of(huge, -huge, 0, huge, -huge, 0, -huge, -huge, -huge);
    for (const logitSoftcap of [undefined, 30]) {
      const options = logitSoftcap === undefined ? {} : { logitSoftcap };
      const batch = batchOf(values, 3, 3, "float32", Int32Array.of(0, 1, 2));
      const got = runBoth(device, batch, options);
      const rows = [0, 1, 2].map((i) => softmaxRow(rowOf(batch, i), options));
      const logprobs = rows.map((row, i) => Math.fround(logprobOf(row, batch.tokenIds[i]!)));
      assertClose(got.logprobs, logprobs, logprobTolerance, `logprobs at ${huge}, cap ${logitSoftcap}`);
      const entropies = rows.map(({ entropy }) => entropy);
      assertClose(got.entropy, entropies, entropyTolerance, `entropy at ${huge}, cap ${logitSoftcap}`);
      assert.ok(!got.gradLogits.some(Number.isNaN), `gradient at ${huge}, cap ${logitSoftcap}: ${got.gradLogits}`);
    }
  }
});

forEachDevice("subnormal float16 logits are not flushed to 0", (device) => {
  // Steps of the smallest subnormal, and a temperature of their size. Those of float32 are below any temperature.
  const step = 2 ** -24;
  const values = Float32Array.from({ length: 40 }, (_, j) => step * ((j * 7) % 10));
  const batch = batchOf(values, 1, 40, "float16");
  assert.ok(batch.values.some((value) => value !== 0));
  const got = runBoth(device, batch, { temperature: step, gradScale: step });
  checkFiniteRow(device, batch, { temperature: step }, got, 0, "float16", step);
});

forEachDevice("temperatures at the ends of their range work", (device) => {
  for (const temperature of [1e-30, 1e-3, 1e3, 1e30]) {
    const batch = normalBatch(3, 40, "float32", { sigma: 1 });
    const values = batch.values.map((value) => value * temperature);
    const scaled = { ...batch, data: values, values };
    const got = runBoth(device, scaled, { temperature, gradScale: temperature });
    const what = `temperature ${temperature}`;
    for (let i = 0; i < 3; i++) checkFiniteRow(device, scaled, { temperature }, got, i, what, temperature);
  }
});

forEachDevice("logits in the saturation of the cap cost no digits, on either side, target or not", (device) => {
  for (const [temperature, logitSoftcap] of [
    [0.3, 5],
    [1, 5],
    [0.7, 30],
    [1, 30],
    [1, 50],
    [0.1, 50],
  ] as const) {
    const options = { temperature, logitSoftcap };
    for (let k = 0; k < 300; k++) {
      // Others around up to 3 caps off 0, one logit up to 15 caps away.
      const offset = logitSoftcap * ((k % 7) - 3);
      const sigma = logitSoftcap * [0.1, 0.5, 2][k % 3]!;
      const others = normalBatch(1, [1, 2, 40, 300][k % 4]!, "float32", { sigma, offset, seed: k });
      const far = (k % 2 === 0 ? -1 : 1) * logitSoftcap * (1 + (14 * k) / 300);
      const row = Float32Array.of(far, ...others.values);
      const target = k % 5 === 4 ? 1 : 0;
      const batch = batchOf(row, 1, row.length, "float32", Int32Array.of(target));
      const what = JSON.stringify({ ...options, far, offset, sigma, target, vocab: row.length });
      checkFiniteRow(device, batch, options, runBoth(device, batch, options), 0, what);
    }
  }
});

forEachDevice("gradients of 16 bits overflow to infinity and underflow to 0 by rounding", (device) => {
  const batch = batchOf(new Float32Array(4), 1, 4, "float16", Int32Array.of(2));
  const { gradLogits } = runBoth(device, batch, { gradScale: 2 ** 20 });
  assert.deepEqual(device.floats(tensor(gradLogits, { dtype: "float16" })), [
    -Infinity,
    -Infinity,
    Infinity,
    -Infinity,
  ]);
  const small = runBoth(device, batch, { gradScale: 2 ** -25 });
  // 0.25 and 0.75 of half the smallest subnormal: both to 0.
  assert.ok(device.floats(tensor(small.gradLogits, { dtype: "float16" })).every((value) => value === 0));
  const magnitudes = (gradScale: number): number[] => {
    const { gradLogits } = runBoth(device, batch, { gradScale });
    return device.floats(tensor(gradLogits, { dtype: "float16" })).map(Math.abs);
  };
  const step = 2 ** -24;
  const half = 2 ** -23; // of the smallest subnormal in the entries of probability 0.25, three halves in the target's
  assert.deepEqual(magnitudes(half * (1 - 2 ** -10)), [0, 0, step, 0]);
  assert.deepEqual(magnitudes(half * (1 + 2 ** -10)), [step, step, 2 * step, step]);
  // A tie goes to even. The exp of a GPU is not exact, which decides there.
  if (device.name === "cpu") assert.deepEqual(magnitudes(half), [0, 0, 2 * step, 0]);
});

forEachDevice("rows of equal logits, a little above or below the target, add up without drift", (device) => {
  for (const vocab of [300, 2048, 8192]) {
    for (let k = -8; k <= 84; k++) {
      const values = new Float32Array(vocab).fill((k / 64) * 5.5); // to 7.2: beyond what is measured from the target
      values[0] = 0;
      const batch = batchOf(values, 1, vocab, "float32", Int32Array.of(0));
      checkFiniteRow(device, batch, {}, runBoth(device, batch), 0, `vocab ${vocab}, step ${k}`);
    }
  }
});

forEachDevice("one likely token over a long tail of unlikely ones adds up without drift", (device) => {
  // Where the sum is near 1, each of the tail's terms is about half a step of float32, and all round one way.
  for (const vocab of [513, 577, 1153, 2049, 2305, 32_000]) {
    for (let gap = 14; gap < 19; gap += 0.25) {
      for (const target of [0, vocab - 1]) {
        const values = new Float32Array(vocab).fill(-gap);
        values[target] = 0;
        const batch = batchOf(values, 1, vocab, "float32", Int32Array.of(target));
        checkFiniteRow(device, batch, {}, runBoth(device, batch), 0, `vocab ${vocab}, gap ${gap}, target ${target}`);
      }
    }
  }
});

forEachDevice("a tail made to round one way under a peak far above the target moves the entropy by 7e-6", (device) => {
  // The likely token 9 bits above the target, from which the row is measured, and the tail just where its terms times
  // their exponents are half a step of what the likely one left in the sum.
  const vocab = 576;
  const values = new Float32Array(vocab).fill(-13.5 * Math.LN2);
  values[0] = 9 * Math.LN2;
  values[1] = 0;
  const batch = batchOf(values, 1, vocab, "float32", Int32Array.of(1));
  const { entropy } = tokenLogprob({ logits: logitsTensor(device, batch), tokenIds: batch.tokenIds, entropy: true });
  const { entropy: expected } = softmaxRow(values, {});
  assertClose(device.read(entropy!), [expected], madeUpEntropyTolerance, "entropy");
});

forEachDevice("a masked logit gets no gradient, also where the factor is beyond float32", (device) => {
  const batch = batchOf(Float32Array.of(0, 1, Number.NEGATIVE_INFINITY), 1, 3, "float32", Int32Array.of(0));
  const { gradLogits } = runBoth(device, batch, { gradScale: 1e40 });
  assert.equal(gradLogits[2], 0);
  assert.ok(gradLogits[0]! < 0 || gradLogits[0]! > 0);
});
