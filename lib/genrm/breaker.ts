/**
 * Circuit breaker of one server: closed (in use), open (left alone), half-open (one request may try).
 */

export type BreakerState = "closed" | "open" | "half-open";

export interface BreakerOptions {
  /** Failures in a row that open it. Default 3. */
  failures?: number;
  /** Milliseconds until the first try after it opened; doubles with every failed try. Default 5,000. */
  cooldown?: number;
  /** What the doubling ends at, ms. Default 60,000. */
  maxCooldown?: number;
}

export class Breaker {
  readonly #options: Required<BreakerOptions>;
  #state: BreakerState = "closed";
  #streak = 0;
  #opened = 0;

  constructor(options: Required<BreakerOptions>) {
    this.#options = options;
  }

  get state(): BreakerState {
    return this.#state;
  }

  /** Failures in a row. */
  get streak(): number {
    return this.#streak;
  }

  /** The server answered. Also when open: a request that started before is proof of life as well. */
  succeed(): void {
    this.#state = "closed";
    this.#streak = 0;
    this.#opened = 0;
  }

  /** Returns whether this failure opened it. Failures of requests that were under way when it opened change nothing. */
  fail(): boolean {
    this.#streak++;
    if (this.#state === "open") return false;
    if (this.#state === "closed" && this.#streak < this.#options.failures) return false;
    this.#open();
    return true;
  }

  /** The cooldown is over and nothing speaks against a try. */
  halfOpen(): void {
    if (this.#state === "open") this.#state = "half-open";
  }

  /** The health check failed: wait again, longer. */
  stayOpen(): void {
    if (this.#state !== "closed") this.#open();
  }

  /** Milliseconds to wait before the next try. */
  get cooldown(): number {
    return Math.min(this.#options.maxCooldown, this.#options.cooldown * 2 ** (this.#opened - 1));
  }

  #open(): void {
    this.#state = "open";
    this.#opened++;
  }
}
