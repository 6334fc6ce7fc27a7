/** Rows long enough to be computed in parts, which threads share where rows are few. */
import assert from "node:assert/strict";
import { devices, fusedPolicyLoss, setThreads, type Tensor, type TensorData, tokenLogprobBackward } from "fapo-kernels";
import { softmaxRow } from "./reference/softmax.ts";
import { batchOf, type LogitsBatch, logitsTensor, nans, normalBatch, normalValues } from "./support/logits.ts";
import { policyBatch } from "./support/policy.ts";
import {
  assertAllNaN,
  assertSameOutputs,
  checkFiniteRow,
  names,
  rowBits,
  runBoth,
  specials,
  upstreamOf,
  withSpecial,
} from "./support/tokenLogprob.ts";
import { assertClose, assertSameBits, floatDTypes, forEachDevice, type TestDevice } from "./support.ts";
import { entropyTolerance, lseTolerance } from "./tolerances.ts";

const vocab = 60_001;
const columns = [0, 18_500, 36_900, 55_300, vocab - 1]; // one in each part, and the last

function withThreads(body: (use: (count: number) => void) => void): void {
  const { threads } = devices().cpu;
  try {
    body(setThreads);
  } finally {
    setThreads(threads);
  }
}

forEachDevice("peaks, masks and targets anywhere in a long row", (device) => {
  withThreads((use) => {
    use(3);
    for (const options of [{}, { temperature: 0.7, logitSoftcap: 30 }]) {
      columns.forEach((target, k) => {
        const values = normalValues(vocab, 1, -3, k);
        const check = (what: string): void => {
          const batch = batchOf(values.slice(), 1, vocab, "float32", Int32Array.of(target));
          checkFiniteRow(device, batch, options, runBoth(device, batch, options), 0, `${what}, target ${target}`);
        };
        // Far above the target, once in each part, each higher than the one before or lower.
        columns.forEach((column, i) => {
          if (column !== target) values[column] = 20 + 2 * (k % 2 === 0 ? i : -i);
        });
        check("peaks");
        values.fill(Number.NEGATIVE_INFINITY, 19_000, 38_000);
        if (target < 19_000 || target >= 38_000) check("masked in the middle");
        values[target] = Number.NEGATIVE_INFINITY;
        const batch = batchOf(values, 1, vocab, "float32", Int32Array.of(target));
        const got = runBoth(device, batch, options);
        const row = softmaxRow(values, options);
        assert.equal(got.logprobs[0], Number.NEGATIVE_INFINITY);
        assertClose(got.lse, [row.lse], lseTolerance(options), `lse, masked target ${target}`);
        assertClose(got.entropy, [row.entropy], entropyTolerance, `entropy, masked target ${target}`);
      });
    }
  });
});

forEachDevice(
  "a NaN or Infinity anywhere in a long row makes the whole row NaN, a mask over all of it, too",
  (device) => {
    withThreads((use) => {
      use(3);
      const batch = batchOf(normalValues(vocab, 1, 0, 1), 1, vocab, "float32", Int32Array.of(30_000));
      const spoiled: LogitsBatch[] = (["nan", "inf"] as const).flatMap((what) =>
        columns.map((column) => withSpecial(batch, 0, column, what)),
      );
      spoiled.push({ ...batch, data: new Float32Array(vocab).fill(specials.float32["-inf"]) });
      for (const one of spoiled) {
        const got = runBoth(device, one);
        for (const name of names) assertAllNaN(got[name], "float32", name);
      }
    });
  },
);

forEachDevice("a row gives the same bits alone, among others, and on any number of threads", (device) => {
  withThreads((use) => {
    for (const dtype of floatDTypes) {
      for (const options of [{}, { logitSoftcap: 30 }]) {
        const batch = normalBatch(5, 60_001, dtype, { sigma: 6 });
        const upstream = upstreamOf(5);
        use(1);
        const expected = runBoth(device, batch, options, upstream);
        for (const count of [1, 2, 3, 8]) {
          use(count);
          const what = `${dtype}, ${count} threads`;
          assertSameOutputs(runBoth(device, batch, options, upstream), expected, what);
          for (let i = 0; i < 5; i++) {
            const one = rowAlone(batch, i);
            const its = {
              gradLogprobs: upstream.gradLogprobs.subarray(i, i + 1),
              gradEntropy: upstream.gradEntropy.subarray(i, i + 1),
            };
            const got = runBoth(device, one, options, its);
            for (const name of names) {
              const bits = rowBits(expected[name], i, name === "gradLogits" ? batch.vocab : 1);
              assertSameBits(got[name], bits, `${name} of row ${i} alone, ${what}`);
            }
          }
        }
      }
    }
  });
});

