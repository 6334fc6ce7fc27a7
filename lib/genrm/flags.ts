/**
 * Verdicts as arrays, as `fapoPenalty` takes them.
 */
import { expect } from "../check.ts";
import type { GenRMErrorCode } from "./errors.ts";
import type { Verdict } from "./verdict.ts";

/** Responses that belong together: those of one prompt, or a whole batch. */
export interface FlagGroup<Item> {
  /** `[S]`: any non-zero value is a right final answer. */
  correct: ArrayLike<number | boolean>;
  /** `[S]`. */
  items: ArrayLike<Item>;
}

export interface Flags {
  /** `[S]`: 1 flawed, 0 sound, -1 unknown. 0 for wrong answers, which are not judged. */
  flawed: Int8Array;
  /** `[S]`: index of the first error, -1 for none, -2 where there is no verdict. */
  steps: Int32Array;
  /** `[S]`: from the question to the verdict; NaN where nothing was asked. */
  ms: Float64Array;
  counts: { judged: number; sound: number; flawed: number; unknown: number };
  /** How the unknown ones failed. */
  codes: Partial<Record<GenRMErrorCode, number>>;
}

export function expectGroup(op: string, group: FlagGroup<unknown>): void {
  expect(typeof group === "object" && group !== null, op, "the group", "{ correct, items }", group);
  for (const name of ["correct", "items"] as const) {
    const length = group[name]?.length;
    expect(Number.isSafeInteger(length) && length >= 0, op, name, "an array", group[name]);
  }
  const { correct, items } = group;
  expect(correct.length === items.length, op, "items", `of ${correct.length} elements, like correct`, items);
}

export function countRight(correct: FlagGroup<unknown>["correct"]): number {
  let count = 0;
  for (let i = 0; i < correct.length; i++) if (correct[i]) count++;
  return count;
}

export class FlagsCollector {
  readonly flags: Flags;
  /** Positions of the right answers. */
  readonly asked: readonly number[];

  constructor(correct: ArrayLike<number | boolean>) {
    const sequences = correct.length;
    this.asked = Array.from({ length: sequences }, (_, i) => i).filter((i) => correct[i]);
    this.flags = {
      flawed: new Int8Array(sequences),
      steps: new Int32Array(sequences).fill(-2),
      ms: new Float64Array(sequences).fill(Number.NaN),
      counts: { judged: 0, sound: 0, flawed: 0, unknown: 0 },
      codes: {},
    };
  }

  add(index: number, { flawed, step, ms, error }: Verdict): void {
    const { counts, codes } = this.flags;
    this.flags.flawed[index] = flawed;
    this.flags.steps[index] = step ?? -2;
    this.flags.ms[index] = ms;
    counts.judged++;
    counts[flawed === -1 ? "unknown" : flawed === 1 ? "flawed" : "sound"]++;
    if (error) codes[error.code] = (codes[error.code] ?? 0) + 1;
  }
}
