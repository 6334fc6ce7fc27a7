/**
 * The client's options: their meaning, their defaults, their checks.
 */
import { expect, FapoError } from "../check.ts";
import type { BreakerOptions } from "./breaker.ts";
import type { GenRMEvent } from "./events.ts";
import type { HedgeOptions } from "./hedge.ts";
import { fapoPrompt, type JudgeItem, type JudgePrompt } from "./prompt.ts";
import type { ServerConfig } from "./servers.ts";
import { parseVerdict } from "./verdict.ts";

export interface ServerOptions {
  /** Base URL of an OpenAI-compatible server, with or without `/v1`. A worker's, rather than a router's. */
  url: string;
  /** Requests in flight here. Default: the client's `maxInFlight`. */
  maxInFlight?: number;
  /** Share of the load, relative to the other servers. Default: `maxInFlight`. */
  weight?: number;
  /** Default: the client's `apiKey`. */
  apiKey?: string;
}

export interface BackoffOptions {
  /** Milliseconds before the first retry; doubles with each, times a random 0.5 to 1. Default 500. */
  base?: number;
  /** What the doubling ends at, ms. Default 30,000. */
  max?: number;
  /** Longest `Retry-After` that is obeyed, ms; longer ones count as this. Default 60,000. */
  maxRetryAfter?: number;
}

export interface GenRMOptions<Item = JudgeItem> {
  servers: readonly (string | ServerOptions)[];
  /** Name of the model, as the servers know it. */
  model: string;
  /** `"sglang"` sends a request id and calls `/abort_request` on cancelling. vLLM and llama.cpp: `"openai"`. */
  flavor?: "openai" | "sglang";
  /** Requests in flight per server. Default 32. Beyond a server's batch more only makes each slower. */
  maxInFlight?: number;
  /** Milliseconds without a byte, also before the first one. Default 60,000; Infinity for none. */
  idleTimeout?: number;
  /** Milliseconds for one request in all, without the queue. Default 1,800,000; Infinity for none. */
  timeout?: number;
  /** Milliseconds without any server in use, after which items that wait end as unknown. Default 120,000. */
  outageTimeout?: number;
  /** Tries after the first, preferably on other servers. Default 3. */
  retries?: number;
  backoff?: BackoffOptions;
  /** Whether an answer without a verdict is asked for again, within `retries`. Default false. */
  retryUnparsed?: boolean;
  /** Second copies of slow requests; off unless given. */
  hedge?: HedgeOptions | null;
  breaker?: BreakerOptions;
  /** Path of the health check that precedes the next try of a failed server. Default `"/health"`; null for none. */
  healthPath?: string | null;
  /** Messages and number of steps of an item. Default `fapoPrompt`. */
  prompt?: (item: Item) => JudgePrompt;
  /** Index of the first error, -1, or null where the text has no verdict. Default `parseVerdict`. */
  parse?: (text: string, steps: number) => number | null;
  /** Default 16,384, as in FAPO. */
  maxTokens?: number;
  /** More fields for the request: `temperature`, `top_p`, `grammar`, … */
  body?: Readonly<Record<string, unknown>>;
  apiKey?: string;
  headers?: Readonly<Record<string, string>>;
  /** Default: the global one. It fails after 300 s without a byte, which streaming all but rules out. */
  fetch?: typeof fetch;
  /** Told of everything that happens. What it throws is reported as an uncaught exception. */
  onEvent?: (event: GenRMEvent) => void;
}

export interface ResolvedOptions<Item> {
  servers: ServerConfig[];
  model: string;
  flavor: "openai" | "sglang";
  idleTimeout: number;
  timeout: number;
  outageTimeout: number;
  retries: number;
  backoff: Required<BackoffOptions>;
  retryUnparsed: boolean;
  hedge: (Required<HedgeOptions> & { after: number | null }) | null;
  breaker: Required<BreakerOptions>;
  healthPath: string | null;
  prompt: (item: Item) => JudgePrompt;
  parse: (text: string, steps: number) => number | null;
  maxTokens: number;
  body: Readonly<Record<string, unknown>>;
  fetch: typeof fetch;
  onEvent: ((event: GenRMEvent) => void) | undefined;
}

const op = "GenRM";

