/**
 * What the ops of the addon take: the argument structs of native/ops, and one call per op. Arguments are validated by
 * then; the addon re-checks only what protects memory.
 */
import type { DeviceMemory } from "./cuda.ts";
import type { TensorData } from "./tensor.ts";

/** What an op reads or writes: an array of the host, or memory of a GPU. */
export type Memory = TensorData | DeviceMemory;

/** Rows of a floating-point dtype. */
export interface NativeMatrix {
  data: Memory;
  rowStride: number;
  dtype: number;
}

/** Nothing, or memory of the dtype that the op's argument struct declares. */
type Maybe<T> = T | undefined;

/** Rows of logits with a token each; see `TokenLogits` in native/ops/token_logprob.h. */
export interface NativeTokenLogits {
  device: number;
  logits: NativeMatrix;
  tokenIds: Memory;
  responseMask: Maybe<Memory>;
  rows: number;
  vocab: number;
  temperature: number;
  logitSoftcap: number;
  ignoreIndex: number;
}

/** See `PolicyBatch` in native/ops/policy_loss.h. */
export interface NativePolicyBatch {
  oldLogprobs: Maybe<Memory>;
  advantages: Memory;
  refLogprobs: Maybe<Memory>;
  importanceWeights: Maybe<Memory>;
  cuSeqlens: Maybe<Memory>;
  advantagesPerSequence: boolean;
  importanceWeightsPerSequence: boolean;
  clipRatioLow: number;
  clipRatioHigh: number;
  clipRatioC: number;
  logRatioClamp: number;
  klEstimator: number;
  klCoef: number;
  lossAggMode: number;
  globalTokens: number;
  globalSequences: number;
  horizon: number;
  gradScale: number;
  entropyCoef: number;
  loss: Maybe<Memory>;
  metrics: Maybe<Memory>;
  counts: Maybe<Memory>;
}

export interface NativeFapoPenalty {
  device: number;
  correct: Memory;
  flawed: Memory;
  responseLengths: Maybe<Memory>;
  sequences: number;
  rewardCorrect: number;
  rewardWrong: number;
  flawedPenalty: number;
  unknownVerdict: number;
  overlongMaxLength: number;
  overlongBuffer: number;
  overlongFactor: number;
  rewards: Memory;
  fapoRewards: Memory;
  valid: Memory;
}

export interface NativeGrouping {
  sequences: number;
  groups: number;
  groupSize: number;
  groupOffsets: Maybe<Memory>;
  groupIds: Maybe<Memory>;
}

/** See `GroupAdvantage` in native/ops/group_advantage.h. In `fapoAdvantage` the inputs are outputs of the penalty. */
export interface NativeGroupAdvantage {
  device: number;
  grouping: NativeGrouping;
  rewards: Maybe<Memory>;
  valid: Maybe<Memory>;
  varianceRewards: Maybe<Memory>;
  baseline: number;
  scale: number;
  ddof: number;
  epsilon: number;
  singleton: number;
  advantages: Memory;
  groupMean: Memory;
  groupStd: Memory;
  zeroVariance: Memory;
}

export interface NativeCast {
  device: number;
  source: NativeMatrix;
  rows: number;
  columns: number;
  result: NativeMatrix;
}

export interface NativeTokenLogprob {
  tokens: NativeTokenLogits;
  logprobs: Memory;
  lse: Memory;
  entropy: Maybe<Memory>;
}

export interface NativeTokenLogprobBackward {
  tokens: NativeTokenLogits;
  logprobs: Memory;
  lse: Memory;
  entropy: Maybe<Memory>;
  gradLogprobs: Memory;
  gradEntropy: Maybe<Memory>;
  gradScale: number;
  inPlace: boolean;
  gradLogits: NativeMatrix;
}

export interface NativeFapoAdvantage {
  penalty: NativeFapoPenalty;
  advantage: NativeGroupAdvantage;
}

export interface NativePolicyLoss {
  device: number;
  tokens: number;
  logprobs: Memory;
  responseMask: Maybe<Memory>;
  batch: NativePolicyBatch;
  gradLogprobs: Memory;
}

export interface NativeFusedPolicyLoss {
  tokens: NativeTokenLogits;
  batch: NativePolicyBatch;
  inPlace: boolean;
  logprobs: Memory;
  lse: Memory;
  entropy: Maybe<Memory>;
  gradLogits: NativeMatrix;
}

/** For benchmarks. kind: 0 read, 1 read and write in place, 2 copy. */
export interface NativeMemoryFloor {
  device: number;
  kind: number;
  data: Memory;
  destination: Maybe<Memory>;
  result: Memory;
}

/** The argument struct of each op. */
interface ArgumentsOf {
  memoryFloor: NativeMemoryFloor;
  cast: NativeCast;
  tokenLogprob: NativeTokenLogprob;
  tokenLogprobBackward: NativeTokenLogprobBackward;
  fapoPenalty: NativeFapoPenalty;
  groupAdvantage: NativeGroupAdvantage;
  fapoAdvantage: NativeFapoAdvantage;
  policyLoss: NativePolicyLoss;
  fusedPolicyLoss: NativeFusedPolicyLoss;
}

/** An op of the addon takes the values of its argument struct one after the other, in the order of `fields` there. */
export type NativeOps = { readonly [Name in keyof ArgumentsOf]: (...values: unknown[]) => void };
export type Call<Args> = (native: NativeOps, args: Args) => void;

/**
 * Passes an argument struct to the addon. Every value by its name: names that are known when the code is compiled cost
 * nothing, while to go through the names of an object at run time takes a fifth of a small call. The order is checked
 * when the addon is loaded.
 */
