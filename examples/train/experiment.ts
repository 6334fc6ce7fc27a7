/** The experiment: one warm start, forked into FAPO and GRPO, which then see the same problems. */
import type { Device } from "fapo-kernels";
import type { GenRMStats } from "fapo-kernels/genrm";
import { type Evaluation, evaluate } from "./evaluate.ts";
import { type ClientOptions, exactJudge, type Judge, type JudgeSettings, noisyJudge, serverJudge } from "./judge.ts";
import { randomStream } from "./random.ts";
import type { StepRecord } from "./record.ts";
import { Trainer } from "./trainer.ts";
import { warmStart } from "./warmStart.ts";

export interface Settings {
  seed: number;
  /** What a flawed positive loses under FAPO. */
  lambda: number;
  groupSize: number;
  judge: JudgeSettings;
  prompts: number;
  steps: number;
  warmSteps: number;
  device: Device;
  /** A smoke run, too short to learn. */
  quick: boolean;
}

/** Not flags: with them the shortcut is tempting and the right way can be learnt. */
export const fixed = {
  /** How often the crib is the answer: what GRPO's accuracy ends at. */
  cribRate: 0.6,
  learningRate: 3e-3,
  minibatches: 2,
} as const;

export type AlgorithmName = "FAPO" | "GRPO";

export interface Run {
  name: AlgorithmName;
  flawedPenalty: number;
  judge: string;
  /** Of a judge that asks servers. */
  judgeStats: GenRMStats | null;
  records: StepRecord[];
  /** After the last step, greedy. */
  evaluation: Evaluation;
  seconds: number;
}

export interface Experiment {
  settings: Settings;
  /** Stopped before the last step. */
  interrupted: boolean;
  warmSteps: number;
  /** Of the warm start, greedy. */
  start: Evaluation;
  runs: Run[];
  warmSeconds: number;
}

export interface Progress {
  phase: "warm start" | "training";
  done: number;
  of: number;
  /** The last record of each run while training. */
  records: { name: AlgorithmName; record: StepRecord }[];
}

export interface Control {
  onProgress?: (progress: Progress) => void;
  /** Asked after every step. */
  stopped?: () => boolean;
  /** Aborting it ends the wait for a judge: what it has not answered counts as unknown. The step goes on. */
  hurry?: AbortSignal;
  /** Told when the judge of FAPO turns out to be over-critic, once. */
  onWarning?: (sentence: string) => void;
  client?: ClientOptions;
}

export async function runExperiment(settings: Settings, control: Control = {}): Promise<Experiment> {
  const { onProgress, stopped, hurry, onWarning, client } = control;
  const { seed, steps, warmSteps } = settings;
  const { cribRate, learningRate } = fixed;
  // Between two steps the event loop gets its turn, so that Ctrl-C is heard.
  const goOn = async (): Promise<boolean> => {
    await new Promise((resolve) => setImmediate(resolve));
    return !stopped?.();
  };

  let warmDone = 0;
  const warmBegin = performance.now();
  const parameters = await warmStart({
    seed,
    steps: warmSteps,
    learningRate,
    cribRate,
    onStep(step) {
      warmDone = step;
      onProgress?.({ phase: "warm start", done: step, of: warmSteps, records: [] });
      return goOn();
    },
  });
  const warmSeconds = secondsSince(warmBegin);

  const runs = (["FAPO", "GRPO"] as const).map((name) => {
    const flawedPenalty = name === "FAPO" ? settings.lambda : 0;
    const judge = makeJudge(settings, flawedPenalty, client);
    const trainer = new Trainer({
      ...settings,
      ...fixed,
      parameters,
      judge,
      unknownVerdict: settings.judge.kind === "servers" ? settings.judge.unknownVerdict : "sound",
      flawedPenalty,
      reportedPenalty: settings.lambda,
    });
    return { name, flawedPenalty, judge, trainer, records: [] as StepRecord[], seconds: 0 };
  });

  const closeJudges = async (): Promise<void> => {
    await Promise.all(runs.map(({ judge }) => judge.close?.()));
  };
  const giveUp = () => void closeJudges();
  hurry?.addEventListener("abort", giveUp);
  // Step by step in turn, so that both have come equally far whenever the user stops.
  let done = 0;
  try {
    while (done < steps && (await goOn())) {
      for (const run of runs) {
        const begin = performance.now();
        const record = await run.trainer.step();
        run.seconds += secondsSince(begin);
        const first = record.overCritic && !run.records.some(({ overCritic }) => overCritic);
        if (first && run.flawedPenalty > 0) onWarning?.(`${run.name}, step ${record.step}: ${record.warnings[0]}`);
        run.records.push(record);
      }
      done++;
      const records = runs.map(({ name, records }) => ({ name, record: records.at(-1)! }));
      onProgress?.({ phase: "training", done, of: steps, records });
    }
  } finally {
    hurry?.removeEventListener("abort", giveUp);
    await closeJudges();
  }

  return {
    settings,
    interrupted: done < steps,
    warmSteps: warmDone,
    start: evaluate(parameters, cribRate),
    runs: runs.map(({ name, flawedPenalty, judge, trainer, records, seconds }) => {
      const evaluation = evaluate(trainer.parameters, cribRate);
      const judgeStats = judge.stats?.() ?? null;
      return { name, flawedPenalty, judge: judge.name, judgeStats, records, evaluation, seconds };
    }),
    warmSeconds,
  };
}

/** Servers are not asked for GRPO, to which verdicts are nothing: the exact judge keeps its monitors. */
function makeJudge({ judge, seed }: Settings, flawedPenalty: number, client: ClientOptions | undefined): Judge {
  switch (judge.kind) {
    case "exact":
      return exactJudge();
    case "noisy":
      return noisyJudge(judge.noise, randomStream(seed, "judge"));
    case "servers":
      return flawedPenalty === 0 ? exactJudge() : serverJudge(judge.servers, judge.model, client);
  }
}

function secondsSince(begin: number): number {
  return (performance.now() - begin) / 1000;
}
