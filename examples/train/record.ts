/** What one step of training saw: learning progress, and how it shows in the advantages. */
import { type LearningProgressResult, learningProgress } from "fapo-kernels";
import type { Monitored } from "./monitor.ts";
import type { Rollouts } from "./rollout.ts";

/** What one step saw, before its update. Shares count the truth, not what the judge said; `log` is what the judge said. */
export interface StepRecord extends Omit<Monitored, "progress"> {
  /** From 1 on. */
  step: number;
  /** Share of fully correct, of flawed (right answer, wrong step) and of wrong responses. */
  alpha: number;
  gamma: number;
  beta: number;
  /** alpha / beta; null where nothing is wrong. */
  rho: number | null;
  flawedPositiveRatio: number;
  /** Mean advantage of the flawed positives; null where there are none. */
  flawedAdvantage: number | null;
  /** Share of the prompt groups that are past the shift. */
  pastShiftShare: number;
  /** Groups where every response earned the same: nothing to learn from. */
  zeroVarianceShare: number;
  /** Groups with a response that was judged flawed and has an advantage other than 0, … */
  signedGroups: number;
  /** … those of them that are past the shift, … */
  signedPast: number;
  /** … and those where it is negative exactly when the group's rho is past `2 / lambda - 1`. */
  signedAsPredicted: number;
  /** In nats per token, and the share of clipped tokens, in the last minibatch. */
  entropy: number;
  clipFraction: number;
}

type TrueProgress = Pick<
  StepRecord,
  "alpha" | "gamma" | "beta" | "rho" | "flawedPositiveRatio" | "flawedAdvantage" | "pastShiftShare"
>;
type JudgedProgress = Pick<StepRecord, "zeroVarianceShare" | "signedGroups" | "signedPast" | "signedAsPredicted">;

/** By the exact checker, whatever the judge said. */
export function trueProgress(rollouts: Rollouts, advantages: Float32Array, flawedPenalty: number): TrueProgress {
  const { correct, flawed, groupSize } = rollouts;
  const { batch } = learningProgress({ correct, flawed, groupSize, flawedPenalty });
  return {
    alpha: batch.alpha,
    gamma: batch.gamma,
    beta: batch.beta,
    rho: Number.isFinite(batch.rho) ? batch.rho : null,
    flawedPositiveRatio: batch.flawedPositiveRatio,
    flawedAdvantage: meanWhere(advantages, flawed),
    pastShiftShare: batch.pastShiftShare,
  };
}

/** By the verdicts that the advantages were made of: does their sign turn where `learningProgress` says? */
export function judgedProgress(
  { correct, groupSize }: Rollouts,
  verdicts: Int8Array,
  advantages: Float32Array,
  { groups, batch }: LearningProgressResult,
): JudgedProgress {
  let signedGroups = 0;
  let signedPast = 0;
  let signedAsPredicted = 0;
  for (const [g, { pastShift }] of groups.entries()) {
    // All flawed positives of a group have one advantage: the first will do.
    const end = (g + 1) * groupSize;
    let i = g * groupSize;
    while (i < end && !(correct[i] && verdicts[i] === 1)) i++;
    // Exactly at the shift point it is 0, up to rounding.
    if (i === end || Math.abs(advantages[i]!) < 1e-5) continue;
    signedGroups++;
    if (pastShift) signedPast++;
    if (advantages[i]! < 0 === pastShift) signedAsPredicted++;
  }
  return { zeroVarianceShare: batch.zeroVarianceShare, signedGroups, signedPast, signedAsPredicted };
}

/** Null where nothing is chosen. */
function meanWhere(values: Float32Array, chosen: Int8Array): number | null {
  let [sum, count] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    if (chosen[i] !== 1) continue;
    sum += values[i]!;
    count++;
  }
  return count === 0 ? null : sum / count;
}
