/** The experiment: one warm start, forked into FAPO and GRPO, which then see the same problems. */
import type { Device } from "fapo-kernels";
import { type Evaluation, evaluate } from "./evaluate.ts";
import { exactJudge, type Judge, noisyJudge } from "./judge.ts";
import { randomStream } from "./random.ts";
import type { StepRecord } from "./record.ts";
import { Trainer } from "./trainer.ts";
import { warmStart } from "./warmStart.ts";

export interface Settings {
  seed: number;
  /** What a flawed positive loses under FAPO. */
  lambda: number;
  groupSize: number;
  /** Share of the judge's verdicts that are flipped. */
  judgeNoise: number;
  prompts: number;
  steps: number;
  warmSteps: number;
  device: Device;
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
}

export async function runExperiment(settings: Settings, { onProgress, stopped }: Control = {}): Promise<Experiment> {
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
    const judge = makeJudge(settings);
    const trainer = new Trainer({
      ...settings,
      ...fixed,
      parameters,
      judge,
      flawedPenalty,
      reportedPenalty: settings.lambda,
    });
    return { name, flawedPenalty, judge, trainer, records: [] as StepRecord[], seconds: 0 };
  });

  // Step by step in turn, so that both have come equally far whenever the user stops.
  let done = 0;
  while (done < steps && (await goOn())) {
    for (const run of runs) {
      const begin = performance.now();
      run.records.push(await run.trainer.step());
      run.seconds += secondsSince(begin);
    }
    done++;
    const records = runs.map(({ name, records }) => ({ name, record: records.at(-1)! }));
    onProgress?.({ phase: "training", done, of: steps, records });
  }

  return {
    settings,
    interrupted: done < steps,
    warmSteps: warmDone,
    start: evaluate(parameters, cribRate),
    runs: runs.map(({ name, flawedPenalty, judge, trainer, records, seconds }) => {
      const evaluation = evaluate(trainer.parameters, cribRate);
      return { name, flawedPenalty, judge: judge.name, records, evaluation, seconds };
    }),
    warmSeconds,
  };
}

function makeJudge({ judgeNoise, seed }: Settings): Judge {
  const exact = exactJudge();
  return judgeNoise > 0 ? noisyJudge(exact, judgeNoise, randomStream(seed, "judge")) : exact;
}

function secondsSince(begin: number): number {
  return (performance.now() - begin) / 1000;
}
