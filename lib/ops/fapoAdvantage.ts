/** fapoAdvantage: verdicts to advantages in one call. */
import { Arguments } from "../arguments.ts";
import { calls } from "../native.ts";
import {
  type FapoPenaltyOptions,
  type FapoPenaltyResult,
  nativePenalty,
  penaltyOutputs,
  readVerdicts,
} from "./fapoPenalty.ts";
import {
  type AdvantageOptions,
  advantageOutputs,
  type GroupAdvantageResult,
  nativeAdvantage,
  readConvention,
  readGrouping,
} from "./groupAdvantage.ts";

export interface FapoAdvantageOptions extends Omit<FapoPenaltyOptions, "out">, AdvantageOptions {
  /** The result of an earlier call of the same shape, to be written to and returned. */
  out?: FapoAdvantageResult | undefined;
}

export interface FapoAdvantageResult extends FapoPenaltyResult, GroupAdvantageResult {}

/**
 * `fapoPenalty`, then `groupAdvantage` of its `rewards` among its `valid` responses. `zeroVariance` is judged on
 * `fapoRewards`: a group that differs in length alone has nothing to teach, while one without a wrong answer, which an
 * accuracy filter drops, does where it has flawed positives.
 *
 * @returns all outputs of both ops
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DISPOSED`; nothing is written then
 */
export function fapoAdvantage(options: FapoAdvantageOptions): FapoAdvantageResult {
  const args = new Arguments("fapoAdvantage", options);
  const verdicts = readVerdicts(args);
  const sequences = verdicts.correct.length;
  const grouping = readGrouping(args, sequences);
  const convention = readConvention(args);
  const rewarded = penaltyOutputs(args, sequences);
  const compared = advantageOutputs(args, grouping);
  const result = args.reused<FapoAdvantageResult>() ?? { ...rewarded, ...compared };

  // Native code links the penalty's outputs to the inputs that are missing here.
  const inputs = { rewards: undefined, valid: undefined, varianceRewards: undefined };
  args.run(calls.fapoAdvantage, {
    penalty: nativePenalty(args, verdicts, rewarded),
    advantage: nativeAdvantage(args, inputs, grouping, convention, compared),
  });
  return result;
}
