/** The definition of fusedPolicyLoss, in float64: the softmax of reference/softmax.ts under the loss of reference/policy.ts. */
import { type MetricName, type PolicyCase, policyReference } from "./policy.ts";
import { logprobOf, type Scaling, type SoftmaxRow, softmaxRow } from "./softmax.ts";

export interface FusedCase extends Scaling, Omit<PolicyCase, "logprobs"> {
  values: ArrayLike<number>;
  rows: number;
  vocab: number;
  tokenIds: ArrayLike<number>;
  ignoreIndex?: number;
  entropyCoef?: number;
  /** Those that an op returned, in place of the float64 ones: the loss is defined on what is returned. */
  logprobs?: ArrayLike<number>;
}

export interface FusedReference {
  loss: number;
  logprobs: number[];
  lse: number[];
  entropy: number[];
  softmax: SoftmaxRow[];
  ignored: boolean[];
  /** dL/dlogprobs and dL/dentropy, with gradScale. */
  gradLogprobs: number[];
  gradEntropy: number[];
  metrics: Record<MetricName, number>;
}

export function fusedReference(batch: FusedCase): FusedReference {
  const { values, rows, vocab, tokenIds, ignoreIndex = -100, entropyCoef = 0, gradScale = 1 } = batch;
  const indices = Array.from({ length: rows }, (_, i) => i);
  const ignored = indices.map((i) => tokenIds[i] === ignoreIndex || batch.responseMask?.[i] === 0);
  const softmax = indices.map((i) => {
    const row = Float64Array.from({ length: ignored[i] ? 1 : vocab }, (_, j) =>
      ignored[i] ? 0 : values[i * vocab + j]!,
    );
    return softmaxRow(row, batch);
  });
  const exact = indices.map((i) => (ignored[i] ? 0 : logprobOf(softmax[i]!, tokenIds[i]!)));
  const entropy = indices.map((i) => (ignored[i] ? 0 : softmax[i]!.entropy));
  const responseMask = Uint8Array.from(ignored, (row) => (row ? 0 : 1));
  const policy = policyReference({ ...batch, logprobs: batch.logprobs ?? exact, responseMask });

  // The weight of a token is what an advantage of -1 at ratio 1 leaves of its gradient.
  const { gradLogprobs: weights } = policyReference({
    ...batch,
    logprobs: exact,
    oldLogprobs: exact,
    responseMask,
    advantages: new Array<number>(rows).fill(-1),
    importanceWeights: new Array<number>(rows).fill(1),
    klCoef: 0,
    klEstimator: "none",
    gradScale: 1,
  });
  const counted = ignored.filter((row) => !row).length;
  let loss = policy.loss;
  const gradEntropy = indices.map((i) => {
    loss -= entropyCoef * weights[i]! * entropy[i]!;
    return -entropyCoef * weights[i]! * gradScale;
  });
  const meanEntropy = counted === 0 ? 0 : entropy.reduce((sum, value) => sum + value, 0) / counted;
  return {
    loss,
    logprobs: exact,
    lse: indices.map((i) => (ignored[i] ? 0 : softmax[i]!.lse)),
    entropy,
    softmax,
    ignored,
    gradLogprobs: policy.gradLogprobs,
    gradEntropy,
    metrics: { ...policy.metrics, entropy: meanEntropy },
  };
}
