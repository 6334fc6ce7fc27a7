/**
 * The queue before the judge's servers: who is served next, who waits, and when a failed server is tried again.
 */
import { clearTimeout, setTimeout } from "node:timers";
import { onAbort } from "./abort.ts";
import type { BreakerOptions } from "./breaker.ts";
import { closedError, GenRMError } from "./errors.ts";
import {
  isFree,
  type Lease,
  makeServer,
  pickServer,
  type Server,
  type ServerConfig,
  type ServerStats,
  statsOf,
} from "./servers.ts";

export interface FleetOptions {
  servers: readonly ServerConfig[];
  breaker: Required<BreakerOptions>;
  outageTimeout: number;
  /** Whether the server says it is well. Null: no health check, the cooldown alone decides. */
  checkHealth: ((server: Server, signal: AbortSignal) => Promise<boolean>) | null;
  onBreaker: (server: Server) => void;
}

/** `answered`: the server works, whatever it said. `failed`: it does not. `unknown`: we left before it could show. */
export type Outcome = "answered" | "failed" | "unknown";

interface Waiter {
  tried: ReadonlySet<Server>;
  leave(): void;
  grant(lease: Lease): void;
  refuse(error: unknown): void;
}

export class Fleet {
  readonly #options: FleetOptions;
  readonly #servers: readonly Server[];
  /** Two queues, in order of arrival: items that were tried already go first. */
  readonly #retries: Set<Waiter> = new Set();
  readonly #fresh: Set<Waiter> = new Set();
  readonly #closing = new AbortController();
  #turn = 0;
  #wake: NodeJS.Timeout | undefined;
  /** Since when no server is in use; the last failure is the reason that waiting items are given. */
  #downSince: number | undefined;
  #lastFailure: unknown;

  constructor(options: FleetOptions) {
    this.#options = options;
    this.#servers = options.servers.map((server) => makeServer(server, options.breaker));
  }

  /** Requests that may be in flight at once over all servers. */
  get capacity(): number {
    return this.#servers.reduce((sum, server) => sum + server.maxInFlight, 0);
  }

  get queued(): number {
    return this.#retries.size + this.#fresh.size;
  }

  get servers(): readonly Server[] {
    return this.#servers;
  }

