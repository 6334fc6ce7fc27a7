/**
 * What a trainer logs of the judge, and when it should worry. Plain objects of numbers, for any logger.
 */
import { expect } from "../check.ts";
import type { Flags } from "./flags.ts";
import { flawedPositiveMetrics, type JudgementOptions } from "./metrics.ts";
import { withDefaults } from "./options.ts";
import { type Interval, summarizeLatency, wilsonInterval } from "./statistics.ts";

/** One-sided 5 % of the standard normal. */
const significant = 1.6448536269514722;

/** How a judge does on a labelled sample of right answers. */
export interface JudgeQuality {
  count: number;
  unknown: number;
  /** Share of the flawed that it flags, `r`; and of the sound, `f`. */
  recall: number;
  falseAlarms: number;
  recallInterval: Interval;
  falseAlarmInterval: Interval;
  /** Share it flags; share that is flawed. */
  flagRate: number;
  flawedRate: number;
  /** `(false alarms - misses) / sqrt(false alarms + misses)` in counts: how far the flag rate is above the labels'. */
  excess: number;
  /** Flags more than there is, beyond chance (5 %, one-sided, McNemar's test). */
  overCritic: boolean;
}

/**
 * Measures a judge on labelled answers. A judge trained on outcomes alone tends to be over-critic: strong recall, weak
 * precision, which drives the policy away from sound answers (arXiv 2510.22543, section 4).
 */
export function judgeQuality(options: JudgementOptions): JudgeQuality {
  const table = flawedPositiveMetrics(options);
  const { count, truePositives, falsePositives, falseNegatives, trueNegatives } = table;
  const sound = falsePositives + trueNegatives;
  const disagreements = falsePositives + falseNegatives;
  const excess = disagreements === 0 ? 0 : (falsePositives - falseNegatives) / Math.sqrt(disagreements);
  return {
    count,
    unknown: table.unknown,
    recall: table.recall,
    falseAlarms: sound === 0 ? 0 : falsePositives / sound,
    recallInterval: table.recallInterval,
    falseAlarmInterval: wilsonInterval(falsePositives, sound),
    flagRate: count === 0 ? 0 : (truePositives + falsePositives) / count,
    flawedRate: count === 0 ? 0 : (truePositives + falseNegatives) / count,
    excess,
    overCritic: excess > significant,
  };
}

export interface ShiftPointOptions {
  /** Lambda. Default 1. */
  flawedPenalty?: number;
  /** Share of the flawed that the judge flags, `r`. Default 1. */
  recall?: number;
  /** Share of the sound that the judge flags, `f`. Default 0. */
  falseAlarms?: number;
}

/**
 * The `rho = alpha / beta` above which a flawed positive is expected to have a negative advantage:
 * `(2 - lambda r) / (lambda (r - f))`; `2 / lambda - 1` for an exact judge. Infinity when the judge flags the flawed no
 * more often than the sound, or lambda is 0: then there is no such point.
 */
export function judgedShiftPoint(options: ShiftPointOptions = {}): number {
  const op = "judgedShiftPoint";
  const { flawedPenalty, recall, falseAlarms } = withDefaults(op, options, {
    flawedPenalty: 1,
    recall: 1,
    falseAlarms: 0,
  });
  const finite = flawedPenalty >= 0 && flawedPenalty < Number.POSITIVE_INFINITY;
  expect(finite, op, "flawedPenalty", "a non-negative number", flawedPenalty);
  expect(recall >= 0 && recall <= 1, op, "recall", "between 0 and 1", recall);
  expect(falseAlarms >= 0 && falseAlarms <= 1, op, "falseAlarms", "between 0 and 1", falseAlarms);
  const gap = flawedPenalty * (recall - falseAlarms);
  return gap > 0 ? (2 - flawedPenalty * recall) / gap : Number.POSITIVE_INFINITY;
}

/**
 * The flawed share behind a flag rate, given the judge's errors: `(rate - f) / (r - f)`, within [0, 1] (Rogan and Gladen
 * 1978). NaN when the judge cannot tell.
 */
export function correctedFlawedRatio(flagRate: number, quality: { recall: number; falseAlarms: number }): number {
  const gap = quality.recall - quality.falseAlarms;
  return gap > 0 ? Math.min(1, Math.max(0, (flagRate - quality.falseAlarms) / gap)) : Number.NaN;
}

