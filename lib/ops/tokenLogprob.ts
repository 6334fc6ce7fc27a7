/** tokenLogprob and its backward pass. */
import {
  Arguments,
  type FloatInput,
  type Int32Input,
  isFiniteNumber,
  isPositive,
  type Uint8Input,
} from "../arguments.ts";
import { calls, type NativeTokenLogits } from "../native.ts";
import { type Device, memory, nativeMatrix, type Tensor } from "../tensor.ts";

/** Rows of logits with one chosen token each; shared by every op over a vocabulary. */
export interface TokenLogitsOptions {
  /** `[N, V]`, float32, bfloat16 or float16. Row i holds the logits that predict `tokenIds[i]`. Rows may be strided. */
  logits: Tensor;
  /** `[N]`, int32: the chosen token per row, 0..V-1, or `ignoreIndex`. */
  tokenIds: Int32Input;
  /** Logits are divided by it, as in sampling. In 1e-30..1e30; default 1. */
  temperature?: number;
  /** `cap * tanh(x / cap)` before the temperature (Gemma 2). In 1e-30..1e30; default none. */
  logitSoftcap?: number;
  /** Token id of rows to ignore. Default -100. */
  ignoreIndex?: number;
  /** `[N]`, uint8; 0: the row is ignored, and nothing of it is read. Default: all count. */
  responseMask?: Uint8Input;
  /** Where to run; must be the device of the tensors. Default `"cpu"`. */
  device?: Device;
}

export interface TokenLogprobOptions extends TokenLogitsOptions {
  /** Also return the entropy of each row. Default false. */
  entropy?: boolean;
  /** The result of an earlier call of the same shape, to be written to and returned: nothing is allocated then. */
  out?: TokenLogprobResult | undefined;
}

export interface TokenLogprobResult {
  /** `[N]`, float32: never above 0; 0 for ignored rows. */
  logprobs: Tensor<"float32">;
  /** `[N]`, float32: log-sum-exp of the scaled logits; 0 for ignored rows. */
  lse: Tensor<"float32">;
  /** `[N]`, float32, in nats; 0 for ignored rows. With `entropy: true` alone. */
  entropy?: Tensor<"float32">;
}

/**
 * Log-probability of one chosen token per row: `z = logits / temperature` (with a cap
 * `cap * tanh(logits / cap) / temperature`), `logprobs[i] = z[i][tokenIds[i]] - logsumexp(z[i])`.
 *
 * @returns `logprobs`, `lse` and, when asked for, `entropy`: each `[N]`, float32. A NaN or +Infinity logit, or a row of
 *   -Infinity alone, makes that row NaN and no other. A -Infinity logit has probability 0.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_TOKEN_OUT_OF_RANGE`, `ERR_DISPOSED`; nothing
 *   is written then
 */
export function tokenLogprob(options: TokenLogprobOptions): TokenLogprobResult {
  const args = new Arguments("tokenLogprob", options);
  const { logits, native } = readTokenLogits(args);
  const wantEntropy = args.boolean("entropy");
  const rows = [logits.shape[0]!];
  const logprobs = args.output("logprobs", "float32", rows);
  const lse = args.output("lse", "float32", rows);
  const entropy = args.optionalOutput(wantEntropy, "entropy", "float32", rows);
  const result = args.reused<TokenLogprobResult>() ?? (entropy ? { logprobs, lse, entropy } : { logprobs, lse });

  args.run(calls.tokenLogprob, {
    tokens: native,
    logprobs: memory(args.op, "out.logprobs", logprobs),
    lse: memory(args.op, "out.lse", lse),
    entropy: entropy ? memory(args.op, "out.entropy", entropy) : undefined,
  });
  return result;
}

export interface TokenLogprobBackwardOptions extends TokenLogitsOptions {
  /** `[N]`, float32: `logprobs` of the forward op with the same options. */
  logprobs: FloatInput;
  /** `[N]`, float32: `lse` of the forward op. */
  lse: FloatInput;
  /** `[N]`, float32: the gradient of the loss with respect to `logprobs`. A row where it is 0 is not read. */
  gradLogprobs: FloatInput;
  /** `[N]`, float32: `entropy` of the forward op. Needed with `gradEntropy`. */
  entropy?: FloatInput;
  /** `[N]`, float32: the gradient of the loss with respect to `entropy`. */
  gradEntropy?: FloatInput;
  /** Multiplies the gradient before it is rounded to the dtype of the logits. A finite number; default 1. */
  gradScale?: number;
  /** Overwrite the logits with their gradient. Default false. */
  inPlace?: boolean;
  /** The result of an earlier call of the same shape, to be written to and returned. */
  out?: TokenLogprobBackwardResult | undefined;
}

export interface TokenLogprobBackwardResult {
  /** `[N, V]`, dtype of the logits; with `inPlace` the tensor `logits` itself. */
  gradLogits: Tensor;
}

