/** What the records of a run say: smooth curves, the crossing, the end. */
import { judgedShiftPoint } from "fapo-kernels/genrm";
import type { Run } from "./experiment.ts";
import type { StepRecord } from "./record.ts";

/** Steps that a point of a smooth curve pools; one step alone has a few hundred replies and is noisy. */
export const smoothing = 9;
/** Steps that "at the end" pools. */
export const ending = 20;

/** Several steps as one large batch. */
export interface Pooled {
  alpha: number;
  gamma: number;
  beta: number;
  /** Infinity where nothing is wrong. */
  rho: number;
  accuracy: number;
  flawedPositiveRatio: number;
  /** NaN where nothing is flawed. */
  flawedAdvantage: number;
}

/** Every step has the same number of replies, so that shares may be averaged. */
export function pool(records: readonly StepRecord[]): Pooled {
  const mean = (value: (record: StepRecord) => number): number =>
    records.reduce((sum, record) => sum + value(record), 0) / records.length;
  const [alpha, gamma, beta] = [mean((r) => r.alpha), mean((r) => r.gamma), mean((r) => r.beta)];
  const right = alpha + gamma;
  return {
    alpha,
    gamma,
    beta,
    rho: beta > 0 ? alpha / beta : alpha > 0 ? Number.POSITIVE_INFINITY : 0,
    accuracy: right,
    flawedPositiveRatio: right > 0 ? gamma / right : 0,
    // Weighted by how many flawed positives each step has.
    flawedAdvantage: mean((r) => (r.flawedAdvantage ?? 0) * r.gamma) / gamma,
  };
}

/** One point per step: the steps around it, pooled. */
export function smooth(records: readonly StepRecord[]): Pooled[] {
  const side = (smoothing - 1) / 2;
  return records.map((_, i) => pool(records.slice(Math.max(0, i - side), i + side + 1)));
}

export interface Turn {
  /** Lambda's shift point with an exact judge, `2 / lambda - 1`. */
  shiftPoint: number;
  /** First step where the smooth rho is above it; null if there is none, or if it is not positive and nothing can cross it. */
  crossing: number | null;
  /** First step where the smooth mean advantage of flawed positives is negative; null if there is none. */
  signChange: number | null;
}

export function findTurn(run: Run, lambda: number): Turn {
  const shiftPoint = judgedShiftPoint({ flawedPenalty: lambda });
  const points = smooth(run.records);
  const first = (holds: (point: Pooled) => boolean): number | null => {
    const i = points.findIndex(holds);
    return i < 0 ? null : run.records[i]!.step;
  };
  return {
    shiftPoint,
    crossing: shiftPoint > 0 ? first(({ rho }) => rho > shiftPoint) : null,
    signChange: first(({ flawedAdvantage }) => flawedAdvantage < 0),
  };
}

/** The last steps of a run, pooled; undefined for a run without a step. */
export function endOf(run: Run): Pooled | undefined {
  return run.records.length === 0 ? undefined : pool(run.records.slice(-ending));
}

/** Groups with flawed positives, those of them past the shift, and those where the advantage had the predicted sign. */
export interface Signs {
  groups: number;
  past: number;
  asPredicted: number;
}

export function countSigns({ records }: Run): Signs {
  const sum = (name: "signedGroups" | "signedPast" | "signedAsPredicted"): number =>
    records.reduce((total, record) => total + record[name], 0);
  return { groups: sum("signedGroups"), past: sum("signedPast"), asPredicted: sum("signedAsPredicted") };
}

/** What the monitors of a run come to. */
export interface Judgement {
  /** Right answers in all steps, and those of them without a verdict. */
  judged: number;
  unknown: number;
  /** By the last labelled sample that was large enough; null without one. `shiftPoint`: Infinity where there is none. */
  quality: { recall: number; falseAlarms: number; shiftPoint: number } | null;
  /** When the judge first flagged more than is flawed, beyond chance. */
  overCritic: { step: number; warning: string } | null;
}

export function summarizeJudge({ records }: Run): Judgement {
  const sum = (name: "judged" | "judgeUnknown"): number => records.reduce((total, { log }) => total + log[name]!, 0);
  const last = records.findLast(({ log }) => "judgeRecall" in log)?.log;
  const first = records.find(({ overCritic }) => overCritic);
  return {
    judged: sum("judged"),
    unknown: sum("judgeUnknown"),
    quality: last
      ? { recall: last.judgeRecall!, falseAlarms: last.judgeFalseAlarms!, shiftPoint: last.judgedShiftPoint! }
      : null,
    overCritic: first ? { step: first.step, warning: first.warnings[0]! } : null,
  };
}
