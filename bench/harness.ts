/**
 * Times one case: the floor, the op and its peers take turns, round by round (tinybench, one iteration of each per
 * round), and every ratio is the median of the ratios within a round. On a shared machine the speed of memory swings by
 * half within seconds; what was measured side by side still compares. The floor goes before the op and after it.
 *
 * With one thread the ratios are made of CPU time, which is what the op costs whatever else runs on the machine; with more
 * threads, and for the cost of a call, of wall time.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type Device, setThreads, synchronize } from "fapo-kernels";
import { Bench } from "tinybench";
import type { BenchCase, Peer } from "./case.ts";
import { type FloorKind, floor } from "./floor.ts";
import { cudaExtraBytes, peakExtraBytes } from "./memory.ts";
import type { Peers } from "./peers.ts";
import { type Contender, onHost, sampler } from "./sampler.ts";

export interface RoundOptions {
  rounds: number;
  /** Rounds end early, but not before the fifth, when this much time is spent. */
  maxSeconds: number;
  /** Short calls are repeated within a sample until it takes this long. */
  minSampleMs: number;
  /** How long each contender runs before: until V8 has compiled what it will, and every page has been touched. */
  warmupMs: number;
}

/** On a GPU the events on its stream, which are in the place of wall time. */
export type Clock = "cpu" | "wall" | "events";

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
  device: Device;
  shape: string;
  dtype: string;
  /** On the CPU. */
  threads?: number;
  /** Which time the rates and ratios are made of. */
  clock: Clock;
  rounds: number;
  /** Milliseconds per call. */
  wallMs: Summary;
  cpuMs: Summary;
  bytes: number;
  gbPerSecond: number;
  /** Memory that a call needs at its peak, beyond its inputs and its `out`; absent where the system does not tell. */
  peakExtraBytes?: number;
  overhead: boolean;
  floor?: FloorResult;
  /** Beside a floor that copies on the CPU: what the bars are of. */
  plainCopy?: FloorResult;
  peers: PeerResult[];
}

export interface FloorResult {
  kind: FloorKind;
  /** Median of the time of the floor, in which it moves as many bytes as the op. */
  ms: number;
  minMs: number;
  gbPerSecond: number;
  /** Floor time by op time: 1 is the speed of memory. */
  share: number;
}

export interface PeerResult {
  name: string;
  /** Scaled up to the work of the op. */
  ms: number;
  minMs: number;
  /** By what: peers much slower than the op are timed on fewer rows. */
  scale: number;
  /** Peer time by op time: above 1 the op is faster. */
  ratio: number;
  /** Of its own process, on the rows that it takes. */
  peakExtraBytes?: number;
}

/**
 * The cost of a call is V8's doing: what the cases before taught it about the same functions it unlearns first, on threads
 * whose time is the process's. So there are more rounds, and the clock is that of the wall.
 */
export const overhead = { rounds: 41, warmupMs: 400 };

/** Runs a case once and compares it with its peers: for devices whose times would mean nothing. */
export function agree(benchCase: BenchCase): void {
  const { call, peers } = benchCase.prepare();
  call();
  synchronize(benchCase.device);
  for (const peer of peers) peer.check();
}

/** `threads` is for the CPU. */
export async function measure(
  benchCase: BenchCase,
  threads: number,
  options: RoundOptions,
  others?: Peers,
): Promise<Measurement> {
  const { call, restore, moves, peers, problem } = benchCase.prepare();
  const { device } = benchCase;
  const kind = benchCase.overhead ? undefined : benchCase.floor;
  setThreads(threads);
  for (const peer of peers) peer.check();
  const contenders: Contender[] = [{ name: "op", restore, sample: sampler(call, device) }];
  if (kind) {
    const sample = sampler(floor(kind, benchCase.bytes, device, moves), device);
    contenders.unshift({ name: "floor before", restore, sample });
    contenders.push({ name: "floor after", restore, sample });
    if (kind === "copy" && device === "cpu") {
      const plain = sampler(floor("plainCopy", benchCase.bytes, device, moves), device);
      contenders.push({ name: "plain copy", restore, sample: plain });
    }
  }
  // One thread of the host says nothing about a GPU.
  const timed = device === "cpu" ? peers : [];
  for (const { name, restore, call } of timed) contenders.push({ name, restore, sample: onHost(call) });
  const foreign = problem && others ? await others.contenders(problem, threads) : [];
  contenders.push(...foreign);

  const times = await takeTurns(contenders, benchCase.overhead ? { ...options, ...overhead } : options);
  const clock: Clock = device !== "cpu" ? "events" : threads === 1 && !benchCase.overhead ? "cpu" : "wall";
  const op = times.get("op")!;
  const ms = median(by(clock, op));
  restore?.();
  const peakExtra = device === "cpu" ? peakExtraBytes(call) : cudaExtraBytes(call, device);
  const results = timed.map((peer) => peerResult(peer, times.get(peer.name)!, op, clock));
  for (const peer of foreign) {
    const peakExtraBytes = await peer.peakExtraBytes();
    const result = peerResult(peer, times.get(peer.name)!, op, clock);
    results.push({ ...result, ...(peakExtraBytes !== undefined && { peakExtraBytes }) });
  }
  return {
    op: benchCase.op,
    variant: benchCase.variant,
    device,
    shape: benchCase.shape,
    dtype: benchCase.dtype,
    ...(device === "cpu" && { threads }),
    clock,
    rounds: op.wall.length,
    wallMs: summary(op.wall),
    cpuMs: summary(op.cpu),
    bytes: benchCase.bytes,
    gbPerSecond: benchCase.bytes / ms / 1e6,
    ...(peakExtra !== undefined && { peakExtraBytes: peakExtra }),
    overhead: benchCase.overhead ?? false,
    ...floors(benchCase, times, clock),
    peers: results,
  };
}

