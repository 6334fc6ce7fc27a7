/**
 * One item's way to its verdict: wait for a slot, ask, hedge, try elsewhere, give up.
 */
import { onAbort, sleep } from "./abort.ts";
import { GenRMError } from "./errors.ts";
import type { Fleet } from "./fleet.ts";
import { type Run, withHedge } from "./hedge.ts";
import type { ResolvedOptions } from "./options.ts";
import type { ChatReply } from "./reply.ts";
import { chat } from "./request.ts";
import type { Lease, Server } from "./servers.ts";
import { sideCall } from "./sidecall.ts";
import type { Tally } from "./tally.ts";
import type { Verdict } from "./verdict.ts";

/** An item while it is judged. */
export interface Question {
  steps: number;
  /** The request as JSON, an object. */
  body: string;
  stop: AbortController;
  tried: Set<Server>;
  attempts: number;
  hedged: boolean;
  /** Who failed last. */
  failedAt: string | null;
}

/** A verdict without what the clock and the question know. */
export type Ending = Pick<Verdict, "flawed" | "step" | "error" | "text" | "tokens" | "server">;

interface Answer extends ChatReply {
  server: string;
}

export class Asker {
  readonly #options: ResolvedOptions<never>;
  readonly #fleet: Fleet;
  readonly #tally: Tally;
  /** Requests under way, those included whose answer nobody waits for any more. */
  readonly running: Set<Promise<unknown>> = new Set();

  constructor(options: ResolvedOptions<never>, fleet: Fleet, tally: Tally) {
    this.#options = options;
    this.#fleet = fleet;
    this.#tally = tally;
  }

  /**
   * Asks until there is an answer, or no sense in asking again. Rejects only with what the caller aborted with; an abort
   * with `ERR_GENRM_CLOSED` is an ending.
   */
  async ask(question: Question): Promise<Ending> {
    const { retries, retryUnparsed, parse } = this.#options;
    const { signal } = question.stop;
    let failure: GenRMError | undefined;
    for (let attempt = 0; ; attempt++) {
      let answer: Answer | undefined;
      let error: GenRMError;
      try {
        const lease = await this.#fleet.acquire(question.tried, signal);
        answer = await this.#request(question, lease, attempt);
        const { text, tokens, server } = answer;
        const step = parse(text, question.steps);
        if (step !== null && Number.isSafeInteger(step) && step >= -1) {
          return { flawed: step === -1 ? 0 : 1, step, error: null, text, tokens, server };
        }
        error = noVerdict(answer);
      } catch (cause) {
        if (answer) error = noVerdict(answer, cause);
        else if (signal.aborted && !isClosed(signal.reason)) throw signal.reason;
        else if (cause instanceof GenRMError) error = cause;
        else throw cause;
      }
      // An outage ended the wait for another try: what failed this item itself says more.
      if (failure && isOutage(error)) return ended(failure, question);
      const again = answer ? retryUnparsed : error.retryable;
      if (!again || attempt >= retries) return ended(error, question, answer);

      failure = error;
      const delay = backoff(this.#options, attempt);
      const { server, code, message } = error;
      this.#tally.retried({ server, code, message, attempt, delay });
      try {
        await sleep(delay, signal);
      } catch (reason) {
        if (!isClosed(reason)) throw reason;
        return ended(reason, question);
      }
    }
  }

  /** One request, with a second copy when it is slow. */
  #request(question: Question, lease: Lease, attempt: number): Promise<Answer> {
    const { hedge } = this.#options;
    const first = this.#send(question, lease, attempt);
    if (!hedge) return first.promise;
    return withHedge(first, {
      after: () => hedge.after ?? this.#tally.requestTime(hedge.quantile),
      start: () => {
        if (question.stop.signal.aborted || !this.#tally.mayHedge(hedge.maxFraction)) return null;
        const spare = this.#fleet.spare(lease.server);
        if (!spare) return null;
        question.hedged = true;
        this.#tally.hedged(lease.server.url, spare.server.url);
        return this.#send(question, spare, attempt);
      },
    });
  }

  /** Sends one request and gives its slot back, whatever happens. */
  #send(question: Question, lease: Lease, attempt: number): Run<Answer> {
    const controller = new AbortController();
    question.attempts++;
    this.#tally.sent();
    const promise = this.#exchange(question, lease, attempt, controller);
    this.running.add(promise);
    const forget = () => void this.running.delete(promise);
    promise.then(forget, forget);
    return { promise, abort: (reason) => controller.abort(reason) };
  }

