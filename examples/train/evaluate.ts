/** Greedy evaluation on problems that are the same for every seed. */
import { randomStream } from "./random.ts";
import { greedy, Rollouts } from "./rollout.ts";
import { vocab } from "./task.ts";

export interface Accuracy {
  /** Share of right answers. */
  accuracy: number;
  /** Share of right answers with sound steps. */
  reliable: number;
}

export interface Evaluation {
  /** With the crib as in training. */
  withCrib: Accuracy;
  /** With a random digit for a crib: what the policy knows without the shortcut. */
  withoutUsefulCrib: Accuracy;
}

const problems = 1000;
const evaluationSeed = 20_251_022;

export function evaluate(parameters: Float32Array, cribRate: number): Evaluation {
  const rollouts = new Rollouts(problems, 1);
  const accuracy = (rate: number): Accuracy => {
    rollouts.sample(parameters, randomStream(evaluationSeed, "evaluation"), rate, greedy);
    let [right, flawed] = [0, 0];
    for (let i = 0; i < problems; i++) {
      right += rollouts.correct[i]!;
      flawed += rollouts.flawed[i]!;
    }
    return { accuracy: right / problems, reliable: (right - flawed) / problems };
  };
  return { withCrib: accuracy(cribRate), withoutUsefulCrib: accuracy(1 / vocab) };
}
