/**
 * Cancelling without leaks: one listener per caller's signal, however many items share it.
 */
import { clearTimeout, setTimeout } from "node:timers";

const listeners = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` once when `signal` aborts; at once when it has. Returns the way to take that back.
 *
 * A batch shares one signal among thousands of items. A listener each would make Node warn of a leak
 * (`MaxListenersExceededWarning`), and so would `AbortSignal.any`, so the items share a single listener.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  if (signal.aborted) {
    callback();
    return () => {};
  }
  let callbacks = listeners.get(signal);
  if (!callbacks) {
    callbacks = new Set();
    listeners.set(signal, callbacks);
    signal.addEventListener("abort", fanOut, { once: true });
  }
  const entry = () => callback(); // the same function may be registered twice
  callbacks.add(entry);
  return () => {
    const left = listeners.get(signal);
    if (!left?.delete(entry) || left.size > 0) return;
    listeners.delete(signal);
    signal.removeEventListener("abort", fanOut);
  };
}

function fanOut(event: Event): void {
  const signal = event.currentTarget as AbortSignal;
  const callbacks = listeners.get(signal);
  listeners.delete(signal);
  for (const callback of callbacks ?? []) callback();
}

/** `promise`, unless `signal` aborts first: then its reason, even if `promise` never settles. */
export function orAbort<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const off = onAbort(signal, () => reject(signal.reason));
    promise.then(
      (value) => {
        off();
        resolve(value);
      },
      (error) => {
        off();
        reject(error);
      },
    );
  });
}

/** Resolves after `ms`; rejects with the signal's reason when that aborts. Leaves no timer behind. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const slept = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  return orAbort(slept, signal).finally(() => clearTimeout(timer));
}
