/**
 * The judge: a pool of servers that is asked about responses, and answers all of them with a verdict or a reason.
 */
import { expect } from "../check.ts";
import { onAbort } from "./abort.ts";
import { Asker, type Question } from "./ask.ts";
import { completionOrder } from "./completion.ts";
import { closedError } from "./errors.ts";
import type { GenRMStats } from "./events.ts";
import { countRight, expectGroup, type FlagGroup, type Flags, FlagsCollector } from "./flags.ts";
import { Fleet } from "./fleet.ts";
import { type GenRMOptions, type ResolvedOptions, resolveOptions, withDefaults } from "./options.ts";
import type { JudgeItem } from "./prompt.ts";
import { sideCall } from "./sidecall.ts";
import { Tally } from "./tally.ts";
import type { Verdict } from "./verdict.ts";

export interface JudgeOptions {
  /** Aborting it cancels the requests and rejects with its reason. */
  signal?: AbortSignal | undefined;
}

export interface JudgeAllOptions extends JudgeOptions {
  /** Most items (of `flagGroups`: right answers) pulled and not yet handed out. Default: twice what may be in flight. */
  window?: number;
}

/** One item of `judgeAll`, judged. `index` counts the items of the source. */
export interface Judged<Item> {
  index: number;
  item: Item;
  verdict: Verdict;
}

/** One group of `flagGroups`, judged. */
export interface FlaggedGroup<Group> extends Flags {
  index: number;
  group: Group;
}

/**
 * A client of several OpenAI-compatible judge servers (arXiv 2510.22543, section 4: the decoupled GenRM).
 *
 * Every item ends as a verdict, or as unknown with an error that has a code: a failing server never rejects a promise.
 * What rejects: the caller's signal (with its reason), a closed client (`ERR_GENRM_CLOSED`), a wrong argument, and what
 * the caller's own `prompt` throws.
 */
export class GenRM<Item = JudgeItem> {
  readonly #options: ResolvedOptions<Item>;
  readonly #tally: Tally;
  readonly #fleet: Fleet;
  readonly #asker: Asker;
  /** What closing has to abort, and to wait for. */
  readonly #questions: Set<Question> = new Set();
  readonly #pending: Set<Promise<unknown>> = new Set();
  #closed = false;

