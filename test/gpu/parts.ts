/** What the parts of `npm run test:gpu` share: the GPU, how large to be, and what goes into the report. */
import { appendFileSync } from "node:fs";
import { test } from "node:test";
import { devices } from "fapo-kernels";
import { TestDevice } from "../support.ts";

export const cpu: TestDevice = new TestDevice("cpu");
export const gpu: TestDevice = new TestDevice("cuda:0");

/** On an emulated GPU the parts are run to see that they work, and are small. */
export const emulated: boolean = devices().cuda.emulated;

/** The number of something on a real GPU, and on an emulated one. */
export function count(real: number, small: number): number {
  return emulated ? small : real;
}

/** Puts a value into the report of the part, under this name. */
export function report(name: string, value: unknown): void {
  const file = process.env.FAPO_GPU_DETAILS;
  if (file) appendFileSync(file, `${JSON.stringify({ name, value })}\n`);
}

/** The largest errors, as shares of their tolerances, by op and dtype; in the report when the file ends. */
export class Worst {
  readonly #shares = new Map<string, number>();

  constructor(name: string) {
    process.once("exit", () => report(name, Object.fromEntries(this.#shares)));
  }

  note(what: string, share: number): void {
    this.#shares.set(what, Math.max(this.#shares.get(what) ?? 0, Number(share.toPrecision(3))));
  }
}

export { test };