  async #exchange(question: Question, lease: Lease, attempt: number, controller: AbortController): Promise<Answer> {
    const { fetch, idleTimeout, timeout, flavor } = this.#options;
    const { url: server, headers } = lease.server;
    const rid = flavor === "sglang" ? crypto.randomUUID() : null;
    const body = rid === null ? question.body : `${question.body.slice(0, -1)},"rid":"${rid}"}`;
    const { signal } = question.stop;
    const off = onAbort(signal, () => controller.abort(signal.reason));
    const started = performance.now();
    try {
      const reply = await chat({ fetch, server, headers, body, idleTimeout, timeout, controller });
      this.#tally.answered(performance.now() - started);
      this.#fleet.release(lease, "answered", { tokens: reply.tokens });
      return { ...reply, server };
    } catch (error) {
      // SGLang goes on generating for a closed connection, unless it is told.
      if (controller.signal.aborted && rid !== null) this.#abortOnServer(lease.server, rid);
      // Only errors of this server name it: a caller's abort, closing and a lost race do not speak against it.
      if (error instanceof GenRMError && error.server === server) this.#failed(question, lease, error, attempt);
      else this.#fleet.release(lease, "unknown");
      throw error;
    } finally {
      off();
    }
  }

  #failed(question: Question, lease: Lease, error: GenRMError, attempt: number): void {
    const { server } = lease;
    question.failedAt = server.url;
    question.tried.add(server);
    const busy = error.status === 429;
    const wanted = error.retryAfter ?? (busy ? backoff(this.#options, attempt) : 0);
    const pause = error.retryable ? Math.min(wanted, this.#options.backoff.maxRetryAfter) : 0;
    if (pause > 0) this.#tally.emit({ type: "pause", server: server.url, ms: pause });
    // A server that is busy, or that refuses this one request, works.
    const outcome = busy ? "unknown" : error.retryable ? "failed" : "answered";
    this.#fleet.release(lease, outcome, { pause, error });
  }

  #abortOnServer({ url, headers }: Server, rid: string): void {
    const { fetch } = this.#options;
    const call = { fetch, url: `${url}/abort_request`, method: "POST", headers, body: JSON.stringify({ rid }) };
    const told = sideCall(call, new AbortController().signal);
    this.running.add(told);
    void told.then(() => this.running.delete(told));
  }
}

function backoff({ backoff: { base, max } }: ResolvedOptions<never>, attempt: number): number {
  return Math.min(max, base * 2 ** attempt) * (0.5 + 0.5 * Math.random());
}

function ended(error: GenRMError, question: Question, answer?: Answer): Ending {
  const { text = "", tokens = 0, server = question.failedAt } = answer ?? {};
  return { flawed: -1, step: null, error, text, tokens, server };
}

function noVerdict({ server, finish, text, tokens }: Answer, cause?: unknown): GenRMError {
  if (finish === "length") {
    const message = `GenRM: ${server} ran out of tokens before a verdict (${tokens} of them)`;
    return new GenRMError("ERR_GENRM_TRUNCATED", message, { server, cause });
  }
  const end = JSON.stringify(text.slice(-60));
  const message = `GenRM: no verdict in the answer of ${server}, which ends in ${end}`;
  return new GenRMError("ERR_GENRM_UNPARSED", message, { server, cause });
}

/** The error of no server in particular. */
function isOutage(error: GenRMError): boolean {
  return error.code === "ERR_GENRM_NETWORK" && error.server === null;
}

function isClosed(reason: unknown): reason is GenRMError {
  return reason instanceof GenRMError && reason.code === "ERR_GENRM_CLOSED";
}
