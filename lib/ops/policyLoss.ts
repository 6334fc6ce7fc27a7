/** policyLoss: log-probs to the clipped loss, its gradient and metrics. */
import { cpuDevice } from "../addon.ts";
import {
  Arguments,
  type FloatInput,
  type Int32Input,
  isCount,
  isFiniteNumber,
  isNotNegative,
  isPositive,
  type Uint8Input,
} from "../arguments.ts";
import { DeviceMemory } from "../cuda.ts";
import { calls, type Memory, type NativePolicyBatch } from "../native.ts";
import { type Device, makeTensor, memory, type Tensor } from "../tensor.ts";

export type KlEstimator = "none" | "k1" | "k2" | "k3";
export type LossAggMode =
  | "token-mean"
  | "token-sum"
  | "seq-mean-token-sum"
  | "seq-mean-token-mean"
  | "seq-mean-token-sum-norm";
const klEstimators: readonly KlEstimator[] = ["none", "k1", "k2", "k3"];
const lossAggModes: readonly LossAggMode[] = [
  "token-mean",
  "token-sum",
  "seq-mean-token-sum",
  "seq-mean-token-mean",
  "seq-mean-token-sum-norm",
];

/** What the policy loss takes besides the current log-probs. */
export interface PolicyBatchOptions {
  /** `[N]`, float32: log-probs under the policy that sampled. Default: the current ones, detached (ratio 1). */
  oldLogprobs?: FloatInput;
  /** `[S]` or `[N]`, float32; `[S]` needs `cuSeqlens`, and is meant where N equals S. */
  advantages: FloatInput | readonly number[];
  /** `[S + 1]`, int32: where each response starts in the packed tokens; starts at 0, never falls, ends at N. */
  cuSeqlens?: Int32Input | readonly number[];
  /** `[N]`, float32: log-probs under the reference policy. Needed with `klEstimator`. */
  refLogprobs?: FloatInput;
  /** `[N]` or `[S]`, float32: off-policy correction, multiplies the policy term alone, without gradient. */
  importanceWeights?: FloatInput | readonly number[];
  /** The ratio is clipped below 1 - this. 0 <= value <= 1; default 0.2. */
  clipRatioLow?: number;
  /** The ratio is clipped above 1 + this. Not negative; default 0.28. */
  clipRatioHigh?: number;
  /** Dual clip: where the advantage is negative, the loss is at most `-advantage * clipRatioC`. Above 1; `Infinity` is off; default 10. */
  clipRatioC?: number;
  /** The log-ratio is clamped to ± this before `exp`; no gradient outside. Positive; `Infinity` is off; default 20. */
  logRatioClamp?: number;
  /** KL(policy || reference) per token. With `klCoef` 0 it is only reported. Default `"none"`. */
  klEstimator?: KlEstimator;
  /** Weight of the KL term. Not negative; default 0. */
  klCoef?: number;
  /** How token losses add up; verl's names. The seq modes need `cuSeqlens`. Default `"token-mean"`. */
  lossAggMode?: LossAggMode;
  /** Counted tokens of the whole batch, where this call sees a part of it. Default: those of this call. */
  globalTokens?: number;
  /** Sequences with counted tokens in the whole batch. Default: those of this call. */
  globalSequences?: number;
  /** Divisor of `"seq-mean-token-sum-norm"`, which needs it; Dr. GRPO takes the longest response that can be sampled. */
  horizon?: number;
  /** Multiplies the gradient, not the loss. A finite number; default 1. */
  gradScale?: number;
  /** Where to run. Default `"cpu"`. */
  device?: Device;
}

export interface PolicyLossOptions extends PolicyBatchOptions {
  /** `[N]`, float32: log-probs under the policy being trained. */
  logprobs: FloatInput;
  /** `[N]`, uint8; 0: the token does not count, whatever else is there. Default: all count. */
  responseMask?: Uint8Input;
  /** The result of an earlier call of the same shape, to be written to and returned. */
  out?: PolicyLossResult | undefined;
}

