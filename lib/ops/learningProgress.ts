/** learningProgress: where a group stands between warm-up and refinement. */
import { Arguments, type Int8Input, isNotNegative, type Uint8Input } from "../arguments.ts";
import { onHost, type TensorData } from "../tensor.ts";
import { type UnknownVerdict, unknownVerdicts } from "./fapoPenalty.ts";
import { type GroupingOptions, readGrouping } from "./groupAdvantage.ts";

export interface LearningProgressOptions extends GroupingOptions {
  /** `[S]`, uint8: whether the final answer is right. */
  correct: Uint8Input | readonly number[];
  /** `[S]`, int8: 1 flawed, 0 sound, -1 unknown. */
  flawed: Int8Input | readonly number[];
  /** Default `"sound"`; `"exclude"` leaves such responses out of every share but `unknownRate`. */
  unknownVerdict?: UnknownVerdict;
  /** Lambda. Default 1. */
  flawedPenalty?: number;
}

/** Shares over the responses that are not excluded; an empty ratio is 0. */
export interface Progress {
  /** Share of fully correct responses. */
  alpha: number;
  /** Share of wrong responses. */
  beta: number;
  /** Share of flawed positives. */
  gamma: number;
  /** alpha / beta; `Infinity` where nothing is wrong and something is right. */
  rho: number;
  /** 2 / lambda - 1: above this rho a flawed positive has a negative advantage. `Infinity` for lambda 0. */
  shiftPoint: number;
  /** Whether it is past that point: lambda (alpha + beta) > 2 beta. */
  pastShift: boolean;
  /** gamma / (alpha + gamma): the share of flawed ones among right answers. */
  flawedPositiveRatio: number;
  /** Share of right answers without a verdict. */
  unknownRate: number;
}

export interface BatchProgress extends Progress {
  /** Share of the groups that are past the shift. */
  pastShiftShare: number;
  /** Share of the groups whose FAPO rewards are all equal: nothing to learn from. */
  zeroVarianceShare: number;
}

export interface LearningProgressResult {
  groups: (Progress & { zeroVariance: boolean })[];
  /** All responses as one; `pastShift` of the whole, `pastShiftShare` over the groups. */
  batch: BatchProgress;
}

/**
 * Learning progress of FAPO (arXiv 2510.22543, eq. 16-19): per group and for the batch, the shares of fully correct
 * (alpha), wrong (beta) and flawed (gamma) responses, rho = alpha / beta, and whether a flawed positive is already
 * worse than the group's mean. That holds per prompt group, not at one moment of training. Computed on the host: tensors
 * of a GPU are copied there.
 *
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DISPOSED`
 */
export function learningProgress(options: LearningProgressOptions): LearningProgressResult {
  const args = new Arguments("learningProgress", options);
  const correct = onHost(args.op, args.arrayOfAnyLength("correct", "uint8", "plain"), "uint8");
  const flawed = onHost(args.op, args.array("flawed", "int8", correct.length, "plain"), "int8");
  const unknownVerdict = unknownVerdicts[args.choice("unknownVerdict", unknownVerdicts)]!;
  const lambda = args.number("flawedPenalty", 1, "a number of at least 0", isNotNegative);
  const grouping = readGrouping(args, correct.length);
  args.done();

  const groupOf = groupLookup(args, grouping);
  const counts = Array.from({ length: grouping.groups }, () => new Counts());
  const total = new Counts();
  for (let i = 0; i < correct.length; i++) {
    const verdict = correct[i] ? flawed[i]! : 0;
    if (verdict < -1 || verdict > 1) args.fail(`flawed[${i}]`, "1 (flawed), 0 (sound) or -1 (unknown)", verdict);
    for (const count of [counts[groupOf(i)]!, total]) count.add(correct[i] !== 0, verdict, unknownVerdict);
  }

  const groups = counts.map((count) => ({ ...count.progress(lambda), zeroVariance: count.zeroVariance(lambda) }));
  const share = (chosen: (group: (typeof groups)[number]) => boolean): number =>
    ratio(groups.filter(chosen).length, groups.length);
  return {
    groups,
    batch: {
      ...total.progress(lambda),
      pastShiftShare: share((group) => group.pastShift),
      zeroVarianceShare: share((group) => group.zeroVariance),
    },
  };
}

class Counts {
  #sound = 0;
  #flawed = 0;
  #wrong = 0;
  #unknown = 0;
  #right = 0;

  add(correct: boolean, verdict: number, unknownVerdict: UnknownVerdict): void {
    if (!correct) {
      this.#wrong++;
      return;
    }
    this.#right++;
    if (verdict < 0) {
      this.#unknown++;
      if (unknownVerdict === "exclude") return;
    }
    if (verdict > 0 || (verdict < 0 && unknownVerdict === "flawed")) {
      this.#flawed++;
    } else {
      this.#sound++;
    }
  }

  progress(lambda: number): Progress {
    const counted = this.#sound + this.#flawed + this.#wrong;
    const rho = this.#wrong === 0 && this.#sound > 0 ? Number.POSITIVE_INFINITY : ratio(this.#sound, this.#wrong);
    return {
      alpha: ratio(this.#sound, counted),
      beta: ratio(this.#wrong, counted),
      gamma: ratio(this.#flawed, counted),
      rho,
      shiftPoint: 2 / lambda - 1,
      pastShift: lambda * (this.#sound + this.#wrong) > 2 * this.#wrong,
      flawedPositiveRatio: ratio(this.#flawed, this.#sound + this.#flawed),
      unknownRate: ratio(this.#unknown, this.#right),
    };
  }

  /** Whether all FAPO rewards (1, 1 - lambda, -1) are equal. */
  zeroVariance(lambda: number): boolean {
    const rewards = new Set<number>();
    if (this.#sound) rewards.add(1);
    if (this.#flawed) rewards.add(1 - lambda);
    if (this.#wrong) rewards.add(-1);
    return rewards.size <= 1;
  }
}

function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}

/** The group of a response, with the checks that the native ops make. */
function groupLookup(args: Arguments, grouping: ReturnType<typeof readGrouping>): (i: number) => number {
  const { groupSize, groups, sequences } = grouping;
  if (grouping.groupIds) {
    const groupIds = onHost(args.op, grouping.groupIds, "int32");
    return (i) => {
      const id = groupIds[i]!;
      if (id < 0 || id >= groups) args.fail(`groupIds[${i}]`, `in 0..${groups - 1}`, id);
      return id;
    };
  }
  if (!grouping.groupOffsets) return (i) => Math.floor(i / groupSize);
  const of = groupsOfOffsets(args, onHost(args.op, grouping.groupOffsets, "int32"), sequences);
  return (i) => of[i]!;
}

function groupsOfOffsets(args: Arguments, offsets: TensorData, sequences: number): Int32Array {
  const of = new Int32Array(sequences);
  if (offsets[0] !== 0) args.fail("groupOffsets[0]", "0", offsets[0]);
  for (let k = 1; k < offsets.length; k++) {
    const [begin, end] = [offsets[k - 1]!, offsets[k]!];
    if (end < begin || end > sequences) args.fail(`groupOffsets[${k}]`, `in ${begin}..${sequences}`, end);
    of.fill(k - 1, begin, end);
  }
  const last = offsets[offsets.length - 1]!;
  if (last !== sequences) {
    args.fail(`groupOffsets[${offsets.length - 1}]`, `${sequences}, the number of responses`, last);
  }
  return of;
}
