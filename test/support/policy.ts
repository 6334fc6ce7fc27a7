/** Batches of policy-gradient training over logits. */
import type {
  FusedPolicyLossOptions,
  FusedPolicyLossResult,
  KlEstimator,
  LossAggMode,
  PolicyMetrics,
} from "fapo-kernels";
import { fusedPolicyLoss } from "fapo-kernels";
import { type MetricName, metricNames } from "../reference/policy.ts";
import { logprobOf, softmaxRow } from "../reference/softmax.ts";
import { type FloatDType, rng, type TestDevice } from "../support.ts";
import { type LogitsBatch, logitsTensor, nans, normalBatch, rowOf } from "./logits.ts";

export const klEstimators: readonly KlEstimator[] = ["none", "k1", "k2", "k3"];
export const lossAggModes: readonly LossAggMode[] = [
  "token-mean",
  "token-sum",
  "seq-mean-token-sum",
  "seq-mean-token-mean",
  "seq-mean-token-sum-norm",
];

/** Everything about a batch but its logits and ids. */
export type PolicyOptions = Omit<FusedPolicyLossOptions, "logits" | "tokenIds" | "out" | "device">;

export interface PolicyBatch extends LogitsBatch {
  options: PolicyOptions & {
    oldLogprobs: Float32Array;
    advantages: Float32Array;
    cuSeqlens: Int32Array;
    responseMask: Uint8Array;
  };
}

/**
 * Three responses with a masked and an ignored token; log-ratios on both sides of every clip, never within 1e-3 of one,
 * so that the log-prob's own error decides nothing.
 */
export function policyBatch(
  rows: number,
  vocab: number,
  dtype: FloatDType,
  seed: number,
  scaling: Pick<PolicyOptions, "temperature" | "logitSoftcap"> = {},
): PolicyBatch {
  const batch = normalBatch(rows, vocab, dtype, { sigma: 2, seed });
  const random = rng(seed);
  const logRatios = [0, 0.1, -0.1, 0.5, -0.5, 1.5, -1.5, 3, -3, 25, -25];
  const oldLogprobs = Float32Array.from({ length: rows }, (_, i) => {
    const logprob = logprobOf(softmaxRow(rowOf(batch, i), scaling), batch.tokenIds[i]!);
    return logprob - logRatios[Math.floor(random() * logRatios.length)]!;
  });
  const responseMask = Uint8Array.from({ length: rows }, (_, i) => (i % 7 === 5 ? 0 : 1 + (i % 3)));
  if (rows > 3) batch.tokenIds[3] = -100;
  const third = Math.floor(rows / 3);
  return {
    ...batch,
    options: {
      ...scaling,
      oldLogprobs,
      advantages: Float32Array.from({ length: rows }, () => 4 * random() - 2),
      cuSeqlens: Int32Array.of(0, third, third, 2 * third, rows),
      responseMask,
    },
  };
}

/** An output of NaN alone, metrics of NaN among them: what an op does not write shows. */
export function nanResult(
  device: TestDevice,
  { rows, vocab, dtype }: LogitsBatch,
  entropy: boolean,
): FusedPolicyLossResult {
  const poisoned = fusedPolicyLoss({
    logits: nans(device, [1, 1]),
    tokenIds: new Int32Array(1),
    advantages: Float32Array.of(Number.NaN),
  });
  return {
    loss: nans(device, []),
    logprobs: nans(device, [rows]),
    lse: nans(device, [rows]),
    ...(entropy ? { entropy: nans(device, [rows]) } : {}),
    gradLogits: nans(device, [rows, vocab], dtype),
    metrics: poisoned.metrics,
  };
}

/** One call, its outputs NaN before it. */
export function runFused(device: TestDevice, batch: LogitsBatch, options: PolicyOptions): FusedPolicyLossResult {
  const entropy = options.entropy === true || (options.entropyCoef ?? 0) !== 0;
  const out = options.inPlace ? undefined : nanResult(device, batch, entropy);
  return fusedPolicyLoss({
    logits: logitsTensor(device, batch),
    tokenIds: batch.tokenIds,
    ...options,
    ...(out === undefined ? {} : { out }),
  });
}

export function metricsOf(metrics: PolicyMetrics): Record<MetricName, number> {
  return Object.fromEntries(metricNames.map((name) => [name, metrics[name].item()])) as Record<MetricName, number>;
}
