/** fapoPenalty: verdicts to rewards. */
import {
  Arguments,
  type Int8Input,
  type Int32Input,
  isCount,
  isFiniteNumber,
  isNotNegative,
  type Uint8Input,
} from "../arguments.ts";
import { calls, type Memory, type NativeFapoPenalty } from "../native.ts";
import { type Device, memory, type Tensor } from "../tensor.ts";

/** What to do with a right answer that has no verdict: the first is the default. */
export type UnknownVerdict = "sound" | "flawed" | "exclude";
export const unknownVerdicts: readonly UnknownVerdict[] = ["sound", "flawed", "exclude"];

export interface OverlongOptions {
  /** Longest response that can be sampled, in tokens. */
  maxLength: number;
  /** The penalty starts this many tokens before `maxLength`. */
  buffer: number;
  /** The penalty at `maxLength`. Default 1. */
  factor?: number;
}

export interface FapoPenaltyOptions {
  /** `[S]`, uint8: whether the final answer is right; any non-zero value is. */
  correct: Uint8Input | readonly number[];
  /** `[S]`, int8: 1 flawed, 0 sound, -1 unknown. Looked at only where the answer is right. */
  flawed: Int8Input | readonly number[];
  /** Lambda: what a flawed positive loses. Not negative; default 1. */
  flawedPenalty?: number;
  /** Default `"sound"`, as the FAPO repository does. `"exclude"` takes the response out of its group. */
  unknownVerdict?: UnknownVerdict;
  /** `[S]`, int32: tokens per response. Needed with `overlong`. */
  responseLengths?: Int32Input | readonly number[];
  /** DAPO's soft penalty for responses near the length limit. Default none. */
  overlong?: OverlongOptions;
  /** Default 1. */
  rewardCorrect?: number;
  /** Default -1. */
  rewardWrong?: number;
  /** Where to run. Default `"cpu"`. */
  device?: Device;
  /** The result of an earlier call of the same shape, to be written to and returned. */
  out?: FapoPenaltyResult | undefined;
}

export interface FapoPenaltyResult {
  /** `[S]`, float32: with the penalty for flawed positives and the overlong penalty. */
  rewards: Tensor<"float32">;
  /** `[S]`, float32: with the penalty for flawed positives alone. */
  fapoRewards: Tensor<"float32">;
  /** `[S]`, uint8: 0 for responses that `unknownVerdict: "exclude"` takes out. */
  valid: Tensor<"uint8">;
}

/**
 * FAPO's reward (arXiv 2510.22543, eq. 8): `rewardCorrect` for a right answer, minus `flawedPenalty` when its reasoning
 * is flawed, else `rewardWrong`; then DAPO's overlong penalty (arXiv 2503.14476, eq. 13),
 * `min(-(length - (maxLength - buffer)) / buffer * factor, 0)`, not clamped below.
 *
 * @returns `rewards`, `fapoRewards`: `[S]`, float32; `valid`: `[S]`, uint8.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DISPOSED`; nothing is written then
 */
export function fapoPenalty(options: FapoPenaltyOptions): FapoPenaltyResult {
  const args = new Arguments("fapoPenalty", options);
  const verdicts = readVerdicts(args);
  const outputs = penaltyOutputs(args, verdicts.correct.length);
  const result = args.reused<FapoPenaltyResult>() ?? outputs;

  args.run(calls.fapoPenalty, nativePenalty(args, verdicts, outputs));
  return result;
}

export function penaltyOutputs(args: Arguments, sequences: number): FapoPenaltyResult {
  const shape = [sequences];
  return {
    rewards: args.output("rewards", "float32", shape),
    fapoRewards: args.output("fapoRewards", "float32", shape),
    valid: args.output("valid", "uint8", shape),
  };
}

type Verdicts = ReturnType<typeof readVerdicts>;

/** The argument struct of the native op: one literal, because V8 makes objects built by spreading slow to read. */
export function nativePenalty(
  { op, device }: Arguments,
  verdicts: Verdicts,
  outputs: FapoPenaltyResult,
): NativeFapoPenalty {
  const { overlong } = verdicts;
  return {
    device,
    correct: verdicts.correct,
    flawed: verdicts.flawed,
    responseLengths: verdicts.responseLengths,
    sequences: verdicts.correct.length,
    rewardCorrect: verdicts.rewardCorrect,
    rewardWrong: verdicts.rewardWrong,
    flawedPenalty: verdicts.flawedPenalty,
    unknownVerdict: verdicts.unknownVerdict,
    overlongMaxLength: overlong.maxLength,
    overlongBuffer: overlong.buffer,
    overlongFactor: overlong.factor,
    rewards: memory(op, "out.rewards", outputs.rewards),
    fapoRewards: memory(op, "out.fapoRewards", outputs.fapoRewards),
    valid: memory(op, "out.valid", outputs.valid),
  };
}

/** Reads the options of FapoPenaltyOptions but `out`. */
export function readVerdicts(args: Arguments): {
  correct: Memory;
  flawed: Memory;
  responseLengths: Memory | undefined;
  flawedPenalty: number;
  unknownVerdict: number;
  rewardCorrect: number;
  rewardWrong: number;
  overlong: Required<OverlongOptions>;
} {
  args.readDevice();
  const correct = args.arrayOfAnyLength("correct", "uint8", "plain");
  const flawed = args.array("flawed", "int8", correct.length, "plain");
  const responseLengths = args.optionalArray("responseLengths", "int32", correct.length, "plain");
  const flawedPenalty = args.number("flawedPenalty", 1, "a number of at least 0", isNotNegative);
  const unknownVerdict = args.choice("unknownVerdict", unknownVerdicts);
  const rewardCorrect = args.number("rewardCorrect", 1, "a finite number", isFiniteNumber);
  const rewardWrong = args.number("rewardWrong", -1, "a finite number", isFiniteNumber);
  const overlong = readOverlong(args);
  if (overlong && !responseLengths) args.conflict("overlong needs responseLengths");
  if (!overlong && responseLengths) args.conflict("responseLengths are given, but no overlong");
  return {
    correct,
    flawed,
    responseLengths,
    flawedPenalty,
    unknownVerdict,
    rewardCorrect,
    rewardWrong,
    overlong: overlong ?? noOverlong,
  };
}

const noOverlong: Required<OverlongOptions> = { maxLength: 0, buffer: 0, factor: 1 };

function readOverlong(args: Arguments): Required<OverlongOptions> | undefined {
  const overlong = args.take("overlong");
  if (overlong === undefined) return undefined;
  if (typeof overlong !== "object" || overlong === null) {
    args.fail("overlong", "{ maxLength, buffer, factor? }", overlong);
  }
  const inner = new Arguments(`${args.op}: overlong`, overlong);
  const count = (name: string): number =>
    inner.optionalNumber(name, "a number of tokens", isCount) ?? inner.fail(name, "a number of tokens", undefined);
  const maxLength = count("maxLength");
  const buffer = count("buffer");
  const factor = inner.number("factor", 1, "a number of at least 0", isNotNegative);
  inner.done();
  if (buffer > maxLength) inner.fail("buffer", `at most maxLength (${maxLength})`, buffer);
  return { maxLength, buffer, factor };
}