function rowAlone(batch: LogitsBatch, i: number): LogitsBatch {
  const [from, to] = [i * batch.vocab, (i + 1) * batch.vocab];
  const [data, values] = [batch.data.subarray(from, to), batch.values.subarray(from, to)];
  return { ...batch, rows: 1, data, values, tokenIds: batch.tokenIds.subarray(i, i + 1) };
}

forEachDevice("in place or not, fused or not, few long rows give the same bits on any number of threads", (device) => {
  withThreads((use) => {
    for (const dtype of floatDTypes) {
      for (const entropyCoef of [0, 0.1]) {
        const batch = policyBatch(7, 50_257, dtype, 3);
        const options = { ...batch.options, entropyCoef, gradScale: 8 };
        use(1);
        const expected = fusedBits(device, batch, options);
        for (const count of [1, 2, 3, 16]) {
          use(count);
          for (const inPlace of [false, true]) {
            const got = fusedBits(device, batch, { ...options, inPlace });
            got.forEach((bits, k) => {
              assertSameBits(bits, expected[k]!, `output ${k}, ${dtype}, ${count} threads, in place: ${inPlace}`);
            });
          }
        }
      }
    }
  });
});

/** For ops in place: a tensor of the CPU shares the memory of the batch. */
function fresh(device: TestDevice, batch: LogitsBatch): Tensor {
  return logitsTensor(device, { ...batch, data: batch.data.slice() });
}

type Fused = Omit<Parameters<typeof fusedPolicyLoss>[0], "logits" | "tokenIds">;

function fusedBits(device: TestDevice, batch: LogitsBatch, options: Fused): TensorData[] {
  const { tokenIds } = batch;
  const result = fusedPolicyLoss({ logits: fresh(device, batch), tokenIds, ...options });
  const { logprobs, lse, gradLogits, loss } = result;
  return [logprobs, lse, gradLogits, loss].map((each) => device.read(each));
}

forEachDevice("rows without a gradient are zeros, however long and however many threads", (device) => {
  withThreads((use) => {
    for (const dtype of floatDTypes) {
      const batch = normalBatch(6, 50_257, dtype);
      const advantages = Float32Array.of(1, 0, 2, -1, 0, 3);
      const responseMask = Uint8Array.of(1, 1, 0, 1, 1, 1);
      // Row 5: far above its old log-prob, so that its ratio is clipped and the loss is flat.
      const { logprobs } = runBoth(device, batch);
      const oldLogprobs = Float32Array.from(logprobs as Float32Array, (value, i) => (i === 5 ? value - 1 : value));
      const zero = [1, 2, 4, 5];
      for (const count of [1, 3]) {
        use(count);
        const common = { tokenIds: batch.tokenIds, responseMask };
        const policy = { ...common, advantages, oldLogprobs, gradScale: 64 };
        for (const inPlace of [false, true]) {
          const logits = fresh(device, batch);
          const out = inPlace ? {} : { out: { gradLogits: nans(device, [6, 50_257], dtype) } };
          const fused = fusedPolicyLoss({ logits, ...policy, inPlace });
          assertZeroRows(device.read(fused.gradLogits), zero, `fused ${dtype}, in place: ${inPlace}`);
          const gradLogprobs = Float32Array.of(1, 0, 2, -1, 0, 0);
          const saved = { logprobs: fused.logprobs, lse: fused.lse };
          const again = fresh(device, batch);
          const back = tokenLogprobBackward({ logits: again, ...common, ...saved, gradLogprobs, inPlace, ...out });
          assertZeroRows(device.read(back.gradLogits), zero, `backward ${dtype}, in place: ${inPlace}`);
        }
      }
    }
  });
});

function assertZeroRows(data: ArrayLike<number> & { length: number }, zero: readonly number[], what: string): void {
  const width = data.length / 6;
  for (let i = 0; i < 6; i++) {
    let nonzero = 0;
    for (let j = i * width; j < (i + 1) * width; j++) nonzero += data[j] === 0 ? 0 : 1;
    assert.equal(nonzero === 0, zero.includes(i), `row ${i}, ${what}`);
  }
}
