/**
 * What the judge itself is trained with.
 */
import { expect, FapoError } from "../check.ts";
import { isTensor, makeTensor, memory, type Tensor } from "../tensor.ts";
import { withDefaults } from "./options.ts";

export interface GenRMRewardOptions {
  /** `[S]`, int32: index of the first error the judge named, -1 for none, -2 (in an array also null) for no verdict. */
  predicted: Tensor | Int32Array | readonly (number | null)[];
  /** `[S]`, int32: index of the first error, -1 where there is none. */
  truth: Tensor | Int32Array | readonly number[];
  /** `[S]`, int32: number of steps of each solution, at least 1. */
  steps: Tensor | Int32Array | readonly number[];
  /** What an earlier call returned: written to and returned. */
  out?: GenRMRewardResult;
}

export interface GenRMRewardResult {
  /** `[S]` float32, in [-1, 1]. */
  rewards: Tensor;
}

/**
 * Outcome and process reward of the judge (arXiv 2510.22543, eq. 7), for `S` judgements on the CPU:
 *
 * | | truth -1 | truth t |
 * | --- | --- | --- |
 * | predicted -1 | 1 | -1 |
 * | predicted k, 0 <= k < n | -1 | 1 - abs(k - t) / n |
 * | anything else | -1 | -1 |
 *
 * The overlong penalty, which FAPO adds here as well, is not in it.
 *
 * @returns `rewards`: `[S]`, float32
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DEVICE_MISMATCH`, `ERR_DISPOSED`
 */
export function genrmReward(options: GenRMRewardOptions): GenRMRewardResult {
  const op = "genrmReward";
  const given = withDefaults<Partial<GenRMRewardOptions>>(op, options, {
    predicted: undefined as never,
    truth: undefined as never,
    steps: undefined as never,
    out: undefined as never,
  });
  const predicted = integers(op, "predicted", given.predicted);
  const truth = integers(op, "truth", given.truth, predicted.length);
  const steps = integers(op, "steps", given.steps, predicted.length);
  for (let i = 0; i < steps.length; i++) {
    const [n, t] = [steps[i]!, truth[i]!];
    expect(Number.isSafeInteger(n) && n >= 1, op, `steps[${i}]`, "a positive integer", n);
    expect(Number.isSafeInteger(t) && t >= -1 && t < n, op, `truth[${i}]`, `an integer from -1 to ${n - 1}`, t);
  }

  const { out } = given;
  const rewards = out === undefined ? new Float32Array(predicted.length) : outRewards(op, out, predicted.length);
  for (let i = 0; i < rewards.length; i++) rewards[i] = reward(predicted[i]!, truth[i]!, steps[i]!);
  return out ?? { rewards: makeTensor(rewards, [rewards.length], "float32") };
}

function reward(predicted: number, truth: number, steps: number): number {
  if (!Number.isSafeInteger(predicted) || predicted < -1 || predicted >= steps) return -1;
  if (predicted === -1 || truth === -1) return predicted === truth ? 1 : -1;
  return 1 - Math.abs(predicted - truth) / steps;
}

function integers(op: string, name: string, value: unknown, length?: number): ArrayLike<number> {
  let values = value;
  if (isTensor(value)) {
    expect(value.device === "cpu", op, `${name}.device`, '"cpu"', value.device, "ERR_DEVICE_MISMATCH");
    expect(value.dtype === "int32", op, `${name}.dtype`, "int32", value.dtype, "ERR_UNSUPPORTED_DTYPE");
    values = memory(op, name, value);
  }
  const array = Array.isArray(values) || values instanceof Int32Array;
  expect(array, op, name, "an int32 tensor, an Int32Array or an array of numbers", value);
  const list = values as ArrayLike<number>;
  if (length !== undefined) expect(list.length === length, op, name, `of ${length} elements, like predicted`, value);
  return list;
}

function outRewards(op: string, out: GenRMRewardResult, length: number): Float32Array {
  const rewards: unknown = (out as GenRMRewardResult | null)?.rewards;
  expect(isTensor(rewards), op, "out", "what an earlier call returned", out);
  const fits = rewards.dtype === "float32" && rewards.shape.length === 1 && rewards.shape[0] === length;
  expect(fits, op, "out.rewards", `a float32 tensor [${length}]`, rewards);
  const data = memory(op, "out.rewards", rewards);
  if (!(data instanceof Float32Array)) throw new FapoError("ERR_INTERNAL", `${op}: a float32 tensor without floats`);
  return data;
}
