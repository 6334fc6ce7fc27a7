/** Judges: who says whether the steps behind a right answer are sound. */
import type { UnknownVerdict } from "fapo-kernels";
import { type Flags, GenRM, type GenRMOptions, type GenRMStats, type JudgeItem } from "fapo-kernels/genrm";
import type { Random } from "./random.ts";
import type { Rollouts } from "./rollout.ts";
import { checkReply, type Problem } from "./task.ts";

export type JudgeSettings =
  | { kind: "exact" }
  /** `noise`: the share of the exact verdicts that are turned around. */
  | { kind: "noisy"; noise: number }
  /** OpenAI-compatible servers. `unknownVerdict`: what counts where they have no verdict. */
  | { kind: "servers"; servers: readonly string[]; model: string; unknownVerdict: UnknownVerdict };

export interface Judge {
  /** For reports. */
  readonly name: string;
  /**
   * The verdicts of each prompt group, in the order of the groups: 1 flawed, 0 sound, -1 unknown. Asks about all of them
   * at once; each may be awaited alone. Only right answers are judged. A failed judgement is -1, never a guess.
   */
  judge(rollouts: Rollouts): readonly (Flags | Promise<Flags>)[];
  /** Of a judge that asks servers. */
  stats?(): GenRMStats;
  /** Ends what is still asked as unknown. */
  close?(): Promise<void>;
}

/** Never wrong: checks the steps by arithmetic. */
export function exactJudge(): Judge {
  return { name: "exact", judge: (rollouts) => checkGroups(rollouts, (firstError) => firstError) };
}

/** The exact judge, whose verdict is turned around with probability `noise`. */
export function noisyJudge(noise: number, random: Random): Judge {
  return {
    name: `exact, ${Number((noise * 100).toPrecision(3))} % of its verdicts flipped`,
    judge: (rollouts) =>
      checkGroups(rollouts, (firstError) => {
        if (random() >= noise) return firstError;
        return firstError < 0 ? 0 : -1;
      }),
  };
}

/** What tests change about the client. */
export type ClientOptions = Omit<Partial<GenRMOptions>, "servers" | "model">;

/** A demo goes on without verdicts rather than wait for minutes; a trainer would take the client's longer defaults. */
const clientDefaults: ClientOptions = {
  retries: 2,
  outageTimeout: 5000, // ms
  timeout: 300_000, // ms
  maxTokens: 2048,
  body: { temperature: 0 },
};

/** Asks OpenAI-compatible servers, in the form of the paper's prompt. */
export function serverJudge(servers: readonly string[], model: string, options: ClientOptions = {}): Judge {
  const client = new GenRM({ ...clientDefaults, ...options, servers, model });
  return {
    name: `${model} at ${servers.join(", ")}`,
    judge: (rollouts) =>
      Array.from({ length: rollouts.groups }, (_, group) => {
        const begin = group * rollouts.groupSize;
        const correct = rollouts.correct.subarray(begin, begin + rollouts.groupSize);
        const items = Array.from(correct, (_, i) => judgeItem(rollouts.problem(begin + i), rollouts.reply(begin + i)));
        return client.flags({ correct, items });
      }),
    stats: () => client.stats(),
    close: () => client.close(),
  };
}

/** The problem and a reply in words. The crib is left out: whoever checks the steps has no use for it. */
export function judgeItem({ start, addends, answer }: Problem, reply: Int32Array): JudgeItem {
  return {
    problem: `A running total starts at ${start}. The numbers ${addends.join(", ")} are added to it one after the other, and after each addition only the last digit of the total is kept. What is the total in the end?`,
    answer: String(answer),
    solution: Array.from(addends, (addend, i) => {
      const before = i === 0 ? start : reply[i - 1];
      return `The total is ${before}. Adding ${addend} and keeping the last digit gives ${reply[i]}.`;
    }),
  };
}

/** @param verdict from the first wrong step to the one that the judge names, -1 for none */
function checkGroups(rollouts: Rollouts, verdict: (firstError: number) => number): Flags[] {
  const { groups, groupSize, correct } = rollouts;
  return Array.from({ length: groups }, (_, group) => {
    const flags: Flags = {
      flawed: new Int8Array(groupSize),
      steps: new Int32Array(groupSize).fill(-2),
      ms: new Float64Array(groupSize).fill(Number.NaN),
      counts: { judged: 0, sound: 0, flawed: 0, unknown: 0 },
      codes: {},
    };
    for (let i = 0; i < groupSize; i++) {
      const sequence = group * groupSize + i;
      if (!correct[sequence]) continue;
      const step = verdict(checkReply(rollouts.problem(sequence), rollouts.reply(sequence)).firstError);
      flags.steps[i] = step;
      flags.flawed[i] = step < 0 ? 0 : 1;
      flags.counts.judged++;
      flags.counts[step < 0 ? "sound" : "flawed"]++;
    }
    return flags;
  });
}
