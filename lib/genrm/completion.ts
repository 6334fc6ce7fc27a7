/**
 * Many asynchronous results in the order in which they finish, pulling the source only as fast as they do.
 */
import { onAbort } from "./abort.ts";

export interface CompletionOptions<T> {
  /** Most that may be started and not yet handed out, in units of `cost`. */
  window: number;
  /** What one value takes of the window. */
  cost: (value: T) => number;
  signal: AbortSignal | undefined;
}

export interface Completed<T, R> {
  /** Position in the source. */
  index: number;
  value: T;
  result: R;
}

/**
 * Runs `run` over `source`. Nothing starts before the first `next()`. Leaving the loop, and the signal, abort what runs
 * and wait for it. When the source or a run fails, nothing more is pulled, what runs is finished and handed out, and
 * then the error is thrown.
 */
export async function* completionOrder<T, R>(
  source: Iterable<T> | AsyncIterable<T>,
  run: (value: T, signal: AbortSignal) => Promise<R>,
  { window, cost, signal }: CompletionOptions<T>,
): AsyncGenerator<Completed<T, R>, void, undefined> {
  signal?.throwIfAborted();
  const iterator = Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
  const stop = new AbortController();
  const running = new Set<Promise<void>>();
  const ready: { completed: Completed<T, R>; cost: number }[] = [];
  let held = 0;
  let index = 0;
  let pulling = false;
  let ended = false;
  let exhausted = false; // the iterator itself said or threw its end: it needs no `return()`
  let failure: { error: unknown } | undefined;
  let wake = () => {};
  const off = signal ? onAbort(signal, () => wake()) : () => {};

  const fail = (error: unknown) => {
    failure ??= { error };
    ended = true;
  };
  const start = (value: T) => {
    const completed = { index: index++, value };
    const weight = cost(value);
    held += weight;
    const task = run(value, stop.signal)
      .then((result) => void ready.push({ completed: { ...completed, result }, cost: weight }), fail)
      .then(() => {
        running.delete(task);
        wake();
      });
    running.add(task);
  };
  const pull = async () => {
    pulling = true;
    try {
      while (!ended && !stop.signal.aborted && held < window) {
        exhausted = true; // unless it returns a value
        const next = await iterator.next();
        exhausted = next.done === true;
        if (stop.signal.aborted) break;
        if (next.done) ended = true;
        else start(await next.value);
      }
    } catch (error) {
      fail(error);
    } finally {
      pulling = false;
      wake();
    }
  };

  try {
    while (true) {
      signal?.throwIfAborted();
      const done = ready.shift();
      if (done) held -= done.cost;
      if (!pulling && !ended && held < window) void pull();
      if (done) {
        yield done.completed;
      } else if (ended && !pulling && running.size === 0) {
        if (failure) throw failure.error;
        return;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    off();
    stop.abort(signal?.aborted ? signal.reason : new DOMException("The loop over the verdicts was left", "AbortError"));
    await Promise.all(running);
    if (pulling || !exhausted) {
      const returned = endSource(iterator);
      // A source that is still busy with `next()` is told, but not waited for: it may never come back.
      if (!pulling) await returned;
    }
  }
}

/** Tells a source that nothing more is wanted. What it throws then interests nobody any more. */
async function endSource(iterator: Iterator<unknown> | AsyncIterator<unknown>): Promise<void> {
  try {
    await iterator.return?.();
  } catch {}
}
