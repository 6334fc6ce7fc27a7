/**
 * The ops as good plain TypeScript would have them: typed arrays, outputs made outside, no allocation per call, one
 * exponential per element in the forward pass, and in the fused loss, too (it keeps them, at the price of a pass for the
 * maximum). Several accumulators do not help: `Math.exp` is what takes the time. Default options, packed rows.
 */
import type { TensorData } from "fapo-kernels";
import type { FloatDType } from "./case.ts";
import { narrow, wideRow } from "./half.ts";

export interface Rows {
  logits: TensorData;
  dtype: FloatDType;
  rows: number;
  vocab: number;
  tokenIds: Int32Array;
  /** Rows with 0 are skipped. */
  mask?: Uint8Array;
}

export interface RowOutputs {
  logprobs: Float32Array;
  lse: Float32Array;
  entropy: Float32Array;
}

export function rowOutputs(rows: number): RowOutputs {
  return { logprobs: new Float32Array(rows), lse: new Float32Array(rows), entropy: new Float32Array(rows) };
}

export function tokenLogprob(
  { logits, dtype, rows, vocab, tokenIds, mask }: Rows,
  withEntropy: boolean,
  out: RowOutputs,
  scratch: Float32Array,
): void {
  for (let row = 0; row < rows; row++) {
    if (mask?.[row] === 0) continue;
    const x = wideRow(logits, dtype, row, vocab, scratch);
    // One pass: the sum is scaled down in the rare case that a new maximum turns up.
    let max = Number.NEGATIVE_INFINITY;
    let sum = 0;
    let moment = 0;
    if (withEntropy) {
      for (let i = 0; i < vocab; i++) {
        const value = x[i]!;
        if (value > max) {
          const scale = Math.exp(max - value);
          sum *= scale;
          moment *= scale;
          max = value;
        }
        const e = Math.exp(value - max);
        sum += e;
        moment += value * e;
      }
    } else {
      for (let i = 0; i < vocab; i++) {
        const value = x[i]!;
        if (value > max) {
          sum *= Math.exp(max - value);
          max = value;
        }
        sum += Math.exp(value - max);
      }
    }
    const lse = max + Math.log(sum);
    out.lse[row] = lse;
    out.logprobs[row] = x[tokenIds[row]!]! - lse;
    if (withEntropy) out.entropy[row] = lse - moment / sum;
  }
}

export function tokenLogprobBackward(
  { logits, dtype, rows, vocab, tokenIds }: Rows,
  lse: Float32Array,
  gradLogprobs: Float32Array,
  gradScale: number,
  gradLogits: TensorData,
  scratch: Float32Array,
): void {
  for (let row = 0; row < rows; row++) {
    const x = wideRow(logits, dtype, row, vocab, scratch);
    const grad = gradLogprobs[row]! * gradScale;
    const reference = lse[row]!;
    for (let i = 0; i < vocab; i++) scratch[i] = -grad * Math.exp(x[i]! - reference);
    scratch[tokenIds[row]!]! += grad;
    narrow(scratch, dtype, gradLogits, row * vocab);
  }
}

export interface TokenTerms {
  oldLogprobs: Float32Array;
  /** Per response. */
  advantages: Float32Array;
  cuSeqlens: Int32Array;
}

export interface LossOutputs {
  loss: number;
  ratioMean: number;
  ratioMax: number;
  approxKl: number;
  clipFractionHigh: number;
  clipFractionLow: number;
  clipFractionDual: number;
}

export function lossOutputs(): LossOutputs {
  return {
    loss: 0,
    ratioMean: 0,
    ratioMax: 0,
    approxKl: 0,
    clipFractionHigh: 0,
    clipFractionLow: 0,
    clipFractionDual: 0,
  };
}

/** Adds one token to the sums and returns dL/dlogprob, not yet divided by the number of tokens. */
function tokenLoss(logprob: number, old: number, advantage: number, out: LossOutputs): number {
  const difference = logprob - old;
  const inside = difference >= -20 && difference <= 20;
  const logRatio = inside ? difference : Math.min(Math.max(difference, -20), 20);
  const ratio = Math.exp(logRatio);
  let loss = -advantage * ratio;
  let grad = inside ? loss : 0;
  const clipped = -advantage * Math.min(Math.max(ratio, 0.8), 1.28);
  if (clipped > loss) {
    loss = clipped;
    grad = 0;
    if (advantage > 0) out.clipFractionHigh++;
    else out.clipFractionLow++;
  }
  if (advantage < 0 && loss > -advantage * 10) {
    loss = -advantage * 10;
    grad = 0;
    out.clipFractionDual++;
  }
  out.loss += loss;
  out.ratioMean += ratio;
  if (ratio > out.ratioMax) out.ratioMax = ratio;
  out.approxKl += Math.expm1(logRatio) - logRatio;
  return grad;
}

/** Sums to means. */
function finish(out: LossOutputs, tokens: number): void {
  out.loss /= tokens;
  out.ratioMean /= tokens;
  out.approxKl /= tokens;
  out.clipFractionHigh /= tokens;
  out.clipFractionLow /= tokens;
  out.clipFractionDual /= tokens;
}

