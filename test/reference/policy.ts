/** The definition of policyLoss, in float64, with no cleverness. */
import type { KlEstimator, LossAggMode } from "fapo-kernels";

/** The options of policyLoss as plain numbers. */
export interface PolicyCase {
  logprobs: ArrayLike<number>;
  oldLogprobs?: ArrayLike<number>;
  advantages: ArrayLike<number>;
  cuSeqlens?: readonly number[];
  responseMask?: ArrayLike<number>;
  refLogprobs?: ArrayLike<number>;
  importanceWeights?: ArrayLike<number>;
  clipRatioLow?: number;
  clipRatioHigh?: number;
  clipRatioC?: number;
  logRatioClamp?: number;
  klEstimator?: KlEstimator;
  klCoef?: number;
  lossAggMode?: LossAggMode;
  globalTokens?: number;
  globalSequences?: number;
  horizon?: number;
  gradScale?: number;
}

export const metricNames = [
  "clipFractionHigh",
  "clipFractionLow",
  "clipFractionDual",
  "ratioMean",
  "ratioMax",
  "approxKl",
  "kl",
  "entropy",
  "tokens",
  "sequences",
] as const;
export type MetricName = (typeof metricNames)[number];

export interface PolicyReference {
  loss: number;
  gradLogprobs: number[];
  metrics: Record<MetricName, number>;
}

/** One token: its loss, the derivative with respect to its logprob, and what the metrics count. */
export interface TokenTerm {
  loss: number;
  gradient: number;
  ratio: number;
  logRatio: number;
  clipsHigh: boolean;
  clipsLow: boolean;
  clipsDual: boolean;
  kl: number;
}

export function policyReference(batch: PolicyCase): PolicyReference {
  const tokens = batch.logprobs.length;
  const { cuSeqlens, responseMask, lossAggMode = "token-mean", gradScale = 1 } = batch;
  const sequences = cuSeqlens ? cuSeqlens.length - 1 : 0;
  const sequenceOf = (token: number): number =>
    Array.from({ length: sequences }, (_, s) => s).find((s) => cuSeqlens![s]! <= token && token < cuSeqlens![s + 1]!)!;
  const counts = (token: number): boolean => responseMask?.[token] !== 0;
  const counted = Array.from({ length: tokens }, (_, token) => token).filter(counts);

  const lengths = Array.from(
    { length: sequences },
    (_, s) => counted.filter((token) => sequenceOf(token) === s).length,
  );
  const countedSequences = lengths.filter((length) => length > 0).length;
  const [nTokens, nSequences] = [batch.globalTokens ?? counted.length, batch.globalSequences ?? countedSequences];
  const weightOf = (token: number): number => {
    switch (lossAggMode) {
      case "token-mean":
        return 1 / nTokens;
      case "token-sum":
        return 1;
      case "seq-mean-token-sum":
        return 1 / nSequences;
      case "seq-mean-token-mean":
        return 1 / (nSequences * lengths[sequenceOf(token)]!);
      case "seq-mean-token-sum-norm":
        return 1 / (nSequences * batch.horizon!);
    }
  };

  const result: PolicyReference = {
    loss: 0,
    gradLogprobs: new Array<number>(tokens).fill(0),
    metrics: Object.fromEntries(metricNames.map((name) => [name, 0])) as Record<MetricName, number>,
  };
  const { metrics } = result;
  for (const token of counted) {
    const perToken = (values: ArrayLike<number>): number =>
      values[cuSeqlens && values.length === sequences ? sequenceOf(token) : token]!;
    const term = tokenTerm(batch, {
      logprob: batch.logprobs[token]!,
      oldLogprob: batch.oldLogprobs?.[token],
      refLogprob: batch.refLogprobs?.[token] ?? 0,
      advantage: perToken(batch.advantages),
      importanceWeight: batch.importanceWeights ? perToken(batch.importanceWeights) : 1,
    });
    result.loss += term.loss * weightOf(token);
    result.gradLogprobs[token] = term.gradient * weightOf(token) * gradScale;
    metrics.clipFractionHigh += Number(term.clipsHigh) / counted.length;
    metrics.clipFractionLow += Number(term.clipsLow) / counted.length;
    metrics.clipFractionDual += Number(term.clipsDual) / counted.length;
    metrics.ratioMean += term.ratio / counted.length;
    metrics.ratioMax = Math.max(metrics.ratioMax, term.ratio);
    metrics.approxKl += (Math.expm1(term.logRatio) - term.logRatio) / counted.length;
    metrics.kl += term.kl / counted.length;
  }
  metrics.tokens = counted.length;
  metrics.sequences = countedSequences;
  return result;
}

export interface TokenInputs {
  logprob: number;
  /** Undefined: the current one. */
  oldLogprob: number | undefined;
  refLogprob: number;
  advantage: number;
  importanceWeight: number;
}

export function tokenTerm(
  {
    clipRatioLow = 0.2,
    clipRatioHigh = 0.28,
    clipRatioC = 10,
    logRatioClamp = 20,
    klEstimator = "none",
    klCoef = 0,
  }: Partial<PolicyCase>,
  { logprob, oldLogprob, refLogprob, advantage, importanceWeight }: TokenInputs,
): TokenTerm {
  const difference = oldLogprob !== undefined ? logprob - oldLogprob : Number.isNaN(logprob) ? Number.NaN : 0;
  const logRatio = clamp(difference, logRatioClamp);
  const ratio = Math.exp(logRatio);
  const plain = -advantage * ratio;
  const clipped = -advantage * Math.min(Math.max(ratio, 1 - clipRatioLow), 1 + clipRatioHigh);
  let loss = Math.max(plain, clipped);
  // Where both are equal the ratio is inside the interval or on its bound: the gradient passes.
  let gradient = plain >= clipped && Math.abs(difference) <= logRatioClamp ? plain : 0;
  const clipsDual = advantage < 0 && loss > -advantage * clipRatioC;
  if (clipsDual) {
    loss = -advantage * clipRatioC;
    gradient = 0;
  }
  const kl = klTerm(klEstimator, refLogprob - logprob);
  return {
    loss: loss * importanceWeight + klCoef * kl.value,
    gradient: gradient * importanceWeight + klCoef * kl.gradient,
    ratio,
    logRatio,
    clipsHigh: clipped > plain && ratio > 1 + clipRatioHigh,
    clipsLow: clipped > plain && ratio < 1 - clipRatioLow,
    clipsDual,
    kl: kl.value,
  };
}

/** The estimator at `ref - logprob`, and its derivative with respect to the logprob. */
export function klTerm(estimator: KlEstimator, difference: number): { value: number; gradient: number } {
  const q = clamp(difference, 20);
  const inside = Math.abs(difference) <= 20;
  switch (estimator) {
    case "none":
      return { value: 0, gradient: 0 };
    case "k1":
      return { value: -q, gradient: inside ? 1 : 0 };
    case "k2":
      return { value: (q * q) / 2, gradient: inside ? -q : 0 };
    case "k3": {
      const value = Math.expm1(q) - q;
      return { value: clamp(value, 10), gradient: inside && value <= 10 ? -Math.expm1(q) : 0 };
    }
  }
}

function clamp(value: number, bound: number): number {
  return Math.max(Math.min(value, bound), -bound);
}
