/** The definitions of fapoPenalty, groupAdvantage and learningProgress, in float64, with no cleverness. */
import type { AdvantageScale, Baseline, OverlongOptions, Singleton, UnknownVerdict } from "fapo-kernels";

export interface PenaltyCase {
  correct: readonly number[];
  flawed: readonly number[];
  flawedPenalty?: number;
  unknownVerdict?: UnknownVerdict;
  responseLengths?: readonly number[];
  overlong?: OverlongOptions;
  rewardCorrect?: number;
  rewardWrong?: number;
}

export interface PenaltyReference {
  rewards: number[];
  fapoRewards: number[];
  valid: number[];
}

export function penaltyReference({
  correct,
  flawed,
  flawedPenalty = 1,
  unknownVerdict = "sound",
  responseLengths,
  overlong,
  rewardCorrect = 1,
  rewardWrong = -1,
}: PenaltyCase): PenaltyReference {
  const result: PenaltyReference = { rewards: [], fapoRewards: [], valid: [] };
  for (const [i, right] of correct.entries()) {
    const unknown = right !== 0 && flawed[i] === -1;
    const isFlawed = right !== 0 && (flawed[i] === 1 || (unknown && unknownVerdict === "flawed"));
    const reward = (right !== 0 ? rewardCorrect : rewardWrong) - (isFlawed ? flawedPenalty : 0);
    result.fapoRewards.push(reward);
    result.rewards.push(reward + (overlong && responseLengths ? overlongReference(responseLengths[i]!, overlong) : 0));
    result.valid.push(unknown && unknownVerdict === "exclude" ? 0 : 1);
  }
  return result;
}

export function overlongReference(length: number, { maxLength, buffer, factor = 1 }: OverlongOptions): number {
  return Math.min((-(length - (maxLength - buffer)) / buffer) * factor, 0);
}

export interface AdvantageConvention {
  baseline?: Baseline;
  scale?: AdvantageScale;
  ddof?: number;
  epsilon?: number;
  singleton?: Singleton;
}

export interface AdvantageCase extends AdvantageConvention {
  rewards: readonly number[];
  /** The group of each response. */
  ids: readonly number[];
  groups: number;
  valid?: readonly number[] | undefined;
  varianceRewards?: readonly number[] | undefined;
}

export interface AdvantageReference {
  advantages: number[];
  groupMean: number[];
  groupStd: number[];
  zeroVariance: number[];
}

export function advantageReference({
  rewards,
  ids,
  groups,
  valid = rewards.map(() => 1),
  varianceRewards = rewards,
  baseline = "mean",
  scale = "group-std",
  ddof = 1,
  epsilon = 1e-6,
  singleton = "zero",
}: AdvantageCase): AdvantageReference {
  const result: AdvantageReference = {
    advantages: rewards.map(() => 0),
    groupMean: [],
    groupStd: [],
    zeroVariance: [],
  };
  const membersOf = (group: number): number[] => [...rewards.keys()].filter((i) => ids[i] === group && valid[i] !== 0);
  const everyGroup = Array.from({ length: groups }, (_, group) => membersOf(group));
  // A group with a NaN or infinite reward is NaN itself and nothing to the others.
  const allFinite = (members: number[]): boolean => members.every((i) => Number.isFinite(rewards[i]));
  const batchStd = deviation(
    everyGroup.filter(allFinite).flatMap((members) => members.map((i) => rewards[i]!)),
    ddof,
  );

  for (const members of everyGroup) {
    const values = members.map((i) => rewards[i]!);
    const judged = members.map((i) => varianceRewards[i]!);
    result.zeroVariance.push(isConstant(judged) ? 1 : 0);
    if (!allFinite(members)) {
      result.groupMean.push(Number.NaN);
      result.groupStd.push(Number.NaN);
      for (const i of members) result.advantages[i] = Number.NaN;
      continue;
    }

    const raw = values.length === 1 && singleton === "raw";
    const groupMean = raw ? 0 : isConstant(values) ? (values[0] ?? 0) : mean(values);
    const groupStd = raw ? 1 : isConstant(values) ? 0 : deviation(values, ddof);
    result.groupMean.push(groupMean);
    result.groupStd.push(groupStd);
    if (values.length === 1 && singleton === "zero") continue;
    if (!raw && isConstant(values) && baseline !== "none") continue;

    // A raw singleton has deviation 1; of a whole batch without spread, too.
    const spread = scale === "batch-std" && !(raw && batchStd === 0) ? batchStd : groupStd;
    const divisor = scale === "none" ? 1 : spread + epsilon;
    for (const [k, i] of members.entries()) {
      const others = values.filter((_, other) => other !== k);
      const subtracted = raw || baseline === "none" ? 0 : baseline === "mean" ? groupMean : mean(others);
      result.advantages[i] = (values[k]! - subtracted) / divisor;
    }
  }
  return result;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviation(values: readonly number[], ddof: number): number {
  if (values.length <= 1) return 0;
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - ddof));
}

function isConstant(values: readonly number[]): boolean {
  return values.every((value) => value === values[0]);
}

/** groupAdvantage of what fapoPenalty returns, which is float32. */
export function fapoAdvantageReference(
  verdicts: PenaltyCase,
  grouping: { ids: readonly number[]; groups: number },
  convention: AdvantageConvention,
): PenaltyReference & AdvantageReference {
  const penalty = penaltyReference(verdicts);
  const advantage = advantageReference({
    ...grouping,
    ...convention,
    rewards: penalty.rewards.map(Math.fround),
    varianceRewards: penalty.fapoRewards.map(Math.fround),
    valid: penalty.valid,
  });
  return { ...penalty, ...advantage };
}

export interface ProgressReference {
  alpha: number;
  beta: number;
  gamma: number;
  rho: number;
  shiftPoint: number;
  pastShift: boolean;
  flawedPositiveRatio: number;
  unknownRate: number;
  zeroVariance: boolean;
}

/** Shares of the responses of one group. */
export function progressReference(
  correct: readonly number[],
  flawed: readonly number[],
  unknownVerdict: UnknownVerdict,
  lambda: number,
): ProgressReference {
  const ratio = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);
  const { fapoRewards, valid } = penaltyReference({ correct, flawed, flawedPenalty: lambda, unknownVerdict });
  const kinds = correct.map((right, i) => {
    if (valid[i] === 0) return "excluded";
    if (right === 0) return "wrong";
    return flawed[i] === 1 || (flawed[i] === -1 && unknownVerdict === "flawed") ? "flawed" : "sound";
  });
  const count = (kind: string): number => kinds.filter((other) => other === kind).length;
  const [c, w, f] = [count("sound"), count("wrong"), count("flawed")];
  const [alpha, beta, gamma] = [c, w, f].map((part) => ratio(part, c + w + f)) as [number, number, number];
  const right = correct.filter((value) => value !== 0).length;
  return {
    alpha,
    beta,
    gamma,
    rho: w === 0 && c > 0 ? Number.POSITIVE_INFINITY : ratio(c, w),
    shiftPoint: 2 / lambda - 1,
    pastShift: lambda * (c + w) > 2 * w,
    flawedPositiveRatio: ratio(f, c + f),
    unknownRate: ratio(correct.filter((value, i) => value !== 0 && flawed[i] === -1).length, right),
    zeroVariance: isConstant(fapoRewards.filter((_, i) => valid[i] !== 0)),
  };
}