/**
 * Gradient of a loss with respect to the logits, from its gradient with respect to the outputs of `tokenLogprob`:
 * `gradLogits[i][j] = (gradLogprobs[i] * ([j = tokenIds[i]] - p[j]) - gradEntropy[i] * p[j] * (ln p[j] + entropy[i]))
 * / temperature`, times `1 - tanh^2(logits / cap)` under a cap. 16-bit gradients are rounded once, to nearest.
 *
 * @returns `gradLogits`: `[N, V]`, dtype of the logits; exactly 0 for ignored rows and for -Infinity logits.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_TOKEN_OUT_OF_RANGE`, `ERR_DISPOSED`; nothing
 *   is written then
 */
export function tokenLogprobBackward(options: TokenLogprobBackwardOptions): TokenLogprobBackwardResult {
  const args = new Arguments("tokenLogprobBackward", options);
  const { logits, native } = readTokenLogits(args);
  const rows = logits.shape[0]!;
  const logprobs = args.array("logprobs", "float32", rows);
  const lse = args.array("lse", "float32", rows);
  const gradLogprobs = args.array("gradLogprobs", "float32", rows);
  const entropy = args.optionalArray("entropy", "float32", rows);
  const gradEntropy = args.optionalArray("gradEntropy", "float32", rows);
  if (gradEntropy && !entropy) args.conflict("gradEntropy needs entropy, the output of tokenLogprob");
  const gradScale = args.number("gradScale", 1, "a finite number", isFiniteNumber);
  const inPlace = args.boolean("inPlace");
  const gradLogits = gradLogitsOutput(args, logits, inPlace);
  const result = args.reused<TokenLogprobBackwardResult>() ?? { gradLogits };

  args.run(calls.tokenLogprobBackward, {
    tokens: native,
    logprobs,
    lse,
    entropy,
    gradLogprobs,
    gradEntropy,
    gradScale,
    inPlace,
    gradLogits: nativeMatrix(args.op, "out.gradLogits", gradLogits),
  });
  setInPlace(result, logits, inPlace);
  return result;
}

/** Reads the options of TokenLogitsOptions. */
export function readTokenLogits(args: Arguments): { logits: Tensor; native: NativeTokenLogits } {
  args.readDevice();
  const logits = args.logits("logits");
  const [rows, vocab] = logits.shape as [number, number];
  const tokenIds = args.array("tokenIds", "int32", rows);
  const responseMask = args.optionalArray("responseMask", "uint8", rows);
  const temperature = readScale(args, "temperature") ?? 1;
  const logitSoftcap = readScale(args, "logitSoftcap") ?? 0;
  if (logitSoftcap / temperature > 1e30) args.conflict("logitSoftcap / temperature is above 1e30");
  const ignoreIndex = args.number("ignoreIndex", -100, "an integer", Number.isSafeInteger);
  const native: NativeTokenLogits = {
    device: args.device,
    logits: nativeMatrix(args.op, "logits", logits),
    tokenIds,
    responseMask,
    rows,
    vocab,
    temperature,
    logitSoftcap,
    ignoreIndex,
  };
  return { logits, native };
}

/**
 * The gradient of the logits as an output: the logits themselves when `inPlace`. The result has to take them after the
 * call then.
 */
export function gradLogitsOutput(args: Arguments, logits: Tensor, inPlace: boolean): Tensor {
  if (!inPlace) return args.output("gradLogits", logits.dtype, logits.shape);
  const out = args.reusable();
  if (out) {
    out.take("gradLogits");
    const own = Object.getOwnPropertyDescriptor(out.object, "gradLogits");
    const settable = own ? own.writable || own.value === logits : Object.isExtensible(out.object);
    if (!settable) args.fail("out", "an object whose gradLogits can be set to logits", out.object);
  }
  return logits;
}

/** After the call, when nothing can fail any more: the logits have become their gradient. */
export function setInPlace(result: { gradLogits: Tensor }, logits: Tensor, inPlace: boolean): void {
  if (!inPlace) return;
  if (!Object.hasOwn(result, "gradLogits")) {
    // An assignment would run a setter of a polluted prototype.
    const property = { __proto__: null, value: logits, writable: true, enumerable: true, configurable: true };
    Object.defineProperty(result, "gradLogits", property);
  } else if (result.gradLogits !== logits) {
    result.gradLogits = logits;
  }
}

/** A positive number. The kernels scale in float32, so it has to leave room for products with logits. */
function readScale(args: Arguments, name: string): number | undefined {
  const scale = args.optionalNumber(name, "a positive number", isPositive);
  if (scale !== undefined && !(scale >= 1e-30 && scale <= 1e30)) args.fail(name, "in 1e-30..1e30", scale);
  return scale;
}
