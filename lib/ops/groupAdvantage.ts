/** groupAdvantage: rewards to advantages, group by group. */
import type { Uint8Input } from "../arguments.ts";
import { Arguments, type FloatInput, type Int32Input, isCount, isNotNegative } from "../arguments.ts";
import { calls, type NativeGroupAdvantage, type NativeGrouping } from "../native.ts";
import { type Device, memory, type Tensor } from "../tensor.ts";

/** Which responses answer the same prompt. One of the three. */
export interface GroupingOptions {
  /** Groups of this many responses, one after the other. */
  groupSize?: number;
  /** `[groups + 1]`, int32: prefix sums; starts at 0, never falls, ends at S. Groups may differ in size. */
  groupOffsets?: Int32Input | readonly number[];
  /** `[S]`, int32: the group of each response, 0..groups-1, in any order. Needs `groups`. */
  groupIds?: Int32Input | readonly number[];
  /** How many groups `groupIds` speaks of. */
  groups?: number;
}

export type Baseline = "mean" | "leave-one-out" | "none";
export type AdvantageScale = "group-std" | "batch-std" | "none";
export type Singleton = "zero" | "raw";
const baselines: readonly Baseline[] = ["mean", "leave-one-out", "none"];
const scales: readonly AdvantageScale[] = ["group-std", "batch-std", "none"];
const singletons: readonly Singleton[] = ["zero", "raw"];

export interface AdvantageOptions extends GroupingOptions {
  /** What is subtracted: the group's mean (GRPO), the mean of the others (RLOO), nothing. Default `"mean"`. */
  baseline?: Baseline;
  /** What it is divided by: the deviation of the group (GRPO), of all valid rewards, nothing (Dr. GRPO). Default `"group-std"`. */
  scale?: AdvantageScale;
  /** 1 for the sample deviation (verl, TRL), 0 for the population's (the FAPO paper's analysis). Default 1. */
  ddof?: number;
  /** Added to the deviation. Not negative; default 1e-6. */
  epsilon?: number;
  /** A group of one valid response: 0 (TRL), or mean 0 and deviation 1 (verl). Default `"zero"`. */
  singleton?: Singleton;
  /** Where to run. Default `"cpu"`. */
  device?: Device;
}

export interface GroupAdvantageOptions extends AdvantageOptions {
  /** `[S]`, float32: one reward per response. */
  rewards: FloatInput | readonly number[];
  /** `[S]`, uint8: 0 takes a response out of its group; its advantage is 0. Default: all valid. */
  valid?: Uint8Input | readonly number[];
  /** `[S]`, float32: what `zeroVariance` is judged on. Default `rewards`. */
  varianceRewards?: FloatInput | readonly number[];
  /** The result of an earlier call of the same shape, to be written to and returned. */
  out?: GroupAdvantageResult | undefined;
}

export interface GroupAdvantageResult {
  /** `[S]`, float32. */
  advantages: Tensor<"float32">;
  /** `[groups]`, float32: mean of the valid rewards; 0 for a group without any. */
  groupMean: Tensor<"float32">;
  /** `[groups]`, float32: their deviation, without epsilon. */
  groupStd: Tensor<"float32">;
  /** `[groups]`, uint8: 1 where all valid `varianceRewards` are equal: nothing to learn from, for a filter of yours. */
  zeroVariance: Tensor<"uint8">;
}

/**
 * Group-relative advantages (GRPO, arXiv 2402.03300): `(reward - mean) / (std + epsilon)` over the valid responses of a
 * group. A group whose rewards are all equal gets exactly 0 (unless `baseline` is `"none"`). Mean and deviation are
 * taken in two passes in float64. A NaN or infinite reward makes its own group NaN and no other; `"batch-std"` leaves
 * such groups out.
 *
 * @returns `advantages`: `[S]`, float32; `groupMean`, `groupStd`: `[groups]`, float32; `zeroVariance`: `[groups]`, uint8.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DISPOSED`; nothing is written then
 */
