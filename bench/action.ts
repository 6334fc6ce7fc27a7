/** A report as github-action-benchmark reads it: `tool: customSmallerIsBetter`. */
import { type Report, title } from "./report.ts";

export interface ActionEntry {
  name: string;
  unit: string;
  value: number;
  range: string;
  extra: string;
}

/** Milliseconds of each case, and how many times the memory floor it took: that compares between machines. */
export function actionBenchmark({ machine, versions, results }: Report): ActionEntry[] {
  const extra = `${machine.cpu}, ${machine.isa}, Node ${versions.node}, fapo-kernels ${versions["fapo-kernels"]}`;
  return results.flatMap((result) => {
    const { device, threads, clock, cpuMs, wallMs, floor } = result;
    const name = `${title(result)}, ${threads ? `${threads} thread${threads === 1 ? "" : "s"}` : device}`;
    const ms = clock === "cpu" ? cpuMs : wallMs;
    const range = `${ms.p25.toPrecision(4)}..${ms.p75.toPrecision(4)}`;
    const time = { name, unit: clock === "events" ? "ms" : `ms, ${clock} time`, value: ms.median, range, extra };
    if (!floor) return [time];
    const slowness = { name: `${name}: times the memory floor`, unit: "x", value: 1 / floor.share, range: "", extra };
    return [time, slowness];
  });
}
