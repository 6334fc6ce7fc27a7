/** Rollouts: replies sampled from the policy, token by token. */
import { type Activations, forward, newActivations, setInputs } from "./policy.ts";
import type { Random } from "./random.ts";
import { checkReply, drawProblem, newProblem, type Problem, replyLength, vocab } from "./task.ts";

/** How a token is chosen from its logits, which start at `at`. */
export type Choose = (logits: Float32Array, at: number, problem: Problem, total: number, step: number) => number;

/**
 * A batch of replies in the packed layout: response `i` owns tokens `i * replyLength` to `(i + 1) * replyLength`, and
 * `groupSize` responses in a row answer the same problem. Its memory is made once and used for every batch.
 */
export class Rollouts {
  readonly groups: number;
  readonly groupSize: number;
  /** Responses. */
  readonly sequences: number;
  /** `[N]`: the replies. */
  readonly tokenIds: Int32Array;
  readonly activations: Activations;
  /** `[S]`, uint8: the outcome, which is all that the rule's reward sees. */
  readonly correct: Uint8Array;
  /** `[S]`, int8: 1 where the answer is right and a step is wrong. The truth, for curves; a judge has to find it. */
  readonly flawed: Int8Array;
  readonly #problems: Problem[];
  readonly #replies: Int32Array[];

  constructor(prompts: number, groupSize: number) {
    this.groups = prompts;
    this.groupSize = groupSize;
    this.sequences = prompts * groupSize;
    this.tokenIds = new Int32Array(this.sequences * replyLength);
    this.activations = newActivations(this.tokenIds.length);
    this.correct = new Uint8Array(this.sequences);
    this.flawed = new Int8Array(this.sequences);
    this.#problems = Array.from({ length: prompts }, newProblem);
    this.#replies = Array.from({ length: this.sequences }, (_, i) =>
      this.tokenIds.subarray(i * replyLength, (i + 1) * replyLength),
    );
  }

  /** The problem that response `i` answers. */
  problem(i: number): Problem {
    return this.#problems[Math.floor(i / this.groupSize)]!;
  }

  /** The tokens of response `i`. */
  reply(i: number): Int32Array {
    return this.#replies[i]!;
  }

  /** New problems, `groupSize` replies to each, and the exact outcome of every reply. */
  sample(parameters: Float32Array, random: Random, cribRate: number, choose: Choose): void {
    for (const problem of this.#problems) drawProblem(random, cribRate, problem);
    for (let i = 0; i < this.sequences; i++) {
      const problem = this.problem(i);
      const reply = this.reply(i);
      let total = problem.start;
      for (let step = 0; step < replyLength; step++) {
        const token = i * replyLength + step;
        setInputs(this.activations, token, total, problem.addends[step]!, problem.crib, step);
        forward(parameters, this.activations, token, token + 1);
        total = choose(this.activations.logits, token * vocab, problem, total, step);
        reply[step] = total;
      }
      const { correct, firstError } = checkReply(problem, reply);
      this.correct[i] = correct ? 1 : 0;
      this.flawed[i] = correct && firstError >= 0 ? 1 : 0;
    }
  }
}

/** Draws from the softmax of the logits, at temperature 1. */
export function sampling(random: Random): Choose {
  const weights = new Float64Array(vocab);
  return (logits, at) => {
    let max = Number.NEGATIVE_INFINITY;
    for (let v = 0; v < vocab; v++) max = Math.max(max, logits[at + v]!);
    let sum = 0;
    for (let v = 0; v < vocab; v++) {
      weights[v] = Math.exp(logits[at + v]! - max);
      sum += weights[v]!;
    }
    let rest = random() * sum;
    for (let v = 0; v < vocab - 1; v++) {
      rest -= weights[v]!;
      if (rest < 0) return v;
    }
    return vocab - 1;
  };
}

/** The token with the largest logit. */
export const greedy: Choose = (logits, at) => {
  let best = 0;
  for (let v = 1; v < vocab; v++) if (logits[at + v]! > logits[at + best]!) best = v;
  return best;
};