/** The batch part of what `learningProgress` returns. */
export interface StepProgress {
  /** Shares of fully correct, wrong and flawed responses; alpha / beta. */
  alpha: number;
  beta: number;
  gamma: number;
  rho: number;
  shiftPoint: number;
  /** Share of groups in which flawed positives have a negative advantage. */
  pastShiftShare: number;
  flawedPositiveRatio: number;
  unknownRate: number;
  zeroVarianceShare: number;
}

export interface StepMetricsOptions {
  /** Of `learningProgress`. */
  progress: { batch: StepProgress };
  /** What `flags` or `flagGroups` returned in this step. */
  flags?: Flags | readonly Flags[];
  /** Of `judgeQuality`, on a labelled sample; the younger the better. */
  quality?: JudgeQuality;
  /** Lambda. Default 1. */
  flawedPenalty?: number;
}

export interface StepMetrics {
  /** Ready for a logger: numbers alone, flat. */
  metrics: Record<string, number>;
  /** Sentences; empty when all is well. */
  warnings: string[];
}

/**
 * One step for the log: learning progress, the judge's counts and latencies, and, with a labelled sample, what the
 * judge's errors do to the shift point and to the flawed-positive ratio.
 */
export function stepMetrics(options: StepMetricsOptions): StepMetrics {
  const op = "stepMetrics";
  const { progress, flags, quality, flawedPenalty } = withDefaults(op, options, {
    progress: undefined as unknown as StepMetricsOptions["progress"],
    flags: [] as Flags | readonly Flags[],
    quality: undefined as JudgeQuality | undefined,
    flawedPenalty: 1,
  });
  expect(typeof progress?.batch === "object", op, "progress", "what learningProgress returned", progress);
  const { alpha, beta, gamma, rho, shiftPoint, pastShiftShare } = progress.batch;
  const { flawedPositiveRatio, unknownRate, zeroVarianceShare } = progress.batch;
  const judged = judgeMetrics(Array.isArray(flags) ? flags : [flags as Flags]);
  const metrics: Record<string, number> = {
    alpha,
    beta,
    gamma,
    rho,
    shiftPoint,
    pastShiftShare,
    flawedPositiveRatio,
    unknownRate,
    zeroVarianceShare,
    ...judged,
  };
  if (!quality) return { metrics, warnings: [] };
  const { recall, falseAlarms, excess } = quality;
  const flagRate = judged.judgeFlagRate;
  Object.assign(metrics, {
    judgeRecall: recall,
    judgeFalseAlarms: falseAlarms,
    judgeExcess: excess,
    judgedShiftPoint: judgedShiftPoint({ flawedPenalty, recall, falseAlarms }),
    correctedFlawedPositiveRatio: correctedFlawedRatio(flagRate, quality),
  });
  return { metrics, warnings: warningsOf(quality, flagRate, judged.judged - judged.judgeUnknown) };
}

function judgeMetrics(flags: readonly Flags[]) {
  const counts = { judged: 0, sound: 0, flawed: 0, unknown: 0 };
  for (const each of flags) {
    for (const name of Object.keys(counts) as (keyof typeof counts)[]) counts[name] += each.counts[name];
  }
  const latency = summarizeLatency(flags.flatMap(({ ms }) => [...ms]));
  const known = counts.sound + counts.flawed;
  return {
    judged: counts.judged,
    judgeUnknown: counts.unknown,
    judgeFlagRate: known === 0 ? 0 : counts.flawed / known,
    judgeLatencyMean: latency.mean,
    judgeLatencyP50: latency.p50,
    judgeLatencyP90: latency.p90,
    judgeLatencyP99: latency.p99,
    judgeLatencyMax: latency.max,
  };
}

function warningsOf(quality: JudgeQuality, flagRate: number, known: number): string[] {
  const { overCritic, recall, falseAlarms, count } = quality;
  const warnings: string[] = [];
  if (overCritic) {
    warnings.push(
      `over-critic judge: it flags ${percent(quality.flagRate)} of ${count} labelled answers, of which ${percent(quality.flawedRate)} are flawed`,
    );
  }
  const [low, high] = wilsonInterval(flagRate * known, known);
  const span = `its recall ${percent(recall)} and false alarms ${percent(falseAlarms)} on the labelled sample`;
  if (low > quality.recallInterval[1]) {
    warnings.push(`over-critic judge: it flags ${percent(flagRate)} of this step, more than ${span} can explain`);
  } else if (high < quality.falseAlarmInterval[0]) {
    warnings.push(`lenient judge: it flags ${percent(flagRate)} of this step, less than ${span} can explain`);
  }
  return warnings;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}
