/**
 * Counts what happens, and tells whoever listens.
 */

import type { GenRMEvent, GenRMStats } from "./events.ts";
import type { Fleet } from "./fleet.ts";
import { quantileOfSorted, Recent, summarizeLatency } from "./statistics.ts";
import type { Verdict } from "./verdict.ts";

/** Answers that a quantile needs before it means anything. */
const minAnswers = 20;

export class Tally {
  readonly #onEvent: ((event: GenRMEvent) => void) | undefined;
  readonly #codes: GenRMStats["codes"] = {};
  readonly #latencies = new Recent(1024);
  readonly #requestTimes = new Recent(512);
  readonly #counts = {
    asked: 0,
    done: 0,
    sound: 0,
    flawed: 0,
    unknown: 0,
    requests: 0,
    retries: 0,
    hedges: 0,
    tokens: 0,
  };

  constructor(onEvent: ((event: GenRMEvent) => void) | undefined) {
    this.#onEvent = onEvent;
  }

  asked(): void {
    this.#counts.asked++;
  }

  /** The caller aborted the item, and knows. */
  forgotten(): void {
    this.#counts.asked--;
  }

  sent(): void {
    this.#counts.requests++;
  }

  retried(event: Omit<Extract<GenRMEvent, { type: "retry" }>, "type">): void {
    this.#counts.retries++;
    this.emit({ type: "retry", ...event });
  }

  hedged(from: string, to: string): void {
    this.#counts.hedges++;
    this.emit({ type: "hedge", from, to });
  }

  mayHedge(maxFraction: number): boolean {
    return this.#counts.hedges <= maxFraction * this.#counts.requests;
  }

  /** A request was answered after `ms`. */
  answered(ms: number): void {
    this.#requestTimes.push(ms);
  }

  /** Quantile of the latest answered requests, ms; undefined while there are too few. */
  requestTime(quantile: number): number | undefined {
    if (this.#requestTimes.count < minAnswers) return undefined;
    return quantileOfSorted(this.#requestTimes.values().sort(), quantile);
  }

  ended(verdict: Verdict, queued: number): void {
    const { flawed, error, server, ms, tokens, attempts, hedged } = verdict;
    const counts = this.#counts;
    counts.done++;
    counts.tokens += tokens;
    counts[flawed === -1 ? "unknown" : flawed === 1 ? "flawed" : "sound"]++;
    if (error) this.#codes[error.code] = (this.#codes[error.code] ?? 0) + 1;
    else this.#latencies.push(ms);
    const { asked, done } = counts;
    const code = error?.code ?? null;
    this.emit({ type: "verdict", flawed, code, server, ms, tokens, attempts, hedged, asked, done, queued });
  }

  emit(event: GenRMEvent): void {
    try {
      this.#onEvent?.(event);
    } catch (error) {
      // A listener's bug is the caller's to see, and must not end an item: as EventTarget does it.
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  stats(fleet: Fleet): GenRMStats {
    return {
      ...this.#counts,
      codes: { ...this.#codes },
      queued: fleet.queued,
      latency: summarizeLatency(this.#latencies.values()),
      servers: fleet.stats(),
    };
  }
}
