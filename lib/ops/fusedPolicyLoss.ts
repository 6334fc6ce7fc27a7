/** fusedPolicyLoss: logits to loss, gradient and metrics in one pass. */
import { Arguments, isFiniteNumber } from "../arguments.ts";
import { calls } from "../native.ts";
import { memory, nativeMatrix, type Tensor } from "../tensor.ts";
import { metricsOutput, type PolicyBatchOptions, type PolicyMetrics, readPolicyBatch } from "./policyLoss.ts";
import { gradLogitsOutput, readTokenLogits, setInPlace, type TokenLogitsOptions } from "./tokenLogprob.ts";

export interface FusedPolicyLossOptions extends TokenLogitsOptions, PolicyBatchOptions {
  /** Also return the entropy of each row. Default false; an `entropyCoef` other than 0 returns it, too. */
  entropy?: boolean;
  /** The loss contains `-entropyCoef * entropy` per token. A finite number; default 0. */
  entropyCoef?: number;
  /**
   * Overwrite the logits with their gradient: fastest for logits beyond the caches, and no second buffer. With `out`,
   * `out.gradLogits` becomes the logits. Default false.
   */
  inPlace?: boolean;
  /** The result of an earlier call of the same shape, to be written to and returned: nothing is allocated then. */
  out?: FusedPolicyLossResult | undefined;
}

export interface FusedPolicyLossResult {
  /** Scalar, float32: to be minimised. */
  loss: Tensor<"float32">;
  /** `[N]`, float32: as `tokenLogprob`. */
  logprobs: Tensor<"float32">;
  /** `[N]`, float32: as `tokenLogprob`. */
  lse: Tensor<"float32">;
  /** `[N]`, float32, in nats. When asked for, or needed for `entropyCoef`. */
  entropy?: Tensor<"float32">;
  /** `[N, V]`, dtype of the logits: dL/dlogits; with `inPlace` the tensor `logits` itself. */
  gradLogits: Tensor;
  metrics: PolicyMetrics;
}

/**
 * `tokenLogprob`, `policyLoss` and `tokenLogprobBackward` in one: reads the logits from memory once and writes their
 * gradient once. The loss of a token also contains `-entropyCoef * entropy`. Rows with `responseMask` 0 or a token id of
 * `ignoreIndex` do not count, are not read, and get a gradient of exactly 0.
 *
 * @returns `loss`: scalar, float32; `logprobs`, `lse`, `entropy`: `[N]`, float32; `gradLogits`: `[N, V]`, dtype of the
 *   logits; `metrics`
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_TOKEN_OUT_OF_RANGE`, `ERR_DISPOSED`; nothing
 *   is written then
 */
export function fusedPolicyLoss(options: FusedPolicyLossOptions): FusedPolicyLossResult {
  const args = new Arguments("fusedPolicyLoss", options);
  const { logits, native } = readTokenLogits(args);
  const rows = logits.shape[0]!;
  const batch = readPolicyBatch(args, rows);
  batch.entropyCoef = args.number("entropyCoef", 0, "a finite number", isFiniteNumber);
  const wantEntropy = args.boolean("entropy") || batch.entropyCoef !== 0;
  const inPlace = args.boolean("inPlace");
  const { metrics, storage } = metricsOutput(args);
  const loss = args.output("loss", "float32", []);
  const logprobs = args.output("logprobs", "float32", [rows]);
  const lse = args.output("lse", "float32", [rows]);
  const entropy = args.optionalOutput(wantEntropy, "entropy", "float32", [rows]);
  const gradLogits = gradLogitsOutput(args, logits, inPlace);
  const result =
    args.reused<FusedPolicyLossResult>() ??
    (entropy ? { loss, logprobs, lse, entropy, gradLogits, metrics } : { loss, logprobs, lse, gradLogits, metrics });

  batch.loss = memory(args.op, "out.loss", loss);
  batch.metrics = storage.metrics;
  batch.counts = storage.counts;
  args.run(calls.fusedPolicyLoss, {
    tokens: native,
    batch,
    inPlace,
    logprobs: memory(args.op, "out.logprobs", logprobs),
    lse: memory(args.op, "out.lse", lse),
    entropy: entropy ? memory(args.op, "out.entropy", entropy) : undefined,
    gradLogits: nativeMatrix(args.op, "out.gradLogits", gradLogits),
  });
  setInPlace(result, logits, inPlace);
  return result;
}
