/**
 * What the client tells while it works, and what it has counted.
 */
import type { BreakerState } from "./breaker.ts";
import type { GenRMErrorCode } from "./errors.ts";
import type { ServerStats } from "./servers.ts";
import type { LatencySummary } from "./statistics.ts";

export type GenRMEvent =
  /** An item has ended, one way or the other. `done` of `asked` items so far. */
  | {
      type: "verdict";
      flawed: 1 | 0 | -1;
      code: GenRMErrorCode | null;
      server: string | null;
      ms: number;
      tokens: number;
      attempts: number;
      hedged: boolean;
      asked: number;
      done: number;
      queued: number;
    }
  /** A request failed and its item is tried again after `delay` ms. */
  | { type: "retry"; server: string | null; code: GenRMErrorCode; message: string; attempt: number; delay: number }
  /** A slow request got a second copy. */
  | { type: "hedge"; from: string; to: string }
  /** A server was given up, is tried again, or works again. */
  | { type: "breaker"; server: string; state: BreakerState }
  /** A server asked to be left alone. */
  | { type: "pause"; server: string; ms: number };

/** Everything since the client was made. A plain object, ready for a logger. */
export interface GenRMStats {
  /** Items asked for; `asked - done` are under way. */
  asked: number;
  done: number;
  sound: number;
  flawed: number;
  unknown: number;
  /** How the unknown ones failed. */
  codes: Partial<Record<GenRMErrorCode, number>>;
  /** Items that wait for a slot. */
  queued: number;
  /** Sent, hedges and retries included. */
  requests: number;
  retries: number;
  hedges: number;
  /** Completion tokens of the answers that counted. */
  tokens: number;
  /** Of the latest 1,024 answers, from the question on. */
  latency: LatencySummary;
  servers: ServerStats[];
}
