/** What is timed, and with which clock: this thread's, the events of a GPU, or the clocks of another process. */

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

export function onHost(call: () => void): Contender["sample"] {
  return (repeats) => {
    const before = cpuUsage();
    const start = performance.now();
    for (let i = 0; i < repeats; i++) call();
    const wall = performance.now() - start;
    const { user, system } = cpuUsage(before);
    return { wall: wall / repeats, cpu: (user + system) / 1e3 / repeats };
  };
}
