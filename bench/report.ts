/** What a run leaves behind: lines on the terminal, and a JSON file that says where and how they came about. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem, type } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { type CudaDevice, devices } from "fapo-kernels";
import { barOf, leastShare, percent } from "./bars.ts";
import { type BenchCase, plainTypeScript } from "./case.ts";
import type { Measurement } from "./harness.ts";

/** The root of the package, seen from dist/bench. */
export const root: string = join(fileURLToPath(import.meta.url), "../../..");
/** Whether this is the repository, and no installed package that some other repository may be around. */
export const repository: boolean = existsSync(join(root, ".git"));

export interface Report {
  schema: 1;
  date: string;
  command: string;
  quick: boolean;
  machine: {
    cpu: string;
    cores: number;
    memoryGiB: number;
    os: string;
    arch: string;
    isa: string;
    /** The GPUs that results are of, and the version of their driver. */
    gpus?: readonly CudaDevice[];
    driver?: string;
  };
  versions: { "fapo-kernels": string; node: string; v8: string; tinybench: string };
  /** null outside a repository; `dirty` when files other than results differed from the commit. */
  commit: string | null;
  dirty: boolean;
  notes: readonly string[];
  results: (Measurement & { leastShare?: number })[];
}

const notes: readonly string[] = [
  "With one thread, rates and ratios are made of the CPU time of the process, with more of wall time, on a GPU of the time between events on its stream; `clock` says which.",
  "Ratios are medians of ratios within a round, in which floor, op and peers took turns.",
  "The floor moves as many bytes as the op has to, through the same threads and vector loops; `plainCopy` is a copy that asks memory for nothing ahead, which the bars out of place are of.",
  "Plain TypeScript runs on one thread and on fewer rows; its time is multiplied by `scale`.",
  "Logits: N(0, 1) with 20 candidates per row, levels 12..18 falling by 1.2; token ids sampled from their softmax.",
  "Buffers of fewer bytes than the caches hold measure the cache, for op and floor alike.",
];

export function makeReport(results: readonly Measurement[], command: string, quick: boolean): Report {
  const isa = devices().cpu.isa;
  const commit = repository ? git("rev-parse", "HEAD") : null;
  return {
    schema: 1,
    date: new Date().toISOString(),
    command,
    quick,
    machine: {
      cpu: cpus()[0]?.model.trim() ?? "unknown",
      cores: cpus().length,
      memoryGiB: Math.round(totalmem() / 2 ** 30),
      os: `${type()} ${release()}`,
      arch: process.arch,
      isa,
      ...gpus(results),
    },
    versions: {
      "fapo-kernels": version(join(root, "package.json")),
      node: process.versions.node,
      v8: process.versions.v8,
      tinybench: version(fileURLToPath(new URL("../package.json", import.meta.resolve("tinybench")))),
    },
    commit,
    dirty: commit !== null && git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results") !== "",
    notes,
    results: results.map((result) => {
      const least = leastShare(result, isa);
      return least === undefined ? result : { ...result, leastShare: least };
    }),
  };
}

function gpus(results: readonly Measurement[]): Pick<Report["machine"], "gpus" | "driver"> {
  const used = devices().cuda.devices.filter(({ device }) => results.some((result) => result.device === device));
  if (used.length === 0) return {};
  let driver = "unknown";
  try {
    [driver = driver] = readFileSync("/proc/driver/nvidia/version", "utf8").match(/\d+\.\d+(\.\d+)?/) ?? [];
  } catch {} // not on every system
  return { gpus: used, driver };
}

/** Where a report goes when no file is named: among the results of this repository, or where it was asked for. */
export function defaultFile(date: string, cpu: string, isa: string): string {
  return repository ? join(root, `bench/results/${date}-${cpu}-${isa}.json`) : `bench-${date}-${cpu}-${isa}.json`;
}

/** `what` more than ours it holds, such as `-peers`. */
export function defaultFileOf({ machine, date }: Report, what = ""): string {
  const names = [machine.cpu, ...(machine.gpus ?? []).slice(0, 1).map(({ name }) => name)];
  const slug = names
    .join("-")
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "");
  return defaultFile(date.slice(0, 10), slug, `${machine.isa}${what}`);
}

/** A path as short as it can be said from here. */
export function shown(file: string): string {
  const short = relative(process.cwd(), file);
  return short.startsWith("..") ? file : short;
}

/** With five digits of every fraction: what lies beyond was not measured. */
export function writeJson(file: string, content: unknown): void {
  mkdirSync(dirname(resolve(file)), { recursive: true });
  const round = (_: string, value: unknown): unknown =>
    typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value;
  writeFileSync(file, `${JSON.stringify(content, round, 2)}\n`);
}

/** A case in words. */
export function title({ op, variant, shape, dtype }: Pick<BenchCase, "op" | "variant" | "shape" | "dtype">): string {
  return `${op}${variant && ` (${variant})`} ${shape} ${dtype}`;
}

// ---- lines

const columns = [
  ["op", 35],
  ["shape", -11],
  ["dtype", 9],
  ["threads", -7],
  ["ms", -9],
  ["GB/s", -6],
  ["of floor", -8],
  ["bar", -22],
  ["extra MB", -8],
  ["x plain TS", -10],
] as const;

export function header(): string {
  return line(columns.map(([name]) => name));
}

export function row(result: Measurement, isa: string): string {
  const { op, variant, shape, dtype, threads, clock, gbPerSecond, floor, peakExtraBytes } = result;
  const ms = (clock === "cpu" ? result.cpuMs : result.wallMs).median;
  const peer = result.peers.find(({ name }) => name === plainTypeScript);
  return line([
    variant ? `${op} (${variant})` : op,
    shape,
    dtype,
    threads ? `${threads}` : result.device,
    milliseconds(ms),
    result.overhead ? "" : gbPerSecond.toFixed(1),
    floor ? percent(floor.share) : "",
    barOf(result, leastShare(result, isa)),
    peakExtraBytes === undefined ? "" : (peakExtraBytes / 1e6).toFixed(1),
    peer ? peer.ratio.toPrecision(3) : "",
  ]);
}

/** Peers other than plain TypeScript, whose ratio is in the row itself. */
export function peerRows({ peers }: Measurement): string[] {
  return peers
    .filter(({ name }) => name !== plainTypeScript)
    .map(({ name, ms, ratio, scale, peakExtraBytes }) => {
      const rows = scale === 1 ? "" : `, on 1/${scale} of the rows`;
      const memory = peakExtraBytes === undefined ? "" : `, ${(peakExtraBytes / 1e6).toFixed(1)} MB extra`;
      return `    ${name}: ${milliseconds(ms)}, ${ratio.toPrecision(3)} times the op's${rows}${memory}`;
    });
}

/** µs where ms would be all zeros. */
export function milliseconds(ms: number): string {
  return ms < 0.1 ? `${(ms * 1e3).toPrecision(3)} µs` : ms.toPrecision(4);
}

function line(cells: readonly string[]): string {
  const padded = cells.map((cell, i) => {
    const width = columns[i]![1];
    return width < 0 ? cell.padStart(-width) : cell.padEnd(width);
  });
  return padded.join("  ").trimEnd();
}

function version(file: string): string {
  try {
    return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
  } catch {
    return "unknown";
  }
}

function git(...args: string[]): string | null {
  try {
    return execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return null;
  }
}
