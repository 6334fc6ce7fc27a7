/**
 * The task: a running total with a crib.
 *
 * A problem is a start digit, three addends and a crib. The reply is three partial sums modulo 10. The rule that gives
 * the reward sees the last one alone. The crib is the right answer more often than chance: copying it is the shortcut
 * that makes a right answer out of wrong steps, a flawed positive.
 */
import { integer, type Random } from "./random.ts";

/** Digits, and the vocabulary of the policy. */
export const vocab = 10;
/** Addends of a problem, and tokens of a reply. */
export const replyLength = 3;

export interface Problem {
  start: number;
  addends: Int32Array; // [replyLength]
  answer: number;
  crib: number;
}

export interface Verdict {
  /** The last digit is right: all that the outcome reward sees. */
  correct: boolean;
  /** The first wrong step, or -1. */
  firstError: number;
}

export function newProblem(): Problem {
  return { start: 0, addends: new Int32Array(replyLength), answer: 0, crib: 0 };
}

/** Draws a problem into `problem`; its crib is the answer with probability `cribRate`, else any other digit. */
export function drawProblem(random: Random, cribRate: number, problem: Problem): void {
  problem.start = integer(random, vocab);
  let answer = problem.start;
  for (let i = 0; i < replyLength; i++) {
    problem.addends[i] = integer(random, vocab);
    answer = nextTotal(answer, problem, i);
  }
  problem.answer = answer;
  const useful = random() < cribRate;
  problem.crib = useful ? answer : (answer + 1 + integer(random, vocab - 1)) % vocab;
}

/** The total after step `step`, given the one before it. */
export function nextTotal(total: number, problem: Problem, step: number): number {
  return (total + problem.addends[step]!) % vocab;
}

/** Checks every step of a reply (`[replyLength]`) exactly. A right answer with `firstError >= 0` is a flawed positive. */
export function checkReply(problem: Problem, reply: Int32Array): Verdict {
  let total = problem.start;
  let firstError = -1;
  for (let i = 0; i < replyLength; i++) {
    total = nextTotal(total, problem, i);
    if (firstError < 0 && reply[i] !== total) firstError = i;
  }
  return { correct: reply[replyLength - 1] === total, firstError };
}
