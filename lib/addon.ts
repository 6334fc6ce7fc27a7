/**
 * Finds and loads the native addon, on first use, and types what native/addon.cpp exports. Arguments are validated by
 * then; the addon re-checks only what protects memory.
 */
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { FapoError, type FapoErrorCode } from "./check.ts";
import { type DType, memory, type Tensor, type TensorData } from "./tensor.ts";

/** Rows of a floating-point dtype. */
export interface NativeMatrix {
  data: TensorData;
  rowStride: number;
  dtype: number;
}

/** Nothing, or memory of the dtype that the op's argument struct declares. */
type Maybe<T> = T | undefined;

/** Rows of logits with a token each; see `TokenLogits` in native/ops/token_logprob.h. */
export interface NativeTokenLogits {
  device: number;
  logits: NativeMatrix;
  tokenIds: TensorData;
  responseMask: Maybe<TensorData>;
  rows: number;
  vocab: number;
  temperature: number;
  logitSoftcap: number;
  ignoreIndex: number;
}

/** See `PolicyBatch` in native/ops/policy_loss.h. */
export interface NativePolicyBatch {
  oldLogprobs: Maybe<TensorData>;
  advantages: TensorData;
  refLogprobs: Maybe<TensorData>;
  importanceWeights: Maybe<TensorData>;
  cuSeqlens: Maybe<TensorData>;
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
  loss: Maybe<TensorData>;
  metrics: TensorData;
  counts: TensorData;
}

export interface NativeFapoPenalty {
  device: number;
  correct: TensorData;
  flawed: TensorData;
  responseLengths: Maybe<TensorData>;
  sequences: number;
  rewardCorrect: number;
  rewardWrong: number;
  flawedPenalty: number;
  unknownVerdict: number;
  overlongMaxLength: number;
  overlongBuffer: number;
  overlongFactor: number;
  rewards: TensorData;
  fapoRewards: TensorData;
  valid: TensorData;
}

export interface NativeGrouping {
  sequences: number;
  groups: number;
  groupSize: number;
  groupOffsets: Maybe<TensorData>;
  groupIds: Maybe<TensorData>;
}

/** See `GroupAdvantage` in native/ops/group_advantage.h. In `fapoAdvantage` the inputs are outputs of the penalty. */
export interface NativeGroupAdvantage {
  device: number;
  grouping: NativeGrouping;
  rewards: Maybe<TensorData>;
  valid: Maybe<TensorData>;
  varianceRewards: Maybe<TensorData>;
  baseline: number;
  scale: number;
  ddof: number;
  epsilon: number;
  singleton: number;
  advantages: TensorData;
  groupMean: TensorData;
  groupStd: TensorData;
  zeroVariance: TensorData;
}

/** The ops of native/addon.cpp. */
interface NativeOps {
  cast(args: { device: number; source: NativeMatrix; rows: number; columns: number; result: NativeMatrix }): void;
  tokenLogprob(args: {
    tokens: NativeTokenLogits;
    logprobs: TensorData;
    lse: TensorData;
    entropy: Maybe<TensorData>;
  }): void;
  tokenLogprobBackward(args: {
    tokens: NativeTokenLogits;
    logprobs: TensorData;
    lse: TensorData;
    entropy: Maybe<TensorData>;
    gradLogprobs: TensorData;
    gradEntropy: Maybe<TensorData>;
    gradScale: number;
    inPlace: boolean;
    gradLogits: NativeMatrix;
  }): void;
  fapoPenalty(args: NativeFapoPenalty): void;
  groupAdvantage(args: NativeGroupAdvantage): void;
  fapoAdvantage(args: { penalty: NativeFapoPenalty; advantage: NativeGroupAdvantage }): void;
  policyLoss(args: {
    device: number;
    tokens: number;
    logprobs: TensorData;
    responseMask: Maybe<TensorData>;
    batch: NativePolicyBatch;
    gradLogprobs: TensorData;
  }): void;
  fusedPolicyLoss(args: {
    tokens: NativeTokenLogits;
    batch: NativePolicyBatch;
    inPlace: boolean;
    logprobs: TensorData;
    lse: TensorData;
    entropy: Maybe<TensorData>;
    gradLogits: NativeMatrix;
  }): void;
  /** kind: 0 read, 1 read and write in place, 2 copy. */
  memoryFloor(args: { kind: number; data: Float32Array; destination: Maybe<Float32Array>; result: Float32Array }): void;
}

interface Addon extends NativeOps {
  readonly isa: "baseline" | "avx2" | "avx512";
  setThreads(threads: number): void;
  threads(): number;
}

let loaded: Addon | undefined;

/** @throws FapoError `ERR_ADDON_NOT_FOUND`, with what to do next */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

function load(): Addon {
  const require = createRequire(import.meta.url);
  try {
    const found: Addon = require("node-gyp-build")(fileURLToPath(new URL("..", import.meta.url)));
    return found;
  } catch (cause) {
    throw new FapoError(
      "ERR_ADDON_NOT_FOUND",
      `fapo-kernels: no native build loads here (${process.platform}-${process.arch}, Node ${process.version}); ` +
        "build it from source with `npx fapo-kernels build` (needs CMake 3.25 and a C++20 compiler). " +
        `The loader said: ${cause instanceof Error ? cause.message.split("\n")[0] : String(cause)}`,
      { cause },
    );
  }
}

/** Runs an op of the addon; what it throws becomes one sentence that starts with the op's name. */
export function run<Name extends keyof NativeOps>(op: Name, args: Parameters<NativeOps[Name]>[0]): void {
  const native = addon()[op] as (args: Parameters<NativeOps[Name]>[0]) => void;
  try {
    native(args);
  } catch (error) {
    const { code, message } = error as { code?: FapoErrorCode; message?: string };
    throw new FapoError(code ?? "ERR_INTERNAL", `${op}: ${message ?? String(error)}`, { cause: error });
  }
}

/** `enum class DType` of native/tensor.h. */
const dtypeIds: Record<DType, number> = { float32: 0, bfloat16: 1, float16: 2, int32: 3, uint8: 4, int8: 5 };

export function nativeMatrix(op: string, argument: string, matrix: Tensor): NativeMatrix {
  return { data: memory(op, argument, matrix), rowStride: matrix.rowStride, dtype: dtypeIds[matrix.dtype] };
}

/** The number of a device in native code: -1 is the CPU. */
export const cpuDevice = -1;
