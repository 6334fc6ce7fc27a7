/**
 * The little statistics that metrics and monitors need.
 */
import { expect } from "../check.ts";

/** [low, high] */
export type Interval = [low: number, high: number];

/**
 * Wilson score interval of a share: `successes` of `count`, 95 % by default. Unlike the normal approximation it stays
 * within [0, 1] and has a width at shares of 0 and 1. Of nothing: [0, 1].
 *
 * @param z standard normal quantile of the confidence level
 */
export function wilsonInterval(successes: number, count: number, z: number = 1.959963984540054): Interval {
  const op = "wilsonInterval";
  expect(Number.isFinite(count) && count >= 0, op, "count", "a non-negative number", count);
  expect(successes >= 0 && successes <= count, op, "successes", `between 0 and ${count}`, successes);
  expect(z > 0 && z < Number.POSITIVE_INFINITY, op, "z", "a positive number", z);
  if (count === 0) return [0, 1];
  const share = successes / count;
  const spread = (z * z) / count;
  const center = (share + spread / 2) / (1 + spread);
  const half = (z / (1 + spread)) * Math.sqrt((share * (1 - share)) / count + spread / (4 * count));
  // At the ends the formula gives 0 and 1 exactly; rounding must not leave the interval.
  return [successes === 0 ? 0 : Math.max(0, center - half), successes === count ? 1 : Math.min(1, center + half)];
}

/** Linear interpolation between order statistics (as NumPy). `sorted` ascending; NaN when empty. */
export function quantileOfSorted(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return Number.NaN;
  const position = q * (sorted.length - 1);
  const below = Math.floor(position);
  const low = sorted[below]!;
  return low + (sorted[Math.min(below + 1, sorted.length - 1)]! - low) * (position - below);
}

/** Quantiles of a latency, ms. All 0 when nothing was measured. */
export interface LatencySummary {
  count: number;
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  max: number;
}

/** NaN entries are left out: nothing was measured there. */
export function summarizeLatency(ms: ArrayLike<number>): LatencySummary {
  const sorted = Float64Array.from(ms)
    .filter((value) => !Number.isNaN(value))
    .sort();
  const count = sorted.length;
  if (count === 0) return { count, mean: 0, p50: 0, p90: 0, p99: 0, max: 0 };
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((q) => quantileOfSorted(sorted, q)) as [number, number, number];
  return { count, mean: sorted.reduce((sum, value) => sum + value, 0) / count, p50, p90, p99, max: sorted[count - 1]! };
}

/** The latest values, for quantiles that follow the present load. */
export class Recent {
  readonly #values: Float64Array;
  #count = 0;

  constructor(size: number) {
    this.#values = new Float64Array(size);
  }

  get count(): number {
    return this.#count;
  }

  push(value: number): void {
    this.#values[this.#count++ % this.#values.length] = value;
  }

  /** The values kept, in no order. */
  values(): Float64Array {
    return this.#values.slice(0, Math.min(this.#count, this.#values.length));
  }
}