/** Scalars over the counted tokens of one call; `.item()` reads one. */
export interface PolicyMetrics {
  /** Share of tokens where the upper clip binds (advantage > 0). float32 */
  clipFractionHigh: Tensor<"float32">;
  /** Share of tokens where the lower clip binds (advantage < 0). float32 */
  clipFractionLow: Tensor<"float32">;
  /** Share of tokens where the dual clip binds. float32 */
  clipFractionDual: Tensor<"float32">;
  /** Mean of exp(logprob - oldLogprob), log-ratio clamped. float32 */
  ratioMean: Tensor<"float32">;
  /** Largest ratio; 0 without counted tokens. float32 */
  ratioMax: Tensor<"float32">;
  /** Mean of exp(d) - 1 - d, d = logprob - oldLogprob, clamped. float32 */
  approxKl: Tensor<"float32">;
  /** Mean of the chosen estimator, unweighted; 0 for `"none"`. float32 */
  kl: Tensor<"float32">;
  /** Mean entropy in nats, where the op computed it; else 0. float32 */
  entropy: Tensor<"float32">;
  /** Counted tokens. int32 */
  tokens: Tensor<"int32">;
  /** Sequences with at least one counted token; 0 without `cuSeqlens`. int32 */
  sequences: Tensor<"int32">;
}

export interface PolicyLossResult {
  /** Scalar, float32: to be minimised. */
  loss: Tensor<"float32">;
  /** `[N]`, float32: dL/dlogprobs; exactly 0 for masked tokens. */
  gradLogprobs: Tensor<"float32">;
  metrics: PolicyMetrics;
}

/**
 * The clipped policy loss (FAPO, arXiv 2510.22543, eq. 3, with the clamps and the dual clip of its scripts). Per token,
 * with `r = exp(logprob - oldLogprob)`: `max(-A r, -A clip(r, 1 - clipRatioLow, 1 + clipRatioHigh))`, at most
 * `-A * clipRatioC` where `A < 0`, times its importance weight, plus `klCoef * KL`; each times the token's aggregation
 * weight, summed. Computed in float64. At the exact bound of a clip the gradient passes.
 *
 * @returns `loss`: scalar, float32; `gradLogprobs`: `[N]`, float32; `metrics`. Everything is 0 where no token counts.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DISPOSED`; nothing is written then
 */
export function policyLoss(options: PolicyLossOptions): PolicyLossResult {
  const args = new Arguments("policyLoss", options);
  args.readDevice();
  const logprobs = args.arrayOfAnyLength("logprobs", "float32");
  const tokens = logprobs.length;
  const responseMask = args.optionalArray("responseMask", "uint8", tokens);
  const batch = readPolicyBatch(args, tokens);
  const { metrics, storage } = metricsOutput(args);
  const loss = args.output("loss", "float32", []);
  const gradLogprobs = args.output("gradLogprobs", "float32", [tokens]);
  const result = args.reused<PolicyLossResult>() ?? { loss, gradLogprobs, metrics };

  batch.loss = memory(args.op, "out.loss", loss);
  batch.metrics = storage.metrics;
  batch.counts = storage.counts;
  args.run(calls.policyLoss, {
    device: args.device,
    tokens,
    logprobs,
    responseMask,
    batch,
    gradLogprobs: memory(args.op, "out.gradLogprobs", gradLogprobs),
  });
  return result;
}

