/** tokenLogprob and tokenLogprobBackward against their definition. */
import assert from "node:assert/strict";
import { type TokenLogprobResult, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { logprobOf, type Scaling, softmaxRow } from "./reference/softmax.ts";
import { assertGradient } from "./support/gradient.ts";
import { type LogitsBatch, logitsTensor, nans, normalBatch, rowOf } from "./support/logits.ts";
import { record } from "./support/worst.ts";
import { assertClose, floatDTypes, forEachDevice, normal, rng, type TestDevice } from "./support.ts";
import { entropyTolerance, logprobTolerance, lseTolerance, type Tolerance } from "./tolerances.ts";

// One vector of each instruction set and its neighbours, one chunk of a loop and its neighbours.
const smallVocabs = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 257];
const mediumVocabs = [1000, 2047, 2049];
const rowCounts = [1, 2, 3, 17];
const sigmas = [0.1, 1, 10, 50];
const offsets = [0, 1e3, -1e3, 1e4, -1e4];
const temperatures = [0.3, 1, 2];
const softcaps = [undefined, 5, 30];

interface Cell extends Scaling {
  rows: number;
  vocab: number;
  sigma: number;
  offset: number;
}

/** Every combination for small vocabularies, then a rotation through the caps, then a few of real size. */
function* grid(): Generator<Cell> {
  let turn = 0;
  for (const temperature of temperatures) {
    for (const sigma of sigmas) {
      for (const offset of offsets) {
        for (const rows of rowCounts) {
          for (const vocab of smallVocabs) {
            const caps = rows < 17 ? softcaps : [softcaps[turn++ % 3]];
            for (const logitSoftcap of caps) yield { rows, vocab, sigma, offset, temperature, logitSoftcap };
          }
          for (const vocab of mediumVocabs) {
            const logitSoftcap = softcaps[turn++ % 3];
            if (rows < 17 || turn % 4 === 0) yield { rows, vocab, sigma, offset, temperature, logitSoftcap };
          }
        }
        const logitSoftcap = softcaps[turn++ % 3];
        yield { rows: 2, vocab: 32_000, sigma, offset, temperature, logitSoftcap };
      }
    }
  }
  yield { rows: 2, vocab: 151_936, sigma: 3, offset: 0, temperature: 1 };
}

for (const dtype of floatDTypes) {
  forEachDevice(`log-prob, lse, entropy and gradient are those of the definition for ${dtype}`, (device) => {
    let cells = 0;
    for (const cell of grid()) {
      const batch = normalBatch(cell.rows, cell.vocab, dtype, { ...cell, seed: ++cells });
      checkCell(device, batch, cell, cells);
    }
    assert.ok(cells > 9000, `${cells} cells`);
  });
}

const upstream = normal(rng(7));

function checkCell(device: TestDevice, batch: LogitsBatch, scaling: Cell, turn: number): void {
  const { rows, dtype, tokenIds } = batch;
  const { temperature, logitSoftcap, ...shape } = scaling;
  const options = { temperature: temperature ?? 1, ...(logitSoftcap === undefined ? {} : { logitSoftcap }) };
  const what = `${JSON.stringify({ dtype, ...shape, ...options })}`;
  const logits = logitsTensor(device, batch);
  const entropy = turn % 2 === 0;

  const out: TokenLogprobResult = { logprobs: nans(device, [rows]), lse: nans(device, [rows]) };
  if (entropy) out.entropy = nans(device, [rows]);
  const result = tokenLogprob({ logits, tokenIds, entropy, out, ...options });
  assert.equal(result, out, what);

  const expected = Array.from({ length: rows }, (_, i) => softmaxRow(rowOf(batch, i), scaling));
  const logprobs = device.floats(out.logprobs);
  const entropies = out.entropy && device.floats(out.entropy);
  const logprobReference = expected.map((row, i) => logprobOf(row, tokenIds[i]!));
  compare(`logprobs ${dtype}`, logprobs, logprobReference, logprobTolerance, what);
  assert.ok(
    logprobs.every((value) => value <= 0),
    `${what}: a log-prob above 0`,
  );
  const lse = expected.map((row) => row.lse);
  compare(`lse ${dtype}`, device.floats(out.lse), lse, lseTolerance(scaling), what);
  if (entropies) {
    const reference = expected.map((row) => row.entropy);
    compare(`entropy ${dtype}`, entropies, reference, entropyTolerance, what);
  }

  const gradLogprobs = Float32Array.from({ length: rows }, upstream);
  const gradEntropy = out.entropy && Float32Array.from({ length: rows }, upstream);
  // Gradients of 16 bits are scaled up in training, so that few of them vanish.
  const gradScale = turn % 3 === 0 ? 1024 : 1;
  const gradLogits = nans(device, [rows, batch.vocab], dtype);
  const back = tokenLogprobBackward({
    logits,
    tokenIds,
    logprobs: out.logprobs,
    lse: out.lse,
    gradLogprobs,
    ...(gradEntropy ? { entropy: out.entropy!, gradEntropy } : {}),
    gradScale,
    out: { gradLogits },
    ...options,
  });
  assert.equal(back.gradLogits, gradLogits, what);
  assertGradient(device.floats(gradLogits), batch, expected, scaling, {
    gradLogprobs,
    gradEntropy,
    gradScale,
    fromSaved: true,
    name: "gradLogits",
    what,
  });
}

function compare(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: Tolerance,
  what: string,
): void {
  const share = assertClose(actual, expected, tolerance, `${name} of ${what}`);
  let error = 0;
  for (let i = 0; i < actual.length; i++) error = Math.max(error, Math.abs(actual[i]! - expected[i]!));
  record(name, error, share);
}

forEachDevice("the gradient is exact at logits near 1e4, where a float32 lse is not", (device) => {
  const batch = normalBatch(8, 1000, "float32", { sigma: 1, offset: 1e4 });
  const logits = logitsTensor(device, batch);
  const { tokenIds, rows } = batch;
  const { logprobs, lse } = tokenLogprob({ logits, tokenIds });
  const gradLogprobs = new Float32Array(rows).fill(1);
  const { gradLogits } = tokenLogprobBackward({ logits, tokenIds, logprobs, lse, gradLogprobs });
  const gradient = device.floats(gradLogits);
  for (let i = 0; i < rows; i++) {
    const row = softmaxRow(rowOf(batch, i), {});
    const expected = Array.from(row.probabilities, (p, j) => (j === tokenIds[i] ? 1 - p : -p));
    assertClose(gradient.slice(i * 1000, (i + 1) * 1000), expected, { atol: 2e-7, rtol: 2e-6 }, `row ${i}`);
  }
});
