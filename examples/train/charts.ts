/** The charts as data: what the terminal, the report and the picture for the README draw. */
import { findTurn, type Pooled, smooth } from "./curves.ts";
import type { AlgorithmName, Experiment, Run } from "./experiment.ts";
import type { StepRecord } from "./record.ts";

export interface Tick {
  value: number;
  label: string;
}

export interface Series {
  name: AlgorithmName;
  /** One value per step, from step 1 on; NaN leaves a gap. */
  raw: number[];
  smooth: number[];
}

export interface Chart {
  id: "flawed" | "reliable" | "rho" | "accuracy" | "advantage";
  title: string;
  /** What the vertical axis measures. */
  unit: string;
  log: boolean;
  min: number;
  max: number;
  ticks: Tick[];
  /** The horizontal axis goes from step 0 to this. */
  steps: number;
  series: Series[];
  /** A horizontal line with a meaning. */
  reference?: Tick;
  /** The step where FAPO's rho crosses the shift point. */
  crossing?: { step: number; label: string };
}

/** Undefined before the first step: there is nothing to draw. */
export function makeCharts({ runs, settings }: Experiment): Chart[] | undefined {
  const steps = runs[0]?.records.length ?? 0;
  if (steps === 0) return undefined;
  const smoothed = new Map(runs.map((run) => [run, smooth(run.records)]));
  const series = (raw: (r: StepRecord) => number, smooth: (p: Pooled) => number): Series[] =>
    runs.map((run) => ({
      name: run.name,
      raw: run.records.map(raw),
      smooth: smoothed.get(run)!.map(smooth),
    }));
  const fapo = runs.find((run): run is Run => run.name === "FAPO")!;
  const { crossing, shiftPoint } = findTurn(fapo, settings.lambda);
  const shared = { steps, ...(crossing !== null && { crossing: { step: crossing, label: `step ${crossing}` } }) };
  const share = { ...shared, log: false, min: 0, max: 1, ticks: shareTicks };

  const rho = series(
    (r) => r.rho ?? Number.POSITIVE_INFINITY,
    (p) => p.rho,
  );
  const advantage = series(
    (r) => r.flawedAdvantage ?? Number.NaN,
    (p) => (p.gamma < fewest ? Number.NaN : p.flawedAdvantage),
  );
  return [
    {
      id: "flawed",
      title: "Flawed-positive ratio",
      unit: "share of right answers with a wrong step",
      ...share,
      series: series(
        (r) => r.flawedPositiveRatio,
        (p) => p.flawedPositiveRatio,
      ),
    },
    {
      id: "reliable",
      title: "Reliable accuracy",
      unit: "share of replies with a right answer and right steps",
      ...share,
      series: series(
        (r) => r.alpha,
        (p) => p.alpha,
      ),
    },
    {
      id: "rho",
      title: "Learning progress rho",
      unit: "fully correct replies per wrong reply, log scale",
      ...shared,
      ...logRange(rho, shiftPoint),
      series: rho,
      ...(shiftPoint > 0 &&
        Number.isFinite(shiftPoint) && { reference: { value: shiftPoint, label: `2/λ − 1 = ${short(shiftPoint)}` } }),
    },
    {
      id: "accuracy",
      title: "Outcome accuracy",
      unit: "share of replies with a right answer: all that the reward of GRPO sees",
      ...share,
      series: series(
        (r) => r.alpha + r.gamma,
        (p) => p.accuracy,
      ),
    },
    {
      id: "advantage",
      title: "Mean advantage of flawed positives",
      unit: "in deviations of their group; no curve where hardly any are left",
      ...shared,
      ...linearRange(advantage),
      series: advantage,
      reference: { value: 0, label: "0" },
    },
  ];
}

/** At most three significant digits, without trailing zeros. */
export function short(value: number): string {
  return String(Number(value.toPrecision(3)));
}

/** Round step numbers from 0 on, at most `count`. */
export function stepTicks(steps: number, count: number): number[] {
  const rough = steps / count;
  const decade = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const size = [1, 2, 5, 10].map((n) => n * decade).find((n) => n >= rough) ?? decade;
  return Array.from({ length: Math.floor(steps / size) + 1 }, (_, i) => i * size);
}

/** Where a value lies between the bottom (0) and the top (1) of a chart; beyond them it is held at the edge. */
export function height(chart: Chart, value: number): number {
  const scale = chart.log ? Math.log : (v: number): number => v;
  const low = scale(chart.min);
  const share = (scale(Math.min(Math.max(value, chart.min), chart.max)) - low) / (scale(chart.max) - low);
  return share;
}

/** Below this share of replies the flawed positives of a few steps are too few for a mean. */
const fewest = 0.002;

const shareTicks: Tick[] = [0, 25, 50, 75, 100].map((percent) => ({ value: percent / 100, label: `${percent} %` }));

type Range = Pick<Chart, "log" | "min" | "max" | "ticks">;

/** Whole decades around the smooth curves. */
function logRange(series: Series[], shiftPoint: number): Range {
  const values = [...series.flatMap((one) => one.smooth), shiftPoint].filter((v) => v > 0 && Number.isFinite(v));
  const decade = (value: number, round: (v: number) => number): number =>
    Math.min(3, Math.max(-2, round(Math.log10(value))));
  const low = Math.min(-1, decade(Math.min(1, ...values), Math.floor));
  const high = Math.max(1, decade(Math.max(1, ...values), Math.ceil));
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i)).map((value) => ({
    value,
    label: short(value),
  }));
  return { log: true, min: 10 ** low, max: 10 ** high, ticks };
}

/** Whole numbers around the curves, with 0 inside. */
function linearRange(series: Series[]): Range {
  const values = series.flatMap((one) => one.raw).filter(Number.isFinite);
  const min = Math.min(-1, Math.floor(Math.min(0, ...values)));
  const max = Math.max(1, Math.ceil(Math.max(0, ...values)));
  const size = max - min > 6 ? 2 : 1;
  const first = Math.ceil(min / size) * size;
  const ticks = Array.from({ length: Math.floor((max - first) / size) + 1 }, (_, i) => first + i * size).map(
    (value) => ({
      value,
      label: value < 0 ? `−${-value}` : String(value),
    }),
  );
  return { log: false, min, max, ticks };
}
