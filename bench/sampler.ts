/** What is timed, and with which clock: this thread's, the events of a GPU, or the clocks of another process. */

import { type Device, synchronize } from "fapo-kernels";

/** Milliseconds per call. */
export interface Sample {
  /** On a GPU: between two events on its stream. */
  wall: number;
  cpu: number;
}

export interface Contender {
  name: string;
  /** Makes the inputs fresh again, outside the timed part. */
  restore?: (() => void) | undefined;
  /** Calls `repeats` times. */
  sample(repeats: number): Sample | Promise<Sample>;
}

/** Of this thread, where Node can tell; else of the process, with the compiler's threads. */
const cpuUsage: typeof process.cpuUsage =
  (process as { threadCpuUsage?: typeof process.cpuUsage }).threadCpuUsage?.bind(process) ?? process.cpuUsage;

interface Timer {
  addon(): { startTimer(device: number): void; stopTimer(device: number): number };
}

// The timer is no part of the public API: it is reached through the module that the package itself uses.
const { addon } = (await import(new URL("../addon.js", import.meta.url).href)) as Timer;

/** How long a GPU is busy with the calls; `cpu` is what they cost here, before the wait. */
export function onCuda(call: () => void, device: Device): Contender["sample"] {
  const number = Number(device.slice("cuda:".length));
  return (repeats) => {
    synchronize(device);
    addon().startTimer(number);
    const { cpu } = callOnHost(call, repeats);
    return { wall: addon().stopTimer(number) / repeats, cpu };
  };
}

export function sampler(call: () => void, device: Device): Contender["sample"] {
  return device === "cpu" ? onHost(call) : onCuda(call, device);
}

export function onHost(call: () => void): Contender["sample"] {
  return (repeats) => callOnHost(call, repeats);
}

function callOnHost(call: () => void, repeats: number): Sample {
  const before = cpuUsage();
  const start = performance.now();
  for (let i = 0; i < repeats; i++) call();
  const wall = performance.now() - start;
  const { user, system } = cpuUsage(before);
  return { wall: wall / repeats, cpu: (user + system) / 1e3 / repeats };
}
