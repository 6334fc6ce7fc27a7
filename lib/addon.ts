/**
 * Finds and loads the native addon, on first use, and types what native/addon.cpp exports. Arguments are validated by
 * then; the addon re-checks only what protects memory.
 */
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { type CudaErrorCode, FapoError, type FapoErrorCode } from "./check.ts";
import type { DeviceMemory } from "./cuda.ts";
import type { TensorData } from "./tensor.ts";

/** What an op reads or writes: an array of the host, or memory of a GPU. */
export type Memory = TensorData | DeviceMemory;

/** Rows of a floating-point dtype. */
export interface NativeMatrix {
  data: Memory;
  rowStride: number;
  dtype: number;
}

/** Nothing, or memory of the dtype that the op's argument struct declares. */
type Maybe<T> = T | undefined;

/** Rows of logits with a token each; see `TokenLogits` in native/ops/token_logprob.h. */
export interface NativeTokenLogits {
  device: number;
  logits: NativeMatrix;
  tokenIds: Memory;
  responseMask: Maybe<Memory>;
  rows: number;
  vocab: number;
  temperature: number;
  logitSoftcap: number;
  ignoreIndex: number;
}

/** See `PolicyBatch` in native/ops/policy_loss.h. */
export interface NativePolicyBatch {
  oldLogprobs: Maybe<Memory>;
  advantages: Memory;
  refLogprobs: Maybe<Memory>;
  importanceWeights: Maybe<Memory>;
  cuSeqlens: Maybe<Memory>;
  advantagesPerSequence: boolean;
  importanceWeightsPerSequence: boolean;
  clipRatioLow: number;
  clipRatioHigh: number;
  clipRatioC: number;
  logRatioClamp: number;
  klEstimator: number;
  klCoef: number;
  lossAggMode: number;
  globalTokens: number;
  globalSequences: number;
  horizon: number;
  gradScale: number;
  entropyCoef: number;
  loss: Maybe<Memory>;
  metrics: Maybe<Memory>;
  counts: Maybe<Memory>;
}

export interface NativeFapoPenalty {
  device: number;
  correct: Memory;
  flawed: Memory;
  responseLengths: Maybe<Memory>;
  sequences: number;
  rewardCorrect: number;
  rewardWrong: number;
  flawedPenalty: number;
  unknownVerdict: number;
  overlongMaxLength: number;
  overlongBuffer: number;
  overlongFactor: number;
  rewards: Memory;
  fapoRewards: Memory;
  valid: Memory;
}

export interface NativeGrouping {
  sequences: number;
  groups: number;
  groupSize: number;
  groupOffsets: Maybe<Memory>;
  groupIds: Maybe<Memory>;
}

/** See `GroupAdvantage` in native/ops/group_advantage.h. In `fapoAdvantage` the inputs are outputs of the penalty. */
export interface NativeGroupAdvantage {
  device: number;
  grouping: NativeGrouping;
  rewards: Maybe<Memory>;
  valid: Maybe<Memory>;
  varianceRewards: Maybe<Memory>;
  baseline: number;
  scale: number;
  ddof: number;
  epsilon: number;
  singleton: number;
  advantages: Memory;
  groupMean: Memory;
  groupStd: Memory;
  zeroVariance: Memory;
}

/** The ops of native/addon.cpp, and the argument struct that each is given. */
interface NativeOps {
  cast(args: { device: number; source: NativeMatrix; rows: number; columns: number; result: NativeMatrix }): void;
  tokenLogprob(args: { tokens: NativeTokenLogits; logprobs: Memory; lse: Memory; entropy: Maybe<Memory> }): void;
  tokenLogprobBackward(args: {
    tokens: NativeTokenLogits;
    logprobs: Memory;
    lse: Memory;
    entropy: Maybe<Memory>;
    gradLogprobs: Memory;
    gradEntropy: Maybe<Memory>;
    gradScale: number;
    inPlace: boolean;
    gradLogits: NativeMatrix;
  }): void;
  fapoPenalty(args: NativeFapoPenalty): void;
  groupAdvantage(args: NativeGroupAdvantage): void;
  fapoAdvantage(args: { penalty: NativeFapoPenalty; advantage: NativeGroupAdvantage }): void;
  policyLoss(args: {
    device: number;
    tokens: number;
    logprobs: Memory;
    responseMask: Maybe<Memory>;
    batch: NativePolicyBatch;
    gradLogprobs: Memory;
  }): void;
  fusedPolicyLoss(args: {
    tokens: NativeTokenLogits;
    batch: NativePolicyBatch;
    inPlace: boolean;
    logprobs: Memory;
    lse: Memory;
    entropy: Maybe<Memory>;
    gradLogits: NativeMatrix;
  }): void;
  /** kind: 0 read, 1 read and write in place, 2 copy. */
  memoryFloor(args: { device: number; kind: number; data: Memory; destination: Maybe<Memory>; result: Memory }): void;
}

/** What the CUDA runtime answered when it was asked for its devices. */
export interface CudaProbe {
  readonly emulated: boolean;
  readonly devices: number;
  readonly status: number;
  readonly statusName: string;
  readonly statusMessage: string;
  /** CUDA version that the driver supports, such as 13000; 0: no driver. */
  readonly driver: number;
  /** CUDA version that the kernels were built with. */
  readonly runtime: number;
}

/** The names of the fields of an argument struct, in their order; of a struct within, its name and its fields. */
type Fields = readonly (string | readonly [string, Fields])[];

/** Ops take the values of the fields of their argument structs one after the other; see `run`. */
type AddonOps = { readonly [Name in keyof NativeOps]: (...values: unknown[]) => void };

