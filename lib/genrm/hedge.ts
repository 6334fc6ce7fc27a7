/**
 * A second copy of a slow request, elsewhere; the first answer wins.
 */
import { clearTimeout, setTimeout } from "node:timers";

export interface HedgeOptions {
  /** A request is slow when it takes longer than this share of the latest verdicts. Default 0.95. */
  quantile?: number;
  /** A request is slow after this many milliseconds. Default: by the quantile, once 20 verdicts are known. */
  after?: number | null;
  /** Copies are at most this share of all requests. Default 0.05. */
  maxFraction?: number;
}

/** A request under way. */
export interface Run<T> {
  promise: Promise<T>;
  abort(reason: unknown): void;
}

export interface HedgePlan<T> {
  /** Milliseconds after which a request counts as slow; undefined while that is not known. */
  after(): number | undefined;
  /** Starts the copy; null when there is no room for it now. */
  start(): Run<T> | null;
}

/** How often an answer is asked for that was not there at its moment (no slot, no latencies yet). */
const retryMs = 50;

/** Why the copy that lost was aborted. */
export const superseded: unique symbol = Symbol("superseded");

/** The first run's value, or that of its copy. Rejects when both failed, with the error of the first. */
export function withHedge<T>(first: Run<T>, plan: HedgePlan<T> | null): Promise<T> {
  if (!plan) return first.promise;
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const runs: Run<T>[] = [];
    let timer: NodeJS.Timeout | undefined;
    let failed = 0;
    let firstError: unknown;

    const watch = (run: Run<T>) => {
      runs.push(run);
      run.promise.then(
        (value) => {
          clearTimeout(timer);
          for (const other of runs) if (other !== run) other.abort(superseded);
          resolve(value);
        },
        (error) => {
          if (run === first) firstError = error;
          if (++failed < runs.length) return;
          clearTimeout(timer);
          reject(firstError);
        },
      );
    };

    // No slot, or no idea yet of what is slow: look again. A copy that is tried for once only would miss exactly the
    // busy phase in which the slow requests began.
    const arm = () => {
      const after = plan.after();
      const left = after === undefined ? retryMs : after - (performance.now() - started);
      timer = setTimeout(fire, Math.min(Math.max(left, 0), 2 ** 31 - 1));
    };
    const fire = () => {
      const after = plan.after();
      if (after !== undefined && performance.now() - started >= after) {
        const copy = plan.start();
        if (copy) return watch(copy);
        timer = setTimeout(fire, retryMs);
      } else {
        arm();
      }
    };
    watch(first);
    arm();
  });
}
