/** The monitors: what a trainer without an exact checker would log, and how good its judge is on a labelled sample. */
import { type LearningProgressResult, learningProgress, type UnknownVerdict } from "fapo-kernels";
import { type Flags, type JudgeQuality, judgeQuality, stepMetrics } from "fapo-kernels/genrm";
import type { Rollouts } from "./rollout.ts";
import { checkReply } from "./task.ts";

export interface Monitored {
  /** By the judge's verdicts. */
  progress: LearningProgressResult;
  /** Of `stepMetrics`: flat numbers; with a labelled sample also the judge's quality and what it does to the shift point. */
  log: Record<string, number>;
  /** Of `stepMetrics`. */
  warnings: string[];
  /** The judge flags more of the labelled sample than is flawed, beyond chance. */
  overCritic: boolean;
}

export interface MonitorOptions {
  flawedPenalty: number;
  unknownVerdict: UnknownVerdict;
}

/** Right answers that are labelled in each step: labels are dear where no checker gives them. */
export const labelledPerStep = 16;
/** The latest ones are kept. */
const sampleSize = 4096;
/** Of the flawed and of the sound; from fewer no share of them says much. */
export const fewestOfAKind = 20;

export class Monitor {
  readonly #options: MonitorOptions;
  /** Index of the first error: the judge's (-2 unknown) and the true one. */
  #predicted: number[] = [];
  #truth: number[] = [];

  constructor(options: MonitorOptions) {
    this.#options = options;
  }

  /** @param verdicts `[S]`: `flawed` of all groups */
  step(rollouts: Rollouts, flags: readonly Flags[], verdicts: Int8Array): Monitored {
    const { flawedPenalty, unknownVerdict } = this.#options;
    const { correct, groupSize } = rollouts;
    const progress = learningProgress({ correct, flawed: verdicts, groupSize, flawedPenalty, unknownVerdict });
    this.#label(rollouts, flags);
    const quality = this.#quality();
    const { metrics, warnings } = stepMetrics({ progress, flags, flawedPenalty, ...(quality && { quality }) });
    return { progress, log: metrics, warnings, overCritic: quality?.overCritic ?? false };
  }

  /** The exact checker labels the first right answers of the step; problems are random, so that no choice is in that. */
  #label(rollouts: Rollouts, flags: readonly Flags[]): void {
    const { correct, groupSize, sequences } = rollouts;
    let left = labelledPerStep;
    for (let i = 0; i < sequences && left > 0; i++) {
      if (!correct[i]) continue;
      this.#predicted.push(flags[Math.floor(i / groupSize)]!.steps[i % groupSize]!);
      this.#truth.push(checkReply(rollouts.problem(i), rollouts.reply(i)).firstError);
      left--;
    }
    this.#predicted = this.#predicted.slice(-sampleSize);
    this.#truth = this.#truth.slice(-sampleSize);
  }

  /** Undefined without enough labels of both kinds. */
  #quality(): JudgeQuality | undefined {
    const truth = this.#truth;
    const sound = truth.filter((step) => step < 0).length;
    if (Math.min(sound, truth.length - sound) < fewestOfAKind) return undefined;
    return judgeQuality({ predicted: this.#predicted, truth, unknownVerdict: this.#options.unknownVerdict });
  }
}