interface Addon extends AddonOps {
  readonly fields: { readonly [Name in keyof NativeOps]: Fields };
  readonly isa: "baseline" | "avx2" | "avx512";
  setThreads(threads: number): void;
  threads(): number;
  /** For an array that is about to be written as a whole; see native/huge_pages.h. */
  preferHugePages(array: TensorData): void;
  /** Takes what the library of CUDA kernels exports. The functions below need it. */
  openCuda(library: unknown): void;
  cudaProbe(): CudaProbe;
  deviceInfo(device: number): {
    name: string;
    reason: string;
    computeMajor: number;
    computeMinor: number;
    multiprocessors: number;
    memory: number;
  };
  /** Handles are of memory that is freed by `release`, or when nobody holds the handle. */
  allocate(device: number, bytes: number, zeroed: boolean): object;
  /** A handle of memory that belongs to someone else. */
  borrow(device: number, address: bigint, bytes: number): object;
  release(handle: object): void;
  addressOf(handle: object): bigint;
  /** Offsets are in bytes; the array says how much. */
  copyToDevice(handle: object, offset: number, from: TensorData): void;
  copyToHost(to: TensorData, handle: object, offset: number): void;
  synchronize(device: number): void;
  memoryInfo(device: number): { used: number; reserved: number; limit: number; free: number; total: number };
  setMemoryLimit(device: number, bytes: number): void;
  stream(device: number): bigint;
  setStream(device: number, stream: bigint): void;
  /** Our stream waits for that one; that one waits for ours. */
  waitFor(device: number, stream: bigint): void;
  makeWait(device: number, stream: bigint): void;
  /** For benchmarks: `stopTimer` waits, and says how many milliseconds the GPU took for what came after `startTimer`. */
  startTimer(device: number): void;
  stopTimer(device: number): number;
}

let loaded: Addon | undefined;

/** @throws FapoError `ERR_ADDON_NOT_FOUND`, with what to do next */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

/** The file of the addon; the library of CUDA kernels lies beside it. */
export function addonFile(): string {
  return createRequire(import.meta.url)("node-gyp-build").path(fileURLToPath(new URL("..", import.meta.url)));
}

function load(): Addon {
  try {
    const found: Addon = createRequire(import.meta.url)(addonFile());
    return found;
  } catch (cause) {
    throw new FapoError(
      "ERR_ADDON_NOT_FOUND",
      `fapo-kernels: no native build loads here (${process.platform}-${process.arch}, Node ${process.version}); ` +
        "build it from source with `npx fapo-kernels build` (needs CMake 3.25 and a C++20 compiler). " +
        `The loader said: ${cause instanceof Error ? cause.message.split("\n")[0] : String(cause)}`,
      { cause },
    );
  }
}

/** Runs an op of the addon; what it throws becomes one sentence that starts with the op's name. */
export function run<Name extends keyof NativeOps>(op: Name, args: Parameters<NativeOps[Name]>[0]): void {
  const native = addon();
  const fields = native.fields[op];
  let places = placesOf.get(op);
  if (places === undefined) {
    expectOrder(op, fields, args);
    places = Array.from<unknown>({ length: countOf(fields) });
    placesOf.set(op, places);
  }
  // A copy has elements of its own: setters on a polluted Array.prototype would swallow what goes into holes.
  const values = places.slice();
  collect(fields, args, values, 0);
  try {
    native[op](...values);
  } catch (error) {
    throw failure(op, error);
  }
}

/**
 * Puts into `values`, from `next` on, those of literals made in lib/ops, which name the fields in the order of the
 * argument struct: reading them one by one under names known at run time would take as long as the op.
 *
 * @returns where the next value goes
 */
function collect(fields: Fields, from: object, values: unknown[], next: number): number {
  const own = Object.values(from);
  for (let i = 0; i < fields.length; i++) {
    const field = fields[i]!;
    if (typeof field === "string") values[next++] = own[i];
    else next = collect(field[1], own[i] as object, values, next);
  }
  return next;
}

/** A place for each value that an op takes, where its literals were seen to be in the right order. */
const placesOf = new Map<keyof NativeOps, readonly unknown[]>();

function countOf(fields: Fields): number {
  return fields.reduce((count, field) => count + (typeof field === "string" ? 1 : countOf(field[1])), 0);
}

function expectOrder(op: string, fields: Fields, from: object): void {
  const expected = fields.map((field) => (typeof field === "string" ? field : field[0]));
  const names = Object.keys(from);
  if (names.join() !== expected.join()) {
    throw new FapoError("ERR_INTERNAL", `${op}: native code takes ${expected.join(", ")}, not ${names.join(", ")}`);
  }
  for (const [i, field] of fields.entries()) {
    if (typeof field !== "string") expectOrder(op, field[1], Object.values(from)[i] as object);
  }
}

/** Calls another function of the addon; what it throws becomes one sentence that starts with `op`. */
export function call<Result>(op: string, body: (addon: Addon) => Result): Result {
  const native = addon();
  try {
    return body(native);
  } catch (error) {
    throw failure(op, error);
  }
}

function failure(op: string, error: unknown): FapoError {
  const { code, message, cudaError } = error as { code?: FapoErrorCode; message?: string; cudaError?: CudaErrorCode };
  return new FapoError(code ?? "ERR_INTERNAL", `${op}: ${message ?? String(error)}`, { cause: error, cudaError });
}

export type { NativeOps };

/** The number of a device in native code: -1 is the CPU. */
export const cpuDevice = -1;
