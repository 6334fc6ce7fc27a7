/**
 * What is known of one server, and which one takes the next request.
 */
import { Breaker, type BreakerOptions, type BreakerState } from "./breaker.ts";

export interface ServerConfig {
  readonly url: string;
  readonly headers: Record<string, string>;
  readonly maxInFlight: number;
  readonly weight: number;
}

export interface Server extends ServerConfig {
  readonly breaker: Breaker;
  inFlight: number;
  /** The one request that tries a half-open server. */
  probe: Lease | null;
  /** Nothing is sent before this moment (`Retry-After`), on the clock of `performance.now()`. */
  pausedUntil: number;
  answered: number;
  failed: number;
  tokens: number;
  /** Runs until it is tried again. */
  cooling: NodeJS.Timeout | undefined;
}

/** The right to have one request in flight at `server`. Given back with `release`, exactly once. */
export interface Lease {
  readonly server: Server;
}

export interface ServerStats {
  url: string;
  state: BreakerState;
  inFlight: number;
  maxInFlight: number;
  answered: number;
  failed: number;
  tokens: number;
}

export function makeServer(config: ServerConfig, breaker: Required<BreakerOptions>): Server {
  return {
    ...config,
    breaker: new Breaker(breaker),
    inFlight: 0,
    probe: null,
    pausedUntil: 0,
    answered: 0,
    failed: 0,
    tokens: 0,
    cooling: undefined,
  };
}

export function statsOf({ url, breaker, inFlight, maxInFlight, answered, failed, tokens }: Server): ServerStats {
  return { url, state: breaker.state, inFlight, maxInFlight, answered, failed, tokens };
}

/**
 * The free server with the least outstanding requests for its weight; equals take turns. Failures in a row count as
 * outstanding: a server that fails fast would otherwise look idle and draw everything to itself.
 *
 * @param tried avoided as long as another one is in use, even if that one is not free now
 * @param turn where to begin looking
 */
export function pickServer(
  servers: readonly Server[],
  tried: ReadonlySet<Server>,
  now: number,
  turn: number,
): Server | undefined {
  const others = servers.some((server) => {
    return server.breaker.state === "closed" && server.pausedUntil <= now && !tried.has(server);
  });
  let best: Server | undefined;
  let bestLoad = Number.POSITIVE_INFINITY;
  for (let i = 0; i < servers.length; i++) {
    const server = servers[(turn + i) % servers.length]!;
    if (!isFree(server, now) || (others && tried.has(server))) continue;
    const load = (server.inFlight + server.breaker.streak) / server.weight;
    if (load < bestLoad) [best, bestLoad] = [server, load];
  }
  return best;
}

export function isFree(server: Server, now: number): boolean {
  if (server.inFlight >= server.maxInFlight || server.pausedUntil > now) return false;
  return server.breaker.state === "closed" || (server.breaker.state === "half-open" && server.probe === null);
}
