/** The findings in sentences and one table: the same words in the terminal and in the report. */
import { short } from "./charts.ts";
import type { Signs, Turn } from "./curves.ts";
import type { Accuracy } from "./evaluate.ts";
import type { Results, RunResult } from "./results.ts";

export interface Table {
  head: string[];
  rows: string[][];
}

/** The first sentence is the outcome. */
export function findings(results: Results): string[] {
  const { runs, settings, interrupted, stepsDone, warmStepsDone } = results;
  const stopped = interrupted
    ? [`Stopped after ${stepsDone} of ${settings.steps} steps: this is the report of what was done.`]
    : [];
  if (stepsDone === 0)
    return [...stopped, `The warm start had come to step ${warmStepsDone} of ${settings.warmSteps}.`];

  if (settings.quick) return [...stopped, smokeSentence, ...signSentences(runs), ...judgeSentences(results)];

  const outcome = runs.map(
    ({ name, end }) =>
      `${name} ends with ${percent(end!.alpha)} of the replies right for the right reasons, and ${percent(end!.flawedPositiveRatio)} of its right answers flawed`,
  );
  return [
    ...stopped,
    `${outcome.join("; ")}.`,
    startSentence(results),
    ...runs.map((run) => turnSentence(run, settings.steps)),
    ...signSentences(runs),
    ...judgeSentences(results),
  ];
}

const smokeSentence =
  "A smoke run: it shows that everything runs. It is too short to learn anything, so that its numbers say nothing about FAPO or GRPO.";

/** The warm start can add when it is greedy; what it lacks is to be sure of it. */
function startSentence({ runs, start }: Results): string {
  const first = runs[0]!.records[0]!;
  const sampled = `${percent(first.alpha + first.gamma)} of its sampled replies right, ${percent(first.alpha)} with sound steps`;
  return `Both start from a model that gets ${sampled}; greedy, it gets ${percent(start.withCrib.accuracy)} right.`;
}

function turnSentence({ name, flawedPenalty, turn, end }: RunResult, steps: number): string {
  const shift = `2/lambda - 1 = ${short(turn.shiftPoint)}`;
  const sign =
    turn.signChange === null
      ? "the mean advantage of flawed positives never turns negative"
      : `the mean advantage of flawed positives turns negative at step ${turn.signChange}`;
  if (flawedPenalty === 0) {
    const rho =
      turn.crossing === null
        ? `rho never gets there and ends at ${short(end!.rho)}`
        : `rho passes ${short(turn.shiftPoint)} at step ${turn.crossing}, which means nothing to it`;
    return `${name} has no penalty and no such point: ${rho}; ${sign}.`;
  }
  if (turn.shiftPoint <= 0)
    return `${name}: ${shift}, so that flawed positives are worse than their group from the start; ${sign}.`;
  if (turn.crossing === null)
    return `${name}: rho does not cross ${shift} within ${steps} steps and ends at ${short(end!.rho)}; ${sign}.`;
  return `${name}: rho crosses ${shift} at step ${turn.crossing}; ${sign}.`;
}

/** The batch as a whole turns about there; each prompt group turns exactly there. Nothing to say before one was past it. */
function signSentences(runs: RunResult[]): string[] {
  const counts = runs.filter(({ flawedPenalty }) => flawedPenalty > 0).map(({ signs }) => signs);
  const sum = (name: keyof Signs): number => counts.reduce((total, count) => total + count[name], 0);
  const [groups, past, asPredicted] = [sum("groups"), sum("past"), sum("asPredicted")];
  if (past === 0) return [];
  return [
    `Group by group: in ${asPredicted} of ${groups} prompt groups with a flawed positive, its advantage was negative exactly when the rho of the group, by the judge's verdicts, was past that point, as it was in ${past} of them.`,
  ];
}

/** Nothing to say of the exact judge. */
function judgeSentences({ runs, settings: { judge } }: Results): string[] {
  if (judge.kind === "exact") return [];
  return runs
    .filter(({ flawedPenalty }) => flawedPenalty > 0)
    .flatMap(({ name, judgement, judgeStats, turn }) => {
      const { judged, unknown, quality, overCritic } = judgement;
      const sentences = [];
      if (quality) {
        const { recall, falseAlarms, shiftPoint } = quality;
        const moved = Number.isFinite(shiftPoint)
          ? `moves the shift point from ${short(turn.shiftPoint)} to ${short(shiftPoint)}`
          : "leaves no shift point";
        sentences.push(
          `${name}'s judge, against the exact checker: it flags ${percent(recall)} of the flawed and ${percent(falseAlarms)} of the sound, which ${moved}.`,
        );
      }
      if (overCritic) sentences.push(`Warned at step ${overCritic.step}: ${overCritic.warning}.`);
      if (judge.kind === "servers" && judgeStats) {
        const codes = Object.entries(judgeStats.codes).map(([code, count]) => `${code} ${count}`);
        const reasons =
          codes.length > 0
            ? ` (${codes.join(", ")}), which ${judge.unknownVerdict === "exclude" ? "are left out" : `count as ${judge.unknownVerdict}`}`
            : "";
        const { count, p50, p99 } = judgeStats.latency;
        const times = `the latest ${count} verdicts took ${p50.toFixed(0)} ms in the median and ${p99.toFixed(0)} ms at the 99th percentile`;
        sentences.push(
          `${name}'s judge had no verdict on ${unknown} of ${judged} right answers${reasons}${count > 0 ? `; ${times}` : ""}.`,
        );
      }
      return sentences;
    });
}

