/** How much more memory a call needs at its peak than there was before it. */
import { readFileSync, writeFileSync } from "node:fs";
import { cudaMemory, type Device, synchronize } from "fapo-kernels";

/** Of a GPU: what the call takes from it beyond what is in use, work space included. Ops give nothing back within a call. */
export function cudaExtraBytes(call: () => void, device: Device): number {
  globalThis.gc?.();
  synchronize(device);
  const before = cudaMemory(device).used;
  call();
  return cudaMemory(device).used - before;
}

/**
 * In bytes, to the page, of the whole process: threads of V8 may add some. Linux keeps the peak, and resets it when
 * asked; elsewhere, and where it may not be reset, undefined.
 */
export function peakExtraBytes(call: () => void): number | undefined {
  globalThis.gc?.();
  try {
    writeFileSync("/proc/self/clear_refs", "5");
    const before = resident("VmRSS");
    call();
    return Math.max(0, resident("VmHWM") - before);
  } catch {
    return undefined;
  }
}

function resident(field: "VmRSS" | "VmHWM"): number {
  const [, kilobytes] = readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${field}:\\s*(\\d+) kB`, "m"))!;
  return Number(kilobytes) * 1024;
}
