/**
 * Whether an op has become slower than it was. Times of a shared machine say little, so what is compared is ratios within
 * one run, op time by the time of a yardstick: the memory floor, and plain TypeScript. One thread, CPU time (wall
 * time for the cost of a call), yardstick and op in turns. A slower op is slower by both yardsticks; a busy neighbour that takes memory bandwidth, or the clock, away
 * changes one of them more than the other. So the lesser loss counts, and it has to show twice.
 */
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { devices } from "fapo-kernels";
import { type BenchCase, type CaseOptions, floatDTypes, plainTypeScript } from "./case.ts";
import { measure, type RoundOptions } from "./harness.ts";
import { title } from "./report.ts";
import { inOrderOfData, ops } from "./suite.ts";

/** Op time by the time of each yardstick there is. */
export interface Ratios {
  floor?: number;
  plain?: number;
}

/** By case. */
export type Baseline = Record<string, Ratios>;

export interface Loss {
  name: string;
  committed: Ratios;
  now: Ratios;
  /** Times slower than committed, by the yardstick that it lost less against. */
  times: number;
}

/** What an op may lose. The cost of a call is V8's doing to a good part, and not the same in every process. */
export function limitOf({ overhead }: BenchCase): number {
  return overhead ? 2.5 : 1.3;
}

const rounds: RoundOptions = { rounds: 9, maxSeconds: 2, minSampleMs: 2, warmupMs: 40 };
const options: CaseOptions = { shapes: [[128, 151936]], dtypes: floatDTypes, quick: true, device: "cpu" };

/** Everything that runs with one thread, on logits beyond the caches. */
export function guardedCases(): BenchCase[] {
  return inOrderOfData(ops.flatMap(({ cases }) => cases(options)));
}

/** Machines whose ratios compare: same architecture, instruction set, and family of processors. */
export function machineClass(): string {
  return `${process.arch} ${devices().cpu.isa}, ${processor()}`;
}

function processor(): string {
  try {
    const info = readFileSync("/proc/cpuinfo", "utf8");
    const [, vendor] = info.match(/^vendor_id\s*:\s*(\S+)/m)!;
    const [, family] = info.match(/^cpu family\s*:\s*(\d+)/m)!;
    return `${vendor} family ${family}`;
  } catch {
    return cpus()[0]?.model.trim() ?? "unknown";
  }
}

export async function ratiosOf(one: BenchCase): Promise<Ratios> {
  const { clock, cpuMs, wallMs, floor, peers } = await measure(one, 1, rounds);
  const fastest = (clock === "cpu" ? cpuMs : wallMs).min;
  const plain = peers.find(({ name }) => name === plainTypeScript);
  // The fastest of each: what disturbs makes slower, never faster.
  return { ...(floor && { floor: fastest / floor.minMs }), ...(plain && { plain: fastest / plain.minMs }) };
}

/** Of three passes over the cases the middle one. */
export async function baselineOf(cases: readonly BenchCase[]): Promise<Baseline> {
  const passes: Baseline[] = [];
  for (let pass = 0; pass < 3; pass++) {
    passes.push(Object.fromEntries(await inTurn(cases, async (one) => [title(one), await ratiosOf(one)] as const)));
  }
  const middle = (name: string, yardstick: keyof Ratios): Ratios => {
    const sorted = passes.map((pass) => pass[name]![yardstick]!).sort((a, b) => a - b);
    return sorted[0] === undefined ? {} : { [yardstick]: sorted[1]! };
  };
  return Object.fromEntries(
    Object.keys(passes[0]!).map((name) => [name, { ...middle(name, "floor"), ...middle(name, "plain") }]),
  );
}

async function inTurn<Result>(
  cases: readonly BenchCase[],
  run: (one: BenchCase) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = [];
  for (const one of cases) results.push(await run(one));
  return results;
}

/** The cases that lost more than their limit, and did so again when tried a second time. */
export async function lossesOf(cases: readonly BenchCase[], baseline: Baseline): Promise<Loss[]> {
  const suspects = await slower(cases, baseline);
  return (
    await slower(
      suspects.map(({ one }) => one),
      baseline,
    )
  ).map(({ loss }) => loss);
}

async function slower(cases: readonly BenchCase[], baseline: Baseline): Promise<{ one: BenchCase; loss: Loss }[]> {
  const found = await inTurn(cases, async (one) => {
    const name = title(one);
    const committed = baseline[name];
    if (!committed) return [];
    const now = await ratiosOf(one);
    const times = timesSlower(committed, now);
    return times > limitOf(one) ? [{ one, loss: { name, committed, now, times } }] : [];
  });
  return found.flat();
}

export function timesSlower(committed: Ratios, now: Ratios): number {
  const yardsticks = (["floor", "plain"] as const).filter((name) => committed[name] && now[name]);
  return Math.min(...yardsticks.map((name) => now[name]! / committed[name]!));
}

export function sentence({ name, committed, now, times }: Loss): string {
  const of = (ratio: number | undefined): string => ratio?.toPrecision(3) ?? "-";
  return (
    `${name}: ${times.toFixed(2)} times slower ` +
    `(floor ${of(committed.floor)} -> ${of(now.floor)}, plain TypeScript ${of(committed.plain)} -> ${of(now.plain)})`
  );
}