export function finalTable({ runs, start, stepsDone, settings }: Results): Table {
  const greedy = ({ accuracy, reliable }: Accuracy): string => `${percent(accuracy)} / ${percent(reliable)}`;
  const names = ["", "warm start", ...runs.map(({ name }) => name)];
  const steps = Math.min(settings.ending, stepsDone);
  const row = (label: string, first: string, cell: (run: RunResult) => string): string[] => [
    label,
    first,
    ...runs.map(cell),
  ];
  const ends =
    stepsDone === 0
      ? []
      : [
          row("right answers", "", ({ end }) => percent(end!.accuracy)),
          row("right answers with sound steps", "", ({ end }) => percent(end!.alpha)),
          row("flawed among right answers", "", ({ end }) => percent(end!.flawedPositiveRatio)),
          row("rho", "", ({ end }) => short(end!.rho)),
          row(`rho crosses 2/lambda - 1`, "", ({ turn }) => crossingCell(turn)),
          row("judge flags of the flawed / sound", "", ({ judgement: { quality } }) =>
            quality ? `${percent(quality.recall)} / ${percent(quality.falseAlarms)}` : "?",
          ),
          row("shift point with this judge", "", shiftCell),
          row("right answers without verdict", "", ({ judgement: { judged, unknown } }) => `${unknown} of ${judged}`),
        ];
  // The first step samples from the warm start, before any update.
  const first = runs[0]?.records[0];
  if (first && ends.length > 0) {
    ends[0]![1] = percent(first.alpha + first.gamma);
    ends[1]![1] = percent(first.alpha);
    ends[2]![1] = percent(first.flawedPositiveRatio);
    ends[3]![1] = first.rho === null ? "inf" : short(first.rho);
  }
  return {
    head: [stepsDone === 0 ? "" : `sampled, last ${steps} steps`, ...names.slice(1)],
    rows: [
      ...ends,
      row("greedy, right / sound", greedy(start.withCrib), ({ evaluation }) => greedy(evaluation.withCrib)),
      row("the same with a useless crib", greedy(start.withoutUsefulCrib), ({ evaluation }) =>
        greedy(evaluation.withoutUsefulCrib),
      ),
    ],
  };
}

function crossingCell({ crossing, shiftPoint }: Turn): string {
  if (shiftPoint <= 0) return "from the start";
  return crossing === null ? "never" : `step ${crossing}`;
}

function shiftCell({ flawedPenalty, judgement: { quality } }: RunResult): string {
  if (flawedPenalty === 0) return "none";
  if (!quality) return "?";
  return Number.isFinite(quality.shiftPoint) ? short(quality.shiftPoint) : "none";
}

/** What the trainer logged, at about a dozen steps: the first, round ones and the last, as the progress lines. */
export function logTable({ records, judgeStats }: RunResult): Table {
  const every = Math.max(1, Math.ceil(records.length / 12));
  const columns: [head: string, name: string][] = [
    ["alpha", "alpha"],
    ["beta", "beta"],
    ["gamma", "gamma"],
    ["rho", "rho"],
    ["past the shift", "pastShiftShare"],
    ["flawed among right", "flawedPositiveRatio"],
    ["corrected", "correctedFlawedPositiveRatio"],
    ["no verdict", "unknownRate"],
    ["shift point", "judgedShiftPoint"],
    ...(judgeStats
      ? [
          ["judge p50, ms", "judgeLatencyP50"] satisfies [string, string],
          ["p99, ms", "judgeLatencyP99"] satisfies [string, string],
        ]
      : []),
  ];
  return {
    head: ["step", ...columns.map(([head]) => head)],
    rows: records
      .filter(({ step }) => step === 1 || step % every === 0 || step === records.length)
      .map(({ step, log }) => [String(step), ...columns.map(([, name]) => logCell(log[name]))]),
  };
}

/** Undefined: without a labelled sample. NaN: the judge cannot tell. */
function logCell(value: number | undefined): string {
  if (value === undefined || Number.isNaN(value)) return "?";
  return Number.isFinite(value) ? short(value) : "inf";
}

export function textTable({ head, rows }: Table): string {
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]!.length)));
  const line = (row: string[]): string =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("   ");
  return [line(head), widths.map((width) => "─".repeat(width)).join("───"), ...rows.map(line)].join("\n");
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}
