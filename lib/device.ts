/** What there is to run on. */
import { addon } from "./addon.ts";
import { expect } from "./check.ts";
import { noCudaReason } from "./tensor.ts";

export interface Devices {
  cpu: {
    /** The instruction set that was chosen; the environment variable `FAPO_ISA` can ask for a lesser one. */
    isa: "baseline" | "avx2" | "avx512";
    /** How many threads an op may use. */
    threads: number;
  };
  cuda: {
    available: boolean;
    /** Why there is none. */
    reason?: string;
    /** One entry per GPU, `"cuda:0"` first. */
    devices: readonly { device: `cuda:${number}`; name: string }[];
  };
}

/**
 * What was found, and why not where it was not.
 * @throws FapoError `ERR_ADDON_NOT_FOUND`
 */
export function devices(): Devices {
  return {
    cpu: { isa: addon().isa, threads: addon().threads() },
    cuda: { available: false, reason: noCudaReason, devices: [] },
  };
}

/**
 * How many threads an op may use on the CPU, the calling one among them: of the whole process, workers included.
 * Default: all cores that the process may use. Results do not depend on it.
 *
 * @param threads 1..256
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_ADDON_NOT_FOUND`
 */
export function setThreads(threads: number): void {
  const ok = Number.isInteger(threads) && threads >= 1 && threads <= 256;
  expect(ok, "setThreads", "threads", "an integer in 1..256", threads);
  addon().setThreads(threads);
}
