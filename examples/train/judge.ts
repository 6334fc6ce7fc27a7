/** Judges: who says whether the steps behind a right answer are sound. */
import type { Random } from "./random.ts";
import type { Rollouts } from "./rollout.ts";
import { checkReply } from "./task.ts";

export interface Judge {
  /** For reports: `exact`, `noisy (20 %)`. */
  readonly name: string;
  /**
   * Writes one verdict per response into `flawed` (`[sequences]`, int8): 1 flawed, 0 sound, -1 unknown. Only responses
   * with `rollouts.correct` are looked at; the others may keep any of the three. A failed judgement is -1, never a guess.
   */
  judge(rollouts: Rollouts, flawed: Int8Array): void | Promise<void>;
}

/** Never wrong: checks the steps by arithmetic. */
export function exactJudge(): Judge {
  return {
    name: "exact",
    judge(rollouts, flawed) {
      for (let i = 0; i < rollouts.sequences; i++) {
        flawed[i] = rollouts.correct[i] && checkReply(rollouts.problem(i), rollouts.reply(i)).firstError >= 0 ? 1 : 0;
      }
    },
  };
}

/** Turns the verdict of another judge around with probability `errorRate`; an unknown one stays unknown. */
export function noisyJudge(judge: Judge, errorRate: number, random: Random): Judge {
  return {
    name: `${judge.name}, ${Number((errorRate * 100).toPrecision(3))} % of its verdicts flipped`,
    async judge(rollouts, flawed) {
      await judge.judge(rollouts, flawed);
      for (let i = 0; i < rollouts.sequences; i++) {
        if (rollouts.correct[i] && flawed[i] !== -1 && random() < errorRate) flawed[i] = 1 - flawed[i]!;
      }
    },
  };
}