export function groupAdvantage(options: GroupAdvantageOptions): GroupAdvantageResult {
  const args = new Arguments("groupAdvantage", options);
  args.readDevice();
  const rewards = args.arrayOfAnyLength("rewards", "float32", "plain");
  const valid = args.optionalArray("valid", "uint8", rewards.length, "plain");
  const varianceRewards = args.optionalArray("varianceRewards", "float32", rewards.length, "plain");
  const grouping = readGrouping(args, rewards.length);
  const convention = readConvention(args);
  const outputs = advantageOutputs(args, grouping);
  const result = args.reused<GroupAdvantageResult>() ?? outputs;

  const inputs = { rewards, valid, varianceRewards };
  args.run(calls.groupAdvantage, nativeAdvantage(args, inputs, grouping, convention, outputs));
  return result;
}

export function advantageOutputs(args: Arguments, { sequences, groups }: NativeGrouping): GroupAdvantageResult {
  const perGroup = [groups];
  return {
    advantages: args.output("advantages", "float32", [sequences]),
    groupMean: args.output("groupMean", "float32", perGroup),
    groupStd: args.output("groupStd", "float32", perGroup),
    zeroVariance: args.output("zeroVariance", "uint8", perGroup),
  };
}

type Inputs = Pick<NativeGroupAdvantage, "rewards" | "valid" | "varianceRewards">;
type Convention = Pick<NativeGroupAdvantage, "baseline" | "scale" | "ddof" | "epsilon" | "singleton">;

/** The argument struct of the native op: one literal, because V8 makes objects built by spreading slow to read. */
export function nativeAdvantage(
  { op, device }: Arguments,
  inputs: Inputs,
  grouping: NativeGrouping,
  convention: Convention,
  outputs: GroupAdvantageResult,
): NativeGroupAdvantage {
  return {
    device,
    grouping,
    rewards: inputs.rewards,
    valid: inputs.valid,
    varianceRewards: inputs.varianceRewards,
    baseline: convention.baseline,
    scale: convention.scale,
    ddof: convention.ddof,
    epsilon: convention.epsilon,
    singleton: convention.singleton,
    advantages: memory(op, "out.advantages", outputs.advantages),
    groupMean: memory(op, "out.groupMean", outputs.groupMean),
    groupStd: memory(op, "out.groupStd", outputs.groupStd),
    zeroVariance: memory(op, "out.zeroVariance", outputs.zeroVariance),
  };
}

/** Reads the options of GroupingOptions. */
export function readGrouping(args: Arguments, sequences: number): NativeGrouping {
  const groupSize = args.optionalNumber("groupSize", "a number of responses", isCount);
  const groupOffsets = args.optionalArrayOfAnyLength("groupOffsets", "int32", "plain");
  const groupIds = args.optionalArray("groupIds", "int32", sequences, "plain");
  const groups = args.optionalNumber("groups", "a number of groups", (n) => Number.isSafeInteger(n) && n >= 0);
  const given = Number(groupSize !== undefined) + Number(groupOffsets !== undefined) + Number(groupIds !== undefined);
  if (given !== 1) {
    const got = given === 0 ? "none of them" : `${given} of them`;
    args.conflict(`expected one of groupSize, groupOffsets, and groupIds with groups, got ${got}`);
  }
  if (groups !== undefined && !groupIds) args.conflict("groups goes with groupIds alone");
  const grouping = (count: number): NativeGrouping => ({
    sequences,
    groups: count,
    groupSize: groupSize ?? 0,
    groupOffsets,
    groupIds,
  });
  if (groupSize !== undefined) {
    if (sequences % groupSize !== 0) args.fail("groupSize", `a divisor of the ${sequences} responses`, groupSize);
    return grouping(sequences / groupSize);
  }
  if (groupOffsets) {
    if (groupOffsets.length === 0) args.fail("groupOffsets", "of at least one element", groupOffsets);
    return grouping(groupOffsets.length - 1);
  }
  if (groups === undefined) args.conflict("groupIds needs groups, the number of groups");
  return grouping(groups);
}

/** Reads how an advantage is computed. */
export function readConvention(args: Arguments): Convention {
  return {
    baseline: args.choice("baseline", baselines),
    scale: args.choice("scale", scales),
    ddof: args.number("ddof", 1, "0 or 1", (ddof) => ddof === 0 || ddof === 1),
    epsilon: args.number("epsilon", 1e-6, "a number of at least 0", isNotNegative),
    singleton: args.choice("singleton", singletons),
  };
}