/** Checks and completes. Everything that can be wrong is wrong here, not at the first request. */
export function resolveOptions<Item>(given: GenRMOptions<Item>): ResolvedOptions<Item> {
  const o = withDefaults(op, given, {
    servers: undefined,
    model: undefined,
    flavor: "openai",
    maxInFlight: 32,
    idleTimeout: 60_000,
    timeout: 1_800_000,
    outageTimeout: 120_000,
    retries: 3,
    backoff: {},
    retryUnparsed: false,
    hedge: null,
    breaker: {},
    healthPath: "/health",
    prompt: fapoPrompt,
    parse: parseVerdict,
    maxTokens: 16_384,
    body: {},
    apiKey: undefined,
    headers: {},
    fetch: globalThis.fetch,
    onEvent: undefined,
  }) as unknown as Required<GenRMOptions<Item>>;

  expect(Array.isArray(o.servers) && o.servers.length > 0, op, "servers", "an array of at least one server", o.servers);
  expect(typeof o.model === "string" && o.model !== "", op, "model", "a name", o.model);
  expect(o.flavor === "openai" || o.flavor === "sglang", op, "flavor", '"openai" or "sglang"', o.flavor);
  expectPositiveInteger("maxInFlight", o.maxInFlight);
  for (const name of ["idleTimeout", "timeout", "outageTimeout"] as const) expectDuration(op, name, o[name]);
  expect(Number.isSafeInteger(o.retries) && o.retries >= 0, op, "retries", "a non-negative integer", o.retries);
  expect(typeof o.retryUnparsed === "boolean", op, "retryUnparsed", "true or false", o.retryUnparsed);
  const path = o.healthPath;
  expect(path === null || (typeof path === "string" && path.startsWith("/")), op, "healthPath", "null or a path", path);
  for (const name of ["prompt", "parse", "fetch"] as const) {
    expect(typeof o[name] === "function", op, name, "a function", o[name]);
  }
  expect(o.onEvent === undefined || typeof o.onEvent === "function", op, "onEvent", "a function", o.onEvent);
  expectPositiveInteger("maxTokens", o.maxTokens);
  expect(typeof o.body === "object" && o.body !== null, op, "body", "an object", o.body);

  const backoff = withDefaults("GenRM.backoff", o.backoff, { base: 500, max: 30_000, maxRetryAfter: 60_000 });
  for (const name of ["base", "max", "maxRetryAfter"] as const)
    expectDuration("GenRM.backoff", name, backoff[name], false);
  const breaker = withDefaults("GenRM.breaker", o.breaker, { failures: 3, cooldown: 5000, maxCooldown: 60_000 });
  expectPositiveInteger("failures", breaker.failures, "GenRM.breaker");
  for (const name of ["cooldown", "maxCooldown"] as const) expectDuration("GenRM.breaker", name, breaker[name], false);

  const { maxInFlight: _, apiKey: __, headers: ___, ...rest } = o;
  const servers = o.servers.map((server) => resolveServer(server, o));
  const urls = new Set(servers.map(({ url }) => url));
  expect(urls.size === servers.length, op, "servers", "different from each other", [...urls]);
  return { ...rest, servers, backoff, breaker, hedge: resolveHedge(o.hedge) };
}

function resolveHedge(given: HedgeOptions | null): ResolvedOptions<unknown>["hedge"] {
  if (given === null) return null;
  const name = "GenRM.hedge";
  const hedge = withDefaults(name, given, { quantile: 0.95, after: null as number | null, maxFraction: 0.05 });
  const { quantile, after, maxFraction } = hedge;
  expect(quantile > 0 && quantile < 1, name, "quantile", "between 0 and 1", quantile);
  if (after !== null) expectDuration(name, "after", after);
  expect(maxFraction > 0 && maxFraction <= 1, name, "maxFraction", "above 0 and at most 1", maxFraction);
  return hedge;
}

function resolveServer(given: string | ServerOptions, client: Required<GenRMOptions<never>>): ServerConfig {
  const name = "GenRM.servers";
  const { url, maxInFlight, weight, apiKey } = withDefaults(name, typeof given === "string" ? { url: given } : given, {
    url: "",
    maxInFlight: client.maxInFlight,
    weight: undefined as number | undefined,
    apiKey: client.apiKey as string | undefined,
  });
  expect(typeof url === "string" && URL.canParse(url), name, "url", "an http or https URL", url);
  const parsed = new URL(url);
  const web = parsed.protocol === "http:" || parsed.protocol === "https:";
  expect(web, name, "url", "an http or https URL", url);
  const secret = parsed.username !== "" || parsed.password !== "";
  expect(!secret, name, "url", "without user and password (use apiKey or headers)", "a URL with them");
  expectPositiveInteger("maxInFlight", maxInFlight, name);
  expect(weight === undefined || (weight > 0 && weight < Number.POSITIVE_INFINITY), name, "weight", "positive", weight);
  const headers = {
    "content-type": "application/json",
    accept: "text/event-stream",
    ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
    ...client.headers,
  };
  const base = parsed.origin + parsed.pathname.replace(/\/+$/, "").replace(/\/v1$/, "");
  return { url: base, maxInFlight, weight: weight ?? maxInFlight, headers };
}

/** Own properties, each read once, over the defaults; an unknown name is refused, so that no typo is a silent default. */
export function withDefaults<T extends object>(name: string, given: unknown, defaults: T): T {
  expect(typeof given === "object" && given !== null, name, "options", "an object", given);
  const resolved = { ...defaults } as Record<string, unknown>;
  for (const key of Object.keys(given)) {
    if (!Object.hasOwn(defaults, key)) throw new FapoError("ERR_INVALID_ARGUMENT", `${name}: unknown option ${key}`);
    const value = (given as Record<string, unknown>)[key];
    if (value !== undefined) resolved[key] = value;
  }
  return resolved as T;
}

function expectDuration(name: string, argument: string, ms: number, endless: boolean = true): void {
  const ok = typeof ms === "number" && ms > 0 && (ms < 2 ** 31 || (endless && ms === Number.POSITIVE_INFINITY));
  expect(ok, name, argument, `positive milliseconds below 2^31${endless ? ", or Infinity" : ""}`, ms);
}

function expectPositiveInteger(argument: string, value: number, name: string = op): void {
  expect(Number.isSafeInteger(value) && value > 0, name, argument, "a positive integer", value);
}
