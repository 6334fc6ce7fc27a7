/**
 * From the judge's text to a verdict. The text is read, never evaluated: the FAPO repository's reward function calls
 * `eval()` here, on what a model wrote.
 */
import type { GenRMError } from "./errors.ts";

interface VerdictBase {
  /** What the judge wrote; `""` when nothing came. */
  text: string;
  /** Completion tokens of the answer that counts. */
  tokens: number;
  /** From the question to the verdict, ms: waiting, retries and all. */
  ms: number;
  /** The server that gave the answer, or that failed last; null when none was asked. */
  server: string | null;
  /** Requests that were sent, hedges included. */
  attempts: number;
  hedged: boolean;
}

/** The judge has decided. */
export interface KnownVerdict extends VerdictBase {
  /** 1: the response has an error; 0: it is sound. As `fapoPenalty` takes it. */
  flawed: 0 | 1;
  /** Index of the earliest step with an error; -1 when there is none. */
  step: number;
  error: null;
}

/** There is no verdict. Never taken for sound or flawed here: `unknownVerdict` of `fapoPenalty` decides. */
export interface UnknownVerdict extends VerdictBase {
  flawed: -1;
  step: null;
  /** Why: `error.code` and `error.message`. */
  error: GenRMError;
}

export type Verdict = KnownVerdict | UnknownVerdict;

const boxStart = "\\boxed{";
const boxedInteger = /^\s*([+-]?[0-9]+)\s*\}/;

/**
 * Reads the last `\boxed{…}` of `text`: an integer from -1 to `steps - 1`, or null for anything else. Null also when
 * that last box never closes, even if an earlier one is whole. Differs from the reference (`int()`) in that `1_0` and
 * digits outside ASCII are not numbers.
 *
 * @param steps how many steps the solution has
 */
export function parseVerdict(text: string, steps: number = Number.POSITIVE_INFINITY): number | null {
  const start = text.lastIndexOf(boxStart);
  if (start < 0) return null;
  // Digits followed by the closing brace: a content with braces of its own is no integer, balanced or not.
  const match = boxedInteger.exec(text.slice(start + boxStart.length));
  if (!match) return null;
  const step = Number(match[1]) + 0; // + 0: "-0" is 0
  return Number.isSafeInteger(step) && step >= -1 && step < steps ? step : null;
}
