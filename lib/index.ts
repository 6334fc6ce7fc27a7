/** The public API of fapo-kernels. */
export type { FloatInput, Int8Input, Int32Input, Uint8Input } from "./arguments.ts";
export { type CudaErrorCode, FapoError, type FapoErrorCode } from "./check.ts";
export {
  type CudaDevice,
  type CudaMemory,
  cudaMemory,
  type Devices,
  devices,
  setCudaMemoryLimit,
  setThreads,
} from "./device.ts";
export { captureGraph, type Graph, type GraphOptions } from "./graph.ts";
export { type CastOptions, cast } from "./ops/cast.ts";
export { type FapoAdvantageOptions, type FapoAdvantageResult, fapoAdvantage } from "./ops/fapoAdvantage.ts";
export {
  type FapoPenaltyOptions,
  type FapoPenaltyResult,
  fapoPenalty,
  type OverlongOptions,
  type UnknownVerdict,
} from "./ops/fapoPenalty.ts";
export {
  type FusedPolicyLossOptions,
  type FusedPolicyLossResult,
  fusedPolicyLoss,
} from "./ops/fusedPolicyLoss.ts";
export {
  type AdvantageOptions,
  type AdvantageScale,
  type Baseline,
  type GroupAdvantageOptions,
  type GroupAdvantageResult,
  type GroupingOptions,
  groupAdvantage,
  type Singleton,
} from "./ops/groupAdvantage.ts";
export {
  type BatchProgress,
  type LearningProgressOptions,
  type LearningProgressResult,
  learningProgress,
  type Progress,
} from "./ops/learningProgress.ts";
export {
  type KlEstimator,
  type LossAggMode,
  type PolicyBatchOptions,
  type PolicyLossOptions,
  type PolicyLossResult,
  type PolicyMetrics,
  policyLoss,
} from "./ops/policyLoss.ts";
export {
  type TokenLogitsOptions,
  type TokenLogprobBackwardOptions,
  type TokenLogprobBackwardResult,
  type TokenLogprobOptions,
  type TokenLogprobResult,
  tokenLogprob,
  tokenLogprobBackward,
} from "./ops/tokenLogprob.ts";
export {
  type DataByDType,
  type Device,
  type DType,
  synchronize,
  type Tensor,
  type TensorData,
  type TensorOptions,
  type ToDeviceOptions,
  tensor,
  toDevice,
  type ZerosOptions,
  zeros,
} from "./tensor.ts";