  /** @throws FapoError `ERR_INVALID_ARGUMENT` */
  constructor(options: GenRMOptions<Item>) {
    this.#options = resolveOptions(options);
    const { servers, breaker, outageTimeout, healthPath, fetch, onEvent } = this.#options;
    this.#tally = new Tally(onEvent);
    this.#fleet = new Fleet({
      servers,
      breaker,
      outageTimeout,
      checkHealth:
        healthPath === null
          ? null
          : ({ url, headers }, signal) => this.#track(sideCall({ fetch, url: url + healthPath, headers }, signal)),
      onBreaker: ({ url, breaker: { state } }) => this.#tally.emit({ type: "breaker", server: url, state }),
    });
    this.#asker = new Asker(this.#options, this.#fleet, this.#tally);
  }

  /** Judges one item. */
  judge(item: Item, options: JudgeOptions = {}): Promise<Verdict> {
    return this.#track(this.#judge(item, options));
  }

  /**
   * Judges many, in the order in which verdicts arrive. Pulls the source (any iterable, also an asynchronous one) only
   * as fast as servers become free. Leaving the loop aborts what runs.
   */
  async *judgeAll(
    items: Iterable<Item> | AsyncIterable<Item>,
    options: JudgeAllOptions = {},
  ): AsyncGenerator<Judged<Item>, void, undefined> {
    const { signal, window } = this.#loopOptions("GenRM.judgeAll", options);
    const judged = completionOrder(items, (item, stop) => this.judge(item, { signal: stop }), {
      window,
      cost: () => 1,
      signal,
    });
    for await (const { index, value, result } of judged) yield { index, item: value, verdict: result };
  }

  /**
   * The verdicts of a batch or a group, ready for `fapoPenalty`. Only right answers are judged. Calls share the queue, so
   * that several groups may be asked for at once, and each awaited alone.
   *
   * @param group `correct`: `[S]`, any non-zero value is a right answer; `items`: `[S]`, wrong answers' are not looked at
   */
  async flags(group: FlagGroup<Item>, options: JudgeOptions = {}): Promise<Flags> {
    const { signal } = judgeOptions("GenRM.flags", options);
    expectGroup("GenRM.flags", group);
    signal?.throwIfAborted();
    const collector = new FlagsCollector(group.correct);
    const stop = new AbortController();
    const off = signal ? onAbort(signal, () => stop.abort(signal.reason)) : () => {};
    const judged = collector.asked.map(async (i) => {
      collector.add(i, await this.judge(group.items[i]!, { signal: stop.signal }));
    });
    try {
      await Promise.all(judged);
    } catch (error) {
      stop.abort(error);
      await Promise.allSettled(judged);
      throw error;
    } finally {
      off();
    }
    return collector.flags;
  }

  /**
   * `flags` of many groups, in the order in which the groups are complete: the advantage and the loss of a group can
   * start while others are still judged. Pulls the groups as `judgeAll` pulls items.
   */
  async *flagGroups<Group extends FlagGroup<Item>>(
    groups: Iterable<Group> | AsyncIterable<Group>,
    options: JudgeAllOptions = {},
  ): AsyncGenerator<FlaggedGroup<Group>, void, undefined> {
    const { signal, window } = this.#loopOptions("GenRM.flagGroups", options);
    const cost = (group: Group) => {
      expectGroup("GenRM.flagGroups", group);
      return Math.max(1, countRight(group.correct));
    };
    const judge = (group: Group, stop: AbortSignal) => this.flags(group, { signal: stop });
    const flagged = completionOrder(groups, judge, { window, cost, signal });
    for await (const { index, value, result } of flagged) yield { index, group: value, ...result };
  }

  /** Asks every server for its health, now: the way to wait until they are up. Changes nothing else. */
  async health(options: JudgeOptions = {}): Promise<{ url: string; well: boolean }[]> {
    const { signal } = judgeOptions("GenRM.health", options);
    if (this.#closed) throw closedError();
    const { fetch, healthPath } = this.#options;
    const checks = this.#fleet.servers.map(async ({ url, headers }) => {
      const call = { fetch, url: url + (healthPath ?? "/health"), headers };
      return { url, well: await this.#track(sideCall(call, signal ?? new AbortController().signal)) };
    });
    const checked = await Promise.all(checks);
    signal?.throwIfAborted();
    return checked;
  }

  /** Counts since the client was made, latencies, and the state of every server. */
  stats(): GenRMStats {
    return this.#tally.stats(this.#fleet);
  }

  /**
   * Ends every item that is under way as unknown (`ERR_GENRM_CLOSED`) and resolves when nothing runs any more: no request,
   * no timer. A second call does nothing.
   */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      const error = closedError();
      for (const { stop } of this.#questions) stop.abort(error);
      this.#fleet.close();
    }
    const { running } = this.#asker;
    while (this.#pending.size + running.size > 0) await Promise.allSettled([...this.#pending, ...running]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #judge(item: Item, options: JudgeOptions): Promise<Verdict> {
    const { signal } = judgeOptions("GenRM.judge", options);
    if (this.#closed) throw closedError();
    signal?.throwIfAborted();
    const question: Question = { ...this.#pose(item), attempts: 0, hedged: false, failedAt: null };
    const off = signal ? onAbort(signal, () => question.stop.abort(signal.reason)) : () => {};
    this.#questions.add(question);
    this.#tally.asked();
    const started = performance.now();
    try {
      const ending = await this.#asker.ask(question);
      const { attempts, hedged } = question;
      const verdict = { ...ending, ms: performance.now() - started, attempts, hedged } as Verdict;
      this.#tally.ended(verdict, this.#fleet.queued);
      return verdict;
    } catch (error) {
      this.#tally.forgotten();
      throw error;
    } finally {
      off();
      this.#questions.delete(question);
    }
  }

  #pose(item: Item): Pick<Question, "steps" | "body" | "stop" | "tried"> {
    const { model, maxTokens, body, prompt } = this.#options;
    const { messages, steps } = prompt(item);
    expect(Array.isArray(messages), "GenRM.prompt", "messages", "an array", messages);
    expect(typeof steps === "number" && steps >= 0, "GenRM.prompt", "steps", "a number of steps", steps);
    const request = { model, messages, max_tokens: maxTokens, stream: true, stream_options: { include_usage: true } };
    return { steps, body: JSON.stringify({ ...request, ...body }), stop: new AbortController(), tried: new Set() };
  }

  #loopOptions(op: string, options: JudgeAllOptions): { signal: AbortSignal | undefined; window: number } {
    const { window = 2 * this.#fleet.capacity, ...rest } = withDefaults(op, options, {
      ...signalOption,
      ...windowOption,
    });
    expect(window >= 1, op, "window", "at least 1", window);
    return { ...judgeOptions(op, rest), window };
  }

  #track<T>(promise: Promise<T>): Promise<T> {
    this.#pending.add(promise);
    const forget = () => void this.#pending.delete(promise);
    promise.then(forget, forget);
    return promise;
  }
}

const signalOption = { signal: undefined as AbortSignal | undefined };
const windowOption = { window: undefined as number | undefined };

function judgeOptions(op: string, options: JudgeOptions): { signal: AbortSignal | undefined } {
  const { signal } = withDefaults(op, options, signalOption);
  expect(signal === undefined || signal instanceof AbortSignal, op, "signal", "an AbortSignal", signal);
  return { signal };
}
