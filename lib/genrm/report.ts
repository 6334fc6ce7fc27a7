/**
 * Metrics per subset, as an object for JSON and as a table for people.
 */
import {
  type FlawedPositiveMetrics,
  flawedPositiveMetrics,
  type JudgementOptions,
  majorityVote,
  type ProcessMetrics,
  processMetrics,
} from "./metrics.ts";
import { type JudgeQuality, judgedShiftPoint, judgeQuality } from "./monitor.ts";
import type { EvalRow } from "./rows.ts";
import type { Interval } from "./statistics.ts";

export interface SubsetReport {
  rows: number;
  /** Rows without a verdict. */
  unknown: number;
  /** Over the right answers. */
  flawedPositive: FlawedPositiveMetrics;
  /** Over all rows. */
  process: ProcessMetrics;
}

export interface EvalReport {
  /** Most votes that a row has. */
  votes: number;
  unknownVerdict: "sound" | "flawed" | "exclude";
  subsets: Record<string, SubsetReport>;
  all: SubsetReport;
  /** Mean over the subsets, as the ProcessBench leaderboard has it. */
  meanProcessF1: number;
  quality: JudgeQuality;
  /** Where the judge's errors move the shift of FAPO, for lambda 1. null: there is no such point. */
  judgedShiftPoint: number | null;
}

export function makeReport(rows: readonly EvalRow[], unknownVerdict: EvalReport["unknownVerdict"]): EvalReport {
  const bySubset = new Map<string, EvalRow[]>();
  for (const row of rows) {
    const subset = bySubset.get(row.subset);
    if (subset) subset.push(row);
    else bySubset.set(row.subset, [row]);
  }
  const subsets: Record<string, SubsetReport> = Object.create(null);
  for (const [name, members] of bySubset) subsets[name] = reportOf(members, unknownVerdict);
  const f1s = Object.values(subsets).map(({ process }) => process.f1);
  const quality = judgeQuality(judgementsOf(rows.filter(isCorrect), unknownVerdict));
  const shift = judgedShiftPoint({ recall: quality.recall, falseAlarms: quality.falseAlarms });
  return {
    votes: rows.reduce((most, { votes }) => Math.max(most, votes?.length ?? 0), 0),
    unknownVerdict,
    subsets,
    all: reportOf(rows, unknownVerdict),
    meanProcessF1: f1s.length === 0 ? 0 : f1s.reduce((sum, f1) => sum + f1, 0) / f1s.length,
    quality,
    judgedShiftPoint: Number.isFinite(shift) ? shift : null,
  };
}

export function formatReport(report: EvalReport): string {
  const names = Object.keys(report.subsets);
  const lines = [
    ["subset", "rows", "flawed", "unknown", "FPB precision", "FPB recall", "FPB F1", "PB error", "PB sound", "PB F1"],
    ...names.map((name) => lineOf(name, report.subsets[name]!)),
    ...(names.length > 1 ? [lineOf("all", report.all)] : []),
  ];
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  const table = lines.map((line) =>
    line.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join("  "),
  );
  const { quality, judgedShiftPoint: shift } = report;
  const notes = [
    names.length > 1 ? `PB F1, mean of the subsets: ${percent(report.meanProcessF1)}` : "",
    `judge: recall ${percent(quality.recall)}, false alarms ${percent(quality.falseAlarms)}, flags ${percent(quality.flagRate)} where ${percent(quality.flawedRate)} are flawed`,
    `shift of FAPO with this judge (lambda 1): ${shift === null ? "none" : `rho ${shift.toFixed(3)}`}; with an exact one rho 1`,
    quality.overCritic ? `warning: over-critic, flags more than there is (z = ${quality.excess.toFixed(1)})` : "",
    "Percent, with 95 % intervals (Wilson). FPB: flawed found among right answers. PB: first error named, sound left alone.",
  ];
  return `${[...table, "", ...notes.filter((note) => note !== "")].join("\n")}\n`;
}

function reportOf(rows: readonly EvalRow[], unknownVerdict: EvalReport["unknownVerdict"]): SubsetReport {
  const { predicted, truth } = judgementsOf(rows, unknownVerdict);
  const process = processMetrics({ predicted, truth });
  return {
    rows: rows.length,
    unknown: process.unknown,
    flawedPositive: flawedPositiveMetrics(judgementsOf(rows.filter(isCorrect), unknownVerdict)),
    process,
  };
}

function judgementsOf(
  rows: readonly EvalRow[],
  unknownVerdict: EvalReport["unknownVerdict"],
): Required<JudgementOptions> {
  return {
    predicted: rows.map(({ votes }) => majorityVote(votes ?? [])),
    truth: rows.map(({ truth }) => truth),
    unknownVerdict,
  };
}

function isCorrect({ correct }: EvalRow): boolean {
  return correct;
}

function lineOf(name: string, { rows, unknown, flawedPositive: fpb, process: pb }: SubsetReport): string[] {
  return [
    name,
    String(rows),
    String(pb.flawedCount),
    String(unknown),
    withInterval(fpb.precision, fpb.precisionInterval),
    withInterval(fpb.recall, fpb.recallInterval),
    withInterval(fpb.f1, fpb.f1Interval),
    withInterval(pb.errorAccuracy, pb.errorInterval),
    withInterval(pb.soundAccuracy, pb.soundInterval),
    tenths(pb.f1),
  ];
}

function withInterval(share: number, [low, high]: Interval): string {
  return `${tenths(share)} [${tenths(low)}, ${tenths(high)}]`;
}

function tenths(share: number): string {
  return (100 * share).toFixed(1);
}

function percent(share: number): string {
  return `${tenths(share)} %`;
}