  /**
   * Waits for a free slot. First come, first served; a retry goes before new items, because its item waits longest.
   *
   * @param tried servers that failed this item: avoided as long as another one is in use
   */
  acquire(tried: ReadonlySet<Server>, signal: AbortSignal): Promise<Lease> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const queue = tried.size > 0 ? this.#retries : this.#fresh;
      let off = () => {};
      const waiter: Waiter = {
        tried,
        leave: () => {
          queue.delete(waiter);
          off();
        },
        grant: resolve,
        refuse: reject,
      };
      queue.add(waiter);
      this.#serve();
      if (!queue.has(waiter)) return;
      off = onAbort(signal, () => {
        waiter.leave();
        reject(signal.reason);
        if (this.queued === 0) this.#setWake();
      });
    });
  }

  /** A slot for a second copy of a slow request: only where nobody waits for it. Null when there is none now. */
  spare(busy: Server): Lease | null {
    if (this.queued > 0) return null;
    const server = pickServer(this.#servers, new Set([busy]), performance.now(), this.#turn);
    return server && server !== busy && server.breaker.state === "closed" ? this.#take(server) : null;
  }

  /**
   * Gives a slot back.
   * @param pause milliseconds in which the server wants to be left alone
   */
  release(lease: Lease, outcome: Outcome, details: { pause?: number; error?: unknown; tokens?: number } = {}): void {
    const { server } = lease;
    server.inFlight--;
    if (server.probe === lease) server.probe = null;
    if (details.pause) server.pausedUntil = Math.max(server.pausedUntil, performance.now() + details.pause);
    const { state } = server.breaker;
    if (outcome === "answered") {
      server.answered++;
      server.tokens += details.tokens ?? 0;
      server.breaker.succeed();
      clearTimeout(server.cooling);
      this.#downSince = undefined;
    } else if (outcome === "failed") {
      server.failed++;
      this.#lastFailure = details.error;
      if (server.breaker.fail()) this.#cool(server);
    }
    if (server.breaker.state !== state) this.#options.onBreaker(server);
    this.#serve();
  }

  stats(): ServerStats[] {
    return this.#servers.map(statsOf);
  }

  /** Refuses whoever waits and leaves no timer behind. */
  close(): void {
    this.#closing.abort(closedError());
    clearTimeout(this.#wake);
    for (const server of this.#servers) clearTimeout(server.cooling);
    this.#refuseAll(closedError());
  }

  #serve(): void {
    const now = performance.now();
    this.#serveQueue(this.#retries, now);
    this.#serveQueue(this.#fresh, now);
    if (this.queued > 0 && this.#outageOver(now)) this.#refuseAll(this.#outageError());
    this.#setWake();
  }

  #serveQueue(queue: Set<Waiter>, now: number): void {
    for (const waiter of queue) {
      if (!this.#servers.some((server) => isFree(server, now))) return;
      const server = pickServer(this.#servers, waiter.tried, now, this.#turn);
      if (!server) continue;
      waiter.leave();
      waiter.grant(this.#take(server));
    }
  }

  /** No server for too long, and none that is just being tried again. */
  #outageOver(now: number): boolean {
    if (this.#downSince === undefined || now - this.#downSince < this.#options.outageTimeout) return false;
    return this.#servers.every((server) => server.breaker.state === "open");
  }

  #refuseAll(error: GenRMError): void {
    for (const waiter of [...this.#retries, ...this.#fresh]) {
      waiter.leave();
      waiter.refuse(error);
    }
  }

  #take(server: Server): Lease {
    const lease = { server };
    server.inFlight++;
    if (server.breaker.state === "half-open") server.probe = lease;
    this.#turn = (this.#servers.indexOf(server) + 1) % this.#servers.length;
    return lease;
  }

  /** After the cooldown: ask for the server's health, and let one request try when it is well. */
  #cool(server: Server): void {
    if (this.#closing.signal.aborted) return;
    if (this.#downSince === undefined && this.#servers.every((each) => each.breaker.state !== "closed")) {
      this.#downSince = performance.now();
    }
    clearTimeout(server.cooling);
    server.cooling = setTimeout(() => void this.#revive(server), server.breaker.cooldown);
    // A client that nobody closed must not keep the process alive; items that wait do, through the wake timer.
    server.cooling.unref();
  }

  async #revive(server: Server): Promise<void> {
    const { checkHealth } = this.#options;
    const well = checkHealth ? await checkHealth(server, this.#closing.signal) : true;
    if (this.#closing.signal.aborted || server.breaker.state !== "open") return;
    if (well) {
      server.breaker.halfOpen();
      this.#options.onBreaker(server);
      this.#serve();
    } else {
      server.breaker.stayOpen();
      this.#cool(server);
    }
  }

  /**
   * Wakes those who wait when something changes without anybody giving a slot back: a pause ends, or an outage has lasted
   * too long. A healed server calls by itself. Somebody waiting keeps the process alive through this timer.
   */
  #setWake(): void {
    clearTimeout(this.#wake);
    this.#wake = undefined;
    if (this.queued === 0 || this.#closing.signal.aborted) return;
    const now = performance.now();
    const moments = this.#servers.map((server) => server.pausedUntil);
    if (this.#downSince !== undefined) moments.push(this.#downSince + this.#options.outageTimeout);
    const next = Math.min(...moments.filter((moment) => moment > now));
    this.#wake = setTimeout(() => this.#serve(), Math.min(Math.ceil(next - now) + 1, 2 ** 31 - 1));
  }

  #outageError(): GenRMError {
    const last = this.#lastFailure;
    const reason = last instanceof Error ? `; the last failure: ${last.message}` : "";
    const message = `GenRM: no server has been in use for ${this.#options.outageTimeout} ms${reason}`;
    return new GenRMError("ERR_GENRM_NETWORK", message, { cause: last });
  }
}
