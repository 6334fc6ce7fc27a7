/**
 * The numbers of an experiment in the form of train.json. All but `timing` and `environment` depend on the settings alone,
 * unless servers judge.
 */
import { createRequire } from "node:module";
import { arch, cpus, platform } from "node:os";
import { devices } from "fapo-kernels";
import type { GenRMStats } from "fapo-kernels/genrm";
import {
  countSigns,
  ending,
  endOf,
  findTurn,
  type Judgement,
  type Pooled,
  type Signs,
  smoothing,
  summarizeJudge,
  type Turn,
} from "./curves.ts";
import type { Evaluation } from "./evaluate.ts";
import { type AlgorithmName, type Experiment, fixed, type Settings } from "./experiment.ts";
import { parameterCount } from "./policy.ts";
import type { StepRecord } from "./record.ts";

export interface RunResult {
  name: AlgorithmName;
  flawedPenalty: number;
  judge: string;
  judgement: Judgement;
  /** Of a judge that asks servers: counts, codes, latencies in ms, and the servers. */
  judgeStats: GenRMStats | null;
  /** Of the smooth curves. */
  turn: Turn;
  /** The last steps, pooled. */
  end: Pooled | undefined;
  signs: Signs;
  /** Greedy, after the last step. */
  evaluation: Evaluation;
  records: StepRecord[];
}

export interface Results {
  settings: Settings & typeof fixed & { parameters: number; smoothing: number; ending: number };
  interrupted: boolean;
  stepsDone: number;
  warmStepsDone: number;
  /** Of the warm start, greedy. */
  start: Evaluation;
  runs: RunResult[];
  timing: {
    warmSeconds: number;
    trainingSeconds: Record<string, number>;
    wallSeconds: number;
    cpuSeconds: number;
  };
  environment: {
    package: string;
    version: string;
    node: string;
    platform: string;
    cpu: string;
    isa: string;
    threads: number;
  };
}

/** @param clock seconds since the program began, on the wall and of the processor */
export function makeResults(experiment: Experiment, clock: { wall: number; cpu: number }): Results {
  const { settings, interrupted, warmSteps, start, runs, warmSeconds } = experiment;
  return {
    settings: { ...settings, ...fixed, parameters: parameterCount, smoothing, ending },
    interrupted,
    stepsDone: runs[0]?.records.length ?? 0,
    warmStepsDone: warmSteps,
    start,
    runs: runs.map((run) => ({
      name: run.name,
      flawedPenalty: run.flawedPenalty,
      judge: run.judge,
      judgement: summarizeJudge(run),
      judgeStats: run.judgeStats,
      turn: findTurn(run, settings.lambda),
      end: endOf(run),
      signs: countSigns(run),
      evaluation: run.evaluation,
      records: run.records,
    })),
    timing: {
      warmSeconds,
      trainingSeconds: Object.fromEntries(runs.map(({ name, seconds }) => [name, seconds])),
      wallSeconds: clock.wall,
      cpuSeconds: clock.cpu,
    },
    environment: environment(),
  };
}

/** Infinity and NaN become null: JSON has neither. */
export function toJson(results: Results): string {
  return `${JSON.stringify(results, null, 1)}\n`;
}

function environment(): Results["environment"] {
  const manifest: { name: string; version: string } = createRequire(import.meta.url)("fapo-kernels/package.json");
  const { cpu } = devices();
  return {
    package: manifest.name,
    version: manifest.version,
    node: process.version,
    platform: `${platform()} ${arch()}`,
    cpu: cpus()[0]?.model ?? "unknown",
    isa: cpu.isa,
    threads: cpu.threads,
  };
}