export function policyLoss(
  logprobs: Float32Array,
  { oldLogprobs, advantages, cuSeqlens }: TokenTerms,
  gradLogprobs: Float32Array,
  out: LossOutputs,
): void {
  Object.assign(out, lossOutputs());
  const tokens = logprobs.length;
  for (let response = 0; response < advantages.length; response++) {
    const advantage = advantages[response]!;
    const end = cuSeqlens[response + 1]!;
    for (let i = cuSeqlens[response]!; i < end; i++) {
      gradLogprobs[i] = tokenLoss(logprobs[i]!, oldLogprobs[i]!, advantage, out) / tokens;
    }
  }
  finish(out, tokens);
}

/** exp(x - max) into `out`, and their sum. */
function exps(x: Float32Array, max: number, out: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) {
    const e = Math.exp(x[i]! - max);
    out[i] = e;
    sum += e;
  }
  return sum;
}

/** The same, and the sum of (x - max) exp(x - max). */
function expsWithMoment(x: Float32Array, max: number, out: Float32Array): [sum: number, moment: number] {
  let sum = 0;
  let moment = 0;
  for (let i = 0; i < x.length; i++) {
    const shifted = x[i]! - max;
    const e = Math.exp(shifted);
    out[i] = e;
    sum += e;
    moment += shifted * e;
  }
  return [sum, moment];
}

/** `globalTokens` divides the gradient and the loss: these rows may be a part of a batch. `scratch` is of two rows. */
export function fusedPolicyLoss(
  { logits, dtype, rows, vocab, tokenIds, mask }: Rows,
  { oldLogprobs, advantages, cuSeqlens }: TokenTerms,
  globalTokens: number,
  gradScale: number,
  entropyCoef: number,
  gradLogits: TensorData,
  logprobs: Float32Array,
  out: LossOutputs,
  scratch: Float32Array,
): void {
  Object.assign(out, lossOutputs());
  const e = scratch.subarray(0, vocab);
  const wide = scratch.subarray(vocab);
  let response = 0;
  for (let row = 0; row < rows; row++) {
    while (row >= cuSeqlens[response + 1]!) response++;
    if (mask?.[row] === 0) {
      gradLogits.fill(0, row * vocab, (row + 1) * vocab);
      continue;
    }
    const x = wideRow(logits, dtype, row, vocab, wide);
    const token = tokenIds[row]!;
    const chosen = x[token]!;
    let max = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < vocab; i++) if (x[i]! > max) max = x[i]!;
    const [sum, moment] = entropyCoef ? expsWithMoment(x, max, e) : [exps(x, max, e), 0];
    const logSum = Math.log(sum);
    const logprob = chosen - max - logSum;
    logprobs[row] = logprob;
    const grad = (tokenLoss(logprob, oldLogprobs[row]!, advantages[response]!, out) * gradScale) / globalTokens;
    if (grad === 0 && entropyCoef === 0) {
      gradLogits.fill(0, row * vocab, (row + 1) * vocab);
      continue;
    }
    const scale = -grad / sum;
    if (entropyCoef) {
      // d(-entropy)/dz = p (ln p + entropy), and z = max + ln(exp), still in e.
      const entropy = logSum - moment / sum;
      const bonus = (entropyCoef * gradScale) / globalTokens / sum;
      out.loss -= entropyCoef * entropy;
      for (let i = 0; i < vocab; i++) e[i]! *= scale + bonus * (x[i]! - max - logSum + entropy);
    } else {
      for (let i = 0; i < vocab; i++) e[i]! *= scale;
    }
    e[token]! += grad;
    narrow(e, dtype, gradLogits, row * vocab);
  }
  finish(out, globalTokens);
}

export function fapoPenalty(
  correct: Uint8Array,
  flawed: Int8Array,
  rewards: Float32Array,
  fapoRewards: Float32Array,
  valid: Uint8Array,
): void {
  for (let i = 0; i < correct.length; i++) {
    const reward = correct[i] ? (flawed[i] === 1 ? 0 : 1) : -1;
    rewards[i] = reward;
    fapoRewards[i] = reward;
    valid[i] = 1;
  }
}

export function groupAdvantage(
  rewards: Float32Array,
  groupSize: number,
  advantages: Float32Array,
  groupMean: Float32Array,
  groupStd: Float32Array,
  zeroVariance: Uint8Array,
): void {
  for (let group = 0; group < groupMean.length; group++) {
    const begin = group * groupSize;
    const end = begin + groupSize;
    const first = rewards[begin]!;
    let sum = 0;
    let constant = true;
    for (let i = begin; i < end; i++) {
      sum += rewards[i]!;
      if (rewards[i] !== first) constant = false;
    }
    const mean = sum / groupSize;
    let squares = 0;
    for (let i = begin; i < end; i++) squares += (rewards[i]! - mean) ** 2;
    const std = constant ? 0 : Math.sqrt(squares / (groupSize - 1));
    const scale = constant ? 0 : 1 / (std + 1e-6);
    for (let i = begin; i < end; i++) advantages[i] = (rewards[i]! - mean) * scale;
    groupMean[group] = mean;
    groupStd[group] = std;
    zeroVariance[group] = constant ? 1 : 0;
  }
}
