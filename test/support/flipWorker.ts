/** A worker that keeps writing good and bad values into shared memory until it is told to stop. */
import { parentPort, workerData } from "node:worker_threads";

/** An array that the main thread uses as an input, and what is written to it. */
export interface Flipped {
  data: Int32Array | Uint8Array | Int8Array | Float32Array;
  good: readonly number[];
  bad: readonly number[];
}

const { flipped, stop } = workerData as { flipped: Flipped[]; stop: Int32Array };

parentPort!.postMessage("started");
let state = 1;
const next = (below: number): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * below);
};
while (Atomics.load(stop, 0) === 0) {
  for (const { data, good, bad } of flipped) {
    const i = next(data.length);
    data[i] = bad[next(bad.length)]!;
    // Most of the time the input is good, so that calls get through.
    data[i] = good[i]!;
  }
}
