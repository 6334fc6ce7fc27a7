/**
 * Times one case: the floor, the op and its peers take turns, round by round (tinybench, one iteration of each per
 * round), and every ratio is the median of the ratios within a round. On a shared machine the speed of memory swings by
 * half within seconds; what was measured side by side still compares. The floor goes before the op and after it.
 *
 * Wall time is tinybench's. CPU time is taken around the same calls: with one thread it is what the op costs, whatever
 * else runs on the machine, and the ratios are made of it. With more threads they are made of wall time.
 */
import { setThreads } from "fapo-kernels";
import { Bench } from "tinybench";
import type { BenchCase, Peer } from "./case.ts";
import { type FloorKind, floor } from "./floor.ts";

export interface RoundOptions {
  rounds: number;
  /** Rounds end early, but not before the fifth, when this much time is spent. */
  maxSeconds: number;
  /** Short calls are repeated within a sample until it takes this long. */
  minSampleMs: number;
  /** How long each contender runs before: until V8 has compiled what it will, and every page has been touched. */
  warmupMs: number;
}

export type Clock = "cpu" | "wall";

export interface Times {
  wall: number[];
  cpu: number[];
}

export interface Summary {
  median: number;
  min: number;
  p25: number;
  p75: number;
}

export interface Measurement {
  op: string;
  variant: string;
  device: "cpu";
  shape: string;
  dtype: string;
  threads: number;
  /** Which time the rates and ratios are made of. */
  clock: Clock;
  rounds: number;
  /** Milliseconds per call. */
  wallMs: Summary;
  cpuMs: Summary;
  bytes: number;
  gbPerSecond: number;
  overhead: boolean;
  floor?: FloorResult;
  peers: PeerResult[];
}

export interface FloorResult {
  kind: FloorKind;
  /** Median of the time of the floor, in which it moves as many bytes as the op. */
  ms: number;
  gbPerSecond: number;
  /** Floor time by op time: 1 is the speed of memory. */
  share: number;
}

export interface PeerResult {
  name: string;
  /** Scaled up to the work of the op. */
  ms: number;
  /** By what: peers much slower than the op are timed on fewer rows. */
  scale: number;
  /** Peer time by op time: above 1 the op is faster. */
  ratio: number;
}

interface Contender {
  name: string;
  call(): void;
  restore?: (() => void) | undefined;
}

export function measure(benchCase: BenchCase, threads: number, options: RoundOptions): Measurement {
  const { call, restore, peers } = benchCase.prepare();
  const kind = benchCase.overhead ? undefined : benchCase.floor;
  setThreads(threads);
  for (const peer of peers) peer.check();
  const contenders: Contender[] = [{ name: "op", call, restore }];
  if (kind) {
    const call = floor(kind, benchCase.bytes);
    contenders.unshift({ name: "floor before", call });
    contenders.push({ name: "floor after", call });
  }
  contenders.push(...peers);

  const times = takeTurns(contenders, options);
  const clock: Clock = threads === 1 ? "cpu" : "wall";
  const op = times.get("op")!;
  const ms = median(op[clock]);
  return {
    op: benchCase.op,
    variant: benchCase.variant,
    device: "cpu",
    shape: benchCase.shape,
    dtype: benchCase.dtype,
    threads,
    clock,
    rounds: op.wall.length,
    wallMs: summary(op.wall),
    cpuMs: summary(op.cpu),
    bytes: benchCase.bytes,
    gbPerSecond: benchCase.bytes / ms / 1e6,
    overhead: benchCase.overhead ?? false,
    ...(kind && { floor: floorResult(kind, benchCase.bytes, times, clock) }),
    peers: peers.map((peer) => peerResult(peer, times.get(peer.name)!, op, clock)),
  };
}

/** Samples per contender, in ms per call; sample i of each is of the same round. */
export function takeTurns(contenders: readonly Contender[], options: RoundOptions): Map<string, Times> {
  const bench = new Bench({ iterations: 1, time: 0, warmup: false, retainSamples: true, throws: true });
  const times = new Map<string, Times>();
  const calls = new Map<string, number>();
  for (const { name, call, restore } of contenders) {
    const repeats = callsPerSample(call, restore, options);
    calls.set(name, repeats);
    const samples: Times = { wall: [], cpu: [] };
    times.set(name, samples);
    let before = cpuUsage();
    bench.add(
      name,
      () => {
        for (let i = 0; i < repeats; i++) call();
      },
      {
        async: false,
        beforeEach() {
          restore?.();
          before = cpuUsage();
        },
        afterEach() {
          const { user, system } = cpuUsage(before);
          samples.cpu.push((user + system) / 1e3 / repeats);
        },
      },
    );
  }

  globalThis.gc?.();
  const end = performance.now() + options.maxSeconds * 1e3;
  for (let round = 0; round < options.rounds && (round < 5 || performance.now() < end); round++) {
    bench.reset();
    for (const { name, result } of bench.runSync()) {
      if (result.state !== "completed") throw new Error(`${name}: ${result.state}`);
      times.get(name)!.wall.push(result.latency.samples![0]! / calls.get(name)!);
    }
  }
  return times;
}

/** Of this thread, where Node can tell; else of the process, with the compiler's threads. */
const cpuUsage: typeof process.cpuUsage =
  (process as { threadCpuUsage?: typeof process.cpuUsage }).threadCpuUsage?.bind(process) ?? process.cpuUsage;

/** Warms up as well. Where inputs must be restored before every call, a sample is one call. */
function callsPerSample(
  call: () => void,
  restore: (() => void) | undefined,
  { minSampleMs, warmupMs }: RoundOptions,
): number {
  const start = performance.now();
  let fastest = Number.POSITIVE_INFINITY;
  for (let calls = 0; calls < 2 || performance.now() < start + warmupMs; calls++) {
    restore?.();
    const before = performance.now();
    call();
    fastest = Math.min(fastest, performance.now() - before);
  }
  return restore ? 1 : Math.max(1, Math.ceil(minSampleMs / Math.max(fastest, 1e-3)));
}

function floorResult(kind: FloorKind, bytes: number, times: Map<string, Times>, clock: Clock): FloorResult {
  const after = times.get("floor after")![clock];
  const own = times.get("floor before")![clock].map((before, round) => (before + after[round]!) / 2);
  const ms = median(own);
  return { kind, ms, gbPerSecond: bytes / ms / 1e6, share: medianRatio(own, times.get("op")![clock]) };
}

function peerResult({ name, scale }: Peer, own: Times, op: Times, clock: Clock): PeerResult {
  return { name, scale, ms: median(own[clock]) * scale, ratio: medianRatio(own[clock], op[clock]) * scale };
}

/** Median over the rounds of one time by another. */
function medianRatio(above: readonly number[], below: readonly number[]): number {
  return median(above.map((time, round) => time / below[round]!));
}

function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

function summary(values: readonly number[]): Summary {
  return {
    median: median(values),
    min: quantile(values, 0),
    p25: quantile(values, 0.25),
    p75: quantile(values, 0.75),
  };
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const position = share * (sorted.length - 1);
  const [low, high] = [sorted[Math.floor(position)]!, sorted[Math.ceil(position)]!];
  return low + (high - low) * (position % 1);
}