export const calls: { readonly [Name in keyof ArgumentsOf]: Call<ArgumentsOf[Name]> } = {
  memoryFloor(native, args) {
    native.memoryFloor(args.device, args.kind, args.data, args.destination, args.result);
  },
  cast(native, args) {
    const { source, result } = args;
    native.cast(
      args.device,
      source.data,
      source.rowStride,
      source.dtype,
      args.rows,
      args.columns,
      result.data,
      result.rowStride,
      result.dtype,
    );
  },
  tokenLogprob(native, args) {
    const { tokens } = args;
    native.tokenLogprob(
      tokens.device,
      tokens.logits.data,
      tokens.logits.rowStride,
      tokens.logits.dtype,
      tokens.tokenIds,
      tokens.responseMask,
      tokens.rows,
      tokens.vocab,
      tokens.temperature,
      tokens.logitSoftcap,
      tokens.ignoreIndex,
      args.logprobs,
      args.lse,
      args.entropy,
    );
  },
  tokenLogprobBackward(native, args) {
    const { tokens, gradLogits } = args;
    native.tokenLogprobBackward(
      tokens.device,
      tokens.logits.data,
      tokens.logits.rowStride,
      tokens.logits.dtype,
      tokens.tokenIds,
      tokens.responseMask,
      tokens.rows,
      tokens.vocab,
      tokens.temperature,
      tokens.logitSoftcap,
      tokens.ignoreIndex,
      args.logprobs,
      args.lse,
      args.entropy,
      args.gradLogprobs,
      args.gradEntropy,
      args.gradScale,
      args.inPlace,
      gradLogits.data,
      gradLogits.rowStride,
      gradLogits.dtype,
    );
  },
  fapoPenalty(native, args) {
    native.fapoPenalty(
      args.device,
      args.correct,
      args.flawed,
      args.responseLengths,
      args.sequences,
      args.rewardCorrect,
      args.rewardWrong,
      args.flawedPenalty,
      args.unknownVerdict,
      args.overlongMaxLength,
      args.overlongBuffer,
      args.overlongFactor,
      args.rewards,
      args.fapoRewards,
      args.valid,
    );
  },
  groupAdvantage(native, args) {
    const { grouping } = args;
    native.groupAdvantage(
      args.device,
      grouping.sequences,
      grouping.groups,
      grouping.groupSize,
      grouping.groupOffsets,
      grouping.groupIds,
      args.rewards,
      args.valid,
      args.varianceRewards,
      args.baseline,
      args.scale,
      args.ddof,
      args.epsilon,
      args.singleton,
      args.advantages,
      args.groupMean,
      args.groupStd,
      args.zeroVariance,
    );
  },
  fapoAdvantage(native, args) {
    const { penalty, advantage } = args;
    native.fapoAdvantage(
      penalty.device,
      penalty.correct,
      penalty.flawed,
      penalty.responseLengths,
      penalty.sequences,
      penalty.rewardCorrect,
      penalty.rewardWrong,
      penalty.flawedPenalty,
      penalty.unknownVerdict,
      penalty.overlongMaxLength,
      penalty.overlongBuffer,
      penalty.overlongFactor,
      penalty.rewards,
      penalty.fapoRewards,
      penalty.valid,
      advantage.device,
      advantage.grouping.sequences,
      advantage.grouping.groups,
      advantage.grouping.groupSize,
      advantage.grouping.groupOffsets,
      advantage.grouping.groupIds,
      advantage.rewards,
      advantage.valid,
      advantage.varianceRewards,
      advantage.baseline,
      advantage.scale,
      advantage.ddof,
      advantage.epsilon,
      advantage.singleton,
      advantage.advantages,
      advantage.groupMean,
      advantage.groupStd,
      advantage.zeroVariance,
    );
  },
  policyLoss(native, args) {
    const { batch } = args;
    native.policyLoss(
      args.device,
      args.tokens,
      args.logprobs,
      args.responseMask,
      batch.oldLogprobs,
      batch.advantages,
      batch.refLogprobs,
      batch.importanceWeights,
      batch.cuSeqlens,
      batch.advantagesPerSequence,
      batch.importanceWeightsPerSequence,
      batch.clipRatioLow,
      batch.clipRatioHigh,
      batch.clipRatioC,
      batch.logRatioClamp,
      batch.klEstimator,
      batch.klCoef,
      batch.lossAggMode,
      batch.globalTokens,
      batch.globalSequences,
      batch.horizon,
      batch.gradScale,
      batch.entropyCoef,
      batch.loss,
      batch.metrics,
      batch.counts,
      args.gradLogprobs,
    );
  },
  fusedPolicyLoss(native, args) {
    const { tokens, batch, gradLogits } = args;
    native.fusedPolicyLoss(
      tokens.device,
      tokens.logits.data,
      tokens.logits.rowStride,
      tokens.logits.dtype,
      tokens.tokenIds,
      tokens.responseMask,
      tokens.rows,
      tokens.vocab,
      tokens.temperature,
      tokens.logitSoftcap,
      tokens.ignoreIndex,
      batch.oldLogprobs,
      batch.advantages,
      batch.refLogprobs,
      batch.importanceWeights,
      batch.cuSeqlens,
      batch.advantagesPerSequence,
      batch.importanceWeightsPerSequence,
      batch.clipRatioLow,
      batch.clipRatioHigh,
      batch.clipRatioC,
      batch.logRatioClamp,
      batch.klEstimator,
      batch.klCoef,
      batch.lossAggMode,
      batch.globalTokens,
      batch.globalSequences,
      batch.horizon,
      batch.gradScale,
      batch.entropyCoef,
      batch.loss,
      batch.metrics,
      batch.counts,
      args.inPlace,
      args.logprobs,
      args.lse,
      args.entropy,
      gradLogits.data,
      gradLogits.rowStride,
      gradLogits.dtype,
    );
  },
};
