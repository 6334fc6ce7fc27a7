/**
 * How good a judge is: FlawedPositiveBench and ProcessBench (arXiv 2510.22543, section 3 and eq. 6).
 */
import { expect } from "../check.ts";
import { withDefaults } from "./options.ts";
import { type Interval, wilsonInterval } from "./statistics.ts";

export interface JudgementOptions {
  /** `[S]`: index of the first error, -1 for none; null, or anything below -1, for no verdict. */
  predicted: ArrayLike<number | null>;
  /** `[S]`: the labels, -1 for sound. */
  truth: ArrayLike<number>;
  /** What no verdict counts as where only flawed or sound matters. `"flawed"` is what FAPO's `evaluate_genrm.py` does. */
  unknownVerdict?: "sound" | "flawed" | "exclude";
}

/** Predicted flawed against truly flawed. Ratios of nothing are 0, and their interval is [0, 1]. */
export interface FlawedPositiveMetrics {
  /** Judgements counted; less than given only with `unknownVerdict` `"exclude"`. */
  count: number;
  unknown: number;
  truePositives: number;
  falsePositives: number;
  falseNegatives: number;
  trueNegatives: number;
  precision: number;
  recall: number;
  f1: number;
  /** 95 %, Wilson. */
  precisionInterval: Interval;
  recallInterval: Interval;
  /** From the Wilson interval of TP / (TP + FP + FN), of which F1 is a monotone function. */
  f1Interval: Interval;
}

/** FlawedPositiveBench: is a right answer with an error found? Hand it right answers only. */
export function flawedPositiveMetrics(options: JudgementOptions): FlawedPositiveMetrics {
  const { predicted, truth, unknownVerdict } = judgements("flawedPositiveMetrics", options);
  const table = { truePositives: 0, falsePositives: 0, falseNegatives: 0, trueNegatives: 0 };
  let unknown = 0;
  for (let i = 0; i < truth.length; i++) {
    const verdict = predicted[i]!;
    if (verdict === null) unknown++;
    if (verdict === null && unknownVerdict === "exclude") continue;
    const flagged = verdict === null ? unknownVerdict === "flawed" : verdict !== -1;
    const flawed = truth[i] !== -1;
    table[flagged ? (flawed ? "truePositives" : "falsePositives") : flawed ? "falseNegatives" : "trueNegatives"]++;
  }
  const { truePositives: tp, falsePositives: fp, falseNegatives: fn, trueNegatives: tn } = table;
  const [low, high] = wilsonInterval(tp, tp + fp + fn);
  return {
    count: tp + fp + fn + tn,
    unknown,
    ...table,
    precision: ratio(tp, tp + fp),
    recall: ratio(tp, tp + fn),
    f1: ratio(2 * tp, 2 * tp + fp + fn),
    precisionInterval: wilsonInterval(tp, tp + fp),
    recallInterval: wilsonInterval(tp, tp + fn),
    f1Interval: [(2 * low) / (1 + low), (2 * high) / (1 + high)],
  };
}

/** No verdict is a wrong one here. Ratios of nothing are 0, so `f1` is 0 when one of the two classes is empty. */
export interface ProcessMetrics {
  flawedCount: number;
  soundCount: number;
  unknown: number;
  /** Share of the flawed whose first error was named exactly. */
  errorAccuracy: number;
  /** Share of the sound that were called so. */
  soundAccuracy: number;
  /** Harmonic mean of the two. */
  f1: number;
  /** 95 %, Wilson. */
  errorInterval: Interval;
  soundInterval: Interval;
}

/** ProcessBench: is the first error found, and is a sound solution left alone? */
export function processMetrics(options: Omit<JudgementOptions, "unknownVerdict">): ProcessMetrics {
  const { predicted, truth } = judgements("processMetrics", options);
  const counts = { flawed: 0, sound: 0 };
  const right = { flawed: 0, sound: 0 };
  let unknown = 0;
  for (let i = 0; i < truth.length; i++) {
    const kind = truth[i] === -1 ? "sound" : "flawed";
    counts[kind]++;
    if (predicted[i] === truth[i]) right[kind]++;
    if (predicted[i] === null) unknown++;
  }
  const errorAccuracy = ratio(right.flawed, counts.flawed);
  const soundAccuracy = ratio(right.sound, counts.sound);
  return {
    flawedCount: counts.flawed,
    soundCount: counts.sound,
    unknown,
    errorAccuracy,
    soundAccuracy,
    f1: ratio(2 * errorAccuracy * soundAccuracy, errorAccuracy + soundAccuracy),
    errorInterval: wilsonInterval(right.flawed, counts.flawed),
    soundInterval: wilsonInterval(right.sound, counts.sound),
  };
}

/**
 * The index that most votes name; the one seen first among equals. Votes without a verdict (null, or below -1) do not
 * count; without any other there is no verdict.
 */
export function majorityVote(votes: ArrayLike<number | null>): number | null {
  const counts = new Map<number, number>();
  for (const vote of Array.from(votes)) {
    if (isVerdict(vote)) counts.set(vote, (counts.get(vote) ?? 0) + 1);
  }
  let winner: number | null = null;
  for (const [vote, count] of counts) if (winner === null || count > counts.get(winner)!) winner = vote;
  return winner;
}

function judgements(op: string, options: JudgementOptions) {
  const o = withDefaults(op, options, {
    predicted: undefined as unknown as JudgementOptions["predicted"],
    truth: undefined as unknown as JudgementOptions["truth"],
    unknownVerdict: "sound" as NonNullable<JudgementOptions["unknownVerdict"]>,
  });
  for (const name of ["predicted", "truth"] as const) {
    const length = o[name]?.length;
    expect(Number.isSafeInteger(length) && length >= 0, op, name, "an array", o[name]);
  }
  expect(
    o.predicted.length === o.truth.length,
    op,
    "predicted",
    `of ${o.truth.length} elements, like truth`,
    o.predicted,
  );
  const kinds = ["sound", "flawed", "exclude"];
  expect(kinds.includes(o.unknownVerdict), op, "unknownVerdict", '"sound", "flawed" or "exclude"', o.unknownVerdict);
  const truth = Array.from(o.truth);
  const bad = truth.findIndex((label) => !Number.isSafeInteger(label) || label < -1);
  expect(bad < 0, op, `truth[${bad}]`, "an integer from -1", truth[bad]);
  const predicted = Array.from(o.predicted, (verdict) => (isVerdict(verdict) ? verdict : null));
  return { predicted, truth, unknownVerdict: o.unknownVerdict };
}

function isVerdict(value: number | null | undefined): value is number {
  return Number.isSafeInteger(value) && value! >= -1;
}

function ratio(part: number, whole: number): number {
  return whole > 0 ? part / whole : 0;
}