/** Reads the options of PolicyBatchOptions but `device`. Outputs are still to be set. */
export function readPolicyBatch(args: Arguments, tokens: number): NativePolicyBatch {
  const cuSeqlens = args.optionalArrayOfAnyLength("cuSeqlens", "int32", "plain");
  if (cuSeqlens?.length === 0) args.fail("cuSeqlens", "of at least one element", cuSeqlens);
  const sequences = cuSeqlens && cuSeqlens.length - 1;
  const advantages = args.arrayOfAnyLength("advantages", "float32", "plain");
  const importanceWeights = args.optionalArrayOfAnyLength("importanceWeights", "float32", "plain");

  const perSequence = (name: string, data: { length: number }): boolean => {
    if (data.length === sequences) return true;
    if (data.length === tokens) return false;
    const lengths = sequences === undefined ? "(a length per response needs cuSeqlens)" : `or ${sequences} (responses)`;
    return args.fail(name, `of length ${tokens} (tokens) ${lengths}`, data);
  };

  const klEstimator = args.choice("klEstimator", klEstimators);
  const klCoef = args.number("klCoef", 0, "a number of at least 0", isNotNegative);
  const refLogprobs = args.optionalArray("refLogprobs", "float32", tokens);
  if (klCoef !== 0 && klEstimator === 0) args.conflict('klCoef needs a klEstimator, which is "none"');
  if (klEstimator !== 0 && !refLogprobs) args.conflict(`klEstimator "${klEstimators[klEstimator]}" needs refLogprobs`);
  if (klEstimator === 0 && refLogprobs) args.conflict('refLogprobs are given, but klEstimator is "none"');

  const lossAggMode = args.choice("lossAggMode", lossAggModes);
  const mode = lossAggModes[lossAggMode]!;
  if (mode.startsWith("seq-") && !cuSeqlens) args.conflict(`lossAggMode "${mode}" needs cuSeqlens`);
  const horizon = args.optionalNumber("horizon", "a positive number", isPositive);
  if (mode === "seq-mean-token-sum-norm" && horizon === undefined) args.conflict(`lossAggMode "${mode}" needs horizon`);
  if (mode !== "seq-mean-token-sum-norm" && horizon !== undefined) {
    args.conflict(`horizon goes with lossAggMode "seq-mean-token-sum-norm", not "${mode}"`);
  }

  return {
    oldLogprobs: args.optionalArray("oldLogprobs", "float32", tokens),
    advantages,
    refLogprobs,
    importanceWeights,
    cuSeqlens,
    advantagesPerSequence: perSequence("advantages", advantages),
    importanceWeightsPerSequence: importanceWeights ? perSequence("importanceWeights", importanceWeights) : false,
    clipRatioLow: args.number("clipRatioLow", 0.2, "a number in 0..1", (low) => low >= 0 && low <= 1),
    clipRatioHigh: args.number("clipRatioHigh", 0.28, "a number of at least 0", isNotNegative),
    clipRatioC: args.number("clipRatioC", 10, "a number above 1", (c) => c > 1),
    logRatioClamp: args.number("logRatioClamp", 20, "a positive number", (clamp) => clamp > 0),
    klEstimator,
    klCoef,
    lossAggMode,
    globalTokens: args.optionalNumber("globalTokens", "a number of tokens", isCount) ?? 0,
    globalSequences: args.optionalNumber("globalSequences", "a number of sequences", isCount) ?? 0,
    horizon: horizon ?? 1,
    gradScale: args.number("gradScale", 1, "a finite number", isFiniteNumber),
    entropyCoef: 0,
    loss: undefined,
    metrics: undefined,
    counts: undefined,
  };
}

interface MetricsStorage {
  metrics: Memory;
  counts: Memory;
}

/** The memory behind metrics of ours: nothing else is taken for metrics. */
const storages = new WeakMap<object, MetricsStorage>();

/** In the order of native/math/policy_metrics.h. */
const metricNames = [
  "clipFractionHigh",
  "clipFractionLow",
  "clipFractionDual",
  "ratioMean",
  "ratioMax",
  "approxKl",
  "kl",
  "entropy",
] as const;
const countNames = ["tokens", "sequences"] as const;

/** The metrics of `out`, or new ones. */
export function metricsOutput(args: Arguments): { metrics: PolicyMetrics; storage: MetricsStorage } {
  const out = args.reusable();
  if (out) {
    const metrics = out.take("metrics") as PolicyMetrics;
    const storage = typeof metrics === "object" && metrics !== null ? storages.get(metrics) : undefined;
    if (!storage) args.fail("out.metrics", `the metrics of an earlier ${args.op}`, metrics);
    args.locate("out.metrics", metrics.tokens);
    return { metrics, storage };
  }
  const storage = newStorage(args);
  const scalars: Record<string, Tensor> = {};
  for (const [i, name] of metricNames.entries()) {
    scalars[name] = args.made(() => makeTensor(part(storage.metrics, i), [], "float32"));
  }
  for (const [i, name] of countNames.entries()) {
    scalars[name] = args.made(() => makeTensor(part(storage.counts, i), [], "int32"));
  }
  const metrics = Object.freeze(scalars) as unknown as PolicyMetrics;
  storages.set(metrics, storage);
  return { metrics, storage };
}

/** All scalars in one piece of memory. */
function newStorage(args: Arguments): MetricsStorage {
  const [floats, integers] = [metricNames.length, countNames.length];
  if (args.device === cpuDevice) return { metrics: new Float32Array(floats), counts: new Int32Array(integers) };
  const whole = DeviceMemory.allocate(args.op, args.device, floats + integers, 4, false);
  return { metrics: whole.part(0, floats), counts: whole.part(floats * 4, integers) };
}

function part(data: Memory, i: number): Memory {
  return data instanceof DeviceMemory ? data.part(i * 4, 1) : data.subarray(i, i + 1);
}
