/** Comparing the gradient of the logits with its definition. */
import assert from "node:assert/strict";
import { roundTo, spacing } from "../reference/halves.ts";
import { logprobOf, type Scaling, type SoftmaxRow } from "../reference/softmax.ts";
import { gradientBound } from "../tolerances.ts";
import { type LogitsBatch, rowOf } from "./logits.ts";
import { record } from "./worst.ts";

export interface Upstream {
  gradLogprobs: ArrayLike<number>;
  gradEntropy?: ArrayLike<number> | undefined;
  gradScale?: number | undefined;
  /** Rows that are ignored: their gradient is exactly 0. */
  ignored?: readonly boolean[];
  /** Whether the op reads a logprob that was rounded to float32. */
  fromSaved: boolean;
  /** For the report. */
  name: string;
  what: string;
}

/**
 * float32: within `gradientBound`. 16 bits: the nearest number of the dtype to some result within it, which is what
 * rounding once allows.
 */
export function assertGradient(
  gradient: ArrayLike<number>,
  batch: LogitsBatch,
  softmax: readonly SoftmaxRow[],
  { temperature = 1, logitSoftcap }: Scaling,
  { gradLogprobs, gradEntropy, gradScale = 1, ignored, fromSaved, name, what }: Upstream,
): void {
  const { rows, vocab, dtype, tokenIds } = batch;
  assert.equal(gradient.length, rows * vocab, what);
  let [worstError, worstShare] = [0, 0];
  for (let i = 0; i < rows; i++) {
    if (ignored?.[i]) {
      for (let j = 0; j < vocab; j++) assert.ok(gradient[i * vocab + j] === 0, `${what}: ignored row ${i} is not 0`);
      continue;
    }
    const { probabilities, z, max, logSum, entropy } = softmax[i]!;
    const x = rowOf(batch, i);
    const id = tokenIds[i]!;
    const gradLogprob = (gradLogprobs[i]! * gradScale) / temperature;
    const gradOfEntropy = ((gradEntropy?.[i] ?? 0) * gradScale) / temperature;
    const savedLogprob = fromSaved ? logprobOf(softmax[i]!, id) : 0;
    const largestCapped = (logitSoftcap ?? 0) / temperature;
    const row = { dtype, gradLogprob, gradEntropy: gradOfEntropy, savedLogprob, largestCapped, entropy };
    for (let j = 0; j < vocab; j++) {
      const p = probabilities[j]!;
      const lnP = z[j]! - max - logSum;
      let expected = gradLogprob * ((j === id ? 1 : 0) - p);
      if (p !== 0) expected -= gradOfEntropy * p * (lnP + entropy);
      if (logitSoftcap !== undefined) expected *= 1 - Math.tanh(x[j]! / logitSoftcap) ** 2;
      const got = gradient[i * vocab + j]!;
      const error = Math.abs(got - expected);
      const bound = gradientBound(row, p, lnP);
      if (!(error <= bound)) {
        // Only rounding to 16 bits may go beyond the bound, and only to a neighbour of what is within.
        const [low, high] = [roundTo(expected - bound, dtype), roundTo(expected + bound, dtype)];
        assert.ok(
          dtype !== "float32" && low <= got && got <= high,
          `${what}: gradient [${i}, ${j}] is ${got}, expected ${expected} (${low}..${high}), bound ${bound}`,
        );
      }
      if (error === Number.POSITIVE_INFINITY) continue;
      worstError = Math.max(worstError, error);
      if (error <= worstShare * bound) continue;
      const rounding = dtype === "float32" ? 0 : spacing(expected, dtype) / 2;
      worstShare = Math.max(worstShare, error / (bound + rounding));
    }
  }
  record(`${name} ${dtype}`, worstError, worstShare);
}
