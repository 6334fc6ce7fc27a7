/**
 * Every tolerance of the tests of the ops over a vocabulary, each with its reason: |got - expected| <= atol + rtol
 * |expected|, where `expected` is the float64 definition on the numbers that the op was given.
 */

import type { Scaling } from "./reference/softmax.ts";

export interface Tolerance {
  atol: number;
  rtol: number;
}

/** The contract, whatever the dtype, vocabulary, offset, temperature or cap: 16-bit inputs are exact in float32. */
export const logprobTolerance: Tolerance = { atol: 1e-6, rtol: 1e-6 };

/**
 * As the log-prob; lse is one rounding to float32 away from exact, which rtol covers at 3e4. Under a cap it is the sum
 * of a capped logit and of the rest measured from it, which may cancel: 6e-8 of cap / T.
 */
export function lseTolerance({ temperature = 1, logitSoftcap = 0 }: Scaling): Tolerance {
  return { atol: 1e-6 + (6e-8 * logitSoftcap) / temperature, rtol: 1e-6 };
}

/**
 * Of random rows, and of rows of many equal logits: a few roundings of numbers that reach 10 where the target lies that
 * many bits below the top. Of 42,000 random rows per instruction set the worst were off by 0.7e-6 to 1.7e-6 (1 + entropy), the
 * root of the mean square is 3e-8 to 7e-8; of 20,000 rows of a few tops and such targets, 1.3e-6 to 1.9e-6 and 4e-7.
 */
export const entropyTolerance: Tolerance = { atol: 2e-6, rtol: 1e-6 };

/**
 * The entropy is a difference of two numbers as large as the exponents, and those reach 10 bits above the target: rows made
 * so that the up to 12 additions in float32 round one way, too, are off by 10 * 12 * 6e-8 at the most; 6.2e-6 was seen.
 */
export const madeUpEntropyTolerance: Tolerance = { atol: 7.2e-6, rtol: 1e-6 };

/** Sums in float64, rounded once to float32: half an ulp is 6e-8. */
export const lossTolerance: Tolerance = { atol: 1e-7, rtol: 1e-6 };

/**
 * The loss of micro-batches, added up, against that of the whole: the contract says 1e-6, of the sum of magnitudes
 * where parts cancel.
 */
export const microBatchTolerance: Tolerance = { atol: 1e-6, rtol: 1e-6 };

/**
 * float32 gradients, as a bound for an entry of probability p = exp(lnP): 1e-7 of what multiplies p is the rounding of
 * p and of 1 - p to float32 (6e-8 each); the rest is what a relative error of p does to the entry. That is 2e-6 of exp
 * on a rounded argument (3.6e-6 more for bfloat16: a shorter polynomial will do, whose error is a thousandth of the
 * rounding), 6e-8 |logprob| where p comes from a logprob that was saved as a float32, and 6e-8 cap / T where z is a capped
 * float32: errors of the exponent. A saved entropy is such a number, too, and is covered by its share of `magnitude`.
 *
 * @param gradLogprob the gradient of the row's log-prob, with gradScale / temperature
 * @param gradEntropy that of its entropy
 * @param savedLogprob the saved logprob; 0 for the fused op, which saves none
 * @param largestCapped cap / T; 0 without a cap
 */
export function gradientBound(
  { dtype, gradLogprob, gradEntropy, savedLogprob, largestCapped, entropy }: GradientOfRow,
  p: number,
  lnP: number,
): number {
  const magnitude = Math.abs(gradLogprob) + Math.abs(gradEntropy) * (1 + entropy);
  const sensitivity = p === 0 ? 0 : p * (Math.abs(gradLogprob) + Math.abs(gradEntropy) * (1 + Math.abs(lnP + entropy)));
  const ofExp = dtype === "bfloat16" ? 5.6e-6 : 2e-6;
  return 1e-7 * Math.max(1, magnitude) + (ofExp + 6e-8 * (Math.abs(savedLogprob) + largestCapped)) * sensitivity;
}

export interface GradientOfRow {
  /** Of the logits; float32 by default. */
  dtype?: string;
  gradLogprob: number;
  gradEntropy: number;
  savedLogprob: number;
  largestCapped: number;
  entropy: number;
}

/** Central differences of the float64 definition against its own derivative: h = 1e-5, noise 2e-10. */
export const differenceTolerance: Tolerance = { atol: 1e-8, rtol: 1e-6 };

/** All exp(logprob) of a row add up to 1: each carries an error of 1e-6 (1 + |logprob|), weighted by itself. */
export const totalProbabilityTolerance: Tolerance = { atol: 2e-6, rtol: 0 };