/** Samples per contender; sample i of each is of the same round. */
export async function takeTurns(contenders: readonly Contender[], options: RoundOptions): Promise<Map<string, Times>> {
  const bench = new Bench({ iterations: 1, time: 0, warmup: false, throws: true });
  const times = new Map<string, Times>();
  for (const contender of contenders) {
    const { name, restore, sample } = contender;
    const repeats = await callsPerSample(contender, options);
    const samples: Times = { wall: [], cpu: [] };
    times.set(name, samples);
    const timed = async (): Promise<{ overriddenDuration: number }> => {
      const { wall, cpu } = await sample(repeats);
      samples.wall.push(wall);
      samples.cpu.push(cpu);
      return { overriddenDuration: wall };
    };
    bench.add(name, timed, { async: true, ...(restore && { beforeEach: restore }) });
  }

  globalThis.gc?.();
  const end = performance.now() + options.maxSeconds * 1e3;
  for (let round = 0; round < options.rounds && (round < 5 || performance.now() < end); round++) {
    bench.reset();
    await bench.run();
  }
  return times;
}

/** Warms up as well. Where inputs must be restored before every call, a sample is one call. */
async function callsPerSample(
  { restore, sample }: Contender,
  { minSampleMs, warmupMs }: RoundOptions,
): Promise<number> {
  const start = performance.now();
  let fastest = Number.POSITIVE_INFINITY;
  for (let calls = 0; calls < 2 || performance.now() < start + warmupMs; calls++) {
    restore?.();
    fastest = Math.min(fastest, (await sample(1)).wall);
  }
  return restore ? 1 : Math.max(1, Math.ceil(minSampleMs / Math.max(fastest, 1e-3)));
}

/** Garbage is collected between cases, not within them. */
export function exposeGc(): void {
  if (globalThis.gc) return;
  setFlagsFromString("--expose-gc");
  globalThis.gc = runInNewContext("gc") as NonNullable<typeof globalThis.gc>;
}

function floors(
  { floor, bytes, overhead }: BenchCase,
  times: Map<string, Times>,
  clock: Clock,
): Pick<Measurement, "floor" | "plainCopy"> {
  if (!floor || overhead) return {};
  const op = by(clock, times.get("op")!);
  const after = by(clock, times.get("floor after")!);
  const own = by(clock, times.get("floor before")!).map((before, round) => (before + after[round]!) / 2);
  const plain = times.get("plain copy");
  return {
    floor: floorResult(floor, bytes, own, op),
    ...(plain && { plainCopy: floorResult("plainCopy", bytes, by(clock, plain), op) }),
  };
}

function floorResult(kind: FloorKind, bytes: number, own: readonly number[], op: readonly number[]): FloorResult {
  const ms = median(own);
  return { kind, ms, minMs: Math.min(...own), gbPerSecond: bytes / ms / 1e6, share: medianRatio(own, op) };
}

function peerResult({ name, scale }: Pick<Peer, "name" | "scale">, own: Times, op: Times, clock: Clock): PeerResult {
  const ms = by(clock, own).map((time) => time * scale);
  return { name, scale, ms: median(ms), minMs: Math.min(...ms), ratio: medianRatio(ms, by(clock, op)) };
}

function by(clock: Clock, { wall, cpu }: Times): number[] {
  return clock === "cpu" ? cpu : wall;
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
