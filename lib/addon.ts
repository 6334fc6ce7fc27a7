/** Finds and loads the native addon, on first use, and types what native/addon.cpp exports besides the ops. */
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { type CudaErrorCode, FapoError, type FapoErrorCode } from "./check.ts";
import { type Call, calls, type NativeOps } from "./native.ts";
import type { TensorData } from "./tensor.ts";

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

interface Addon extends NativeOps {
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
  /** Rows between memory of one GPU; offsets, strides and sizes are in bytes. */
  copyOnDevice(
    to: object,
    toOffset: number,
    toStride: number,
    from: object,
    fromOffset: number,
    fromStride: number,
    rowBytes: number,
    rows: number,
  ): void;
  synchronize(device: number): void;
  memoryInfo(device: number): { used: number; reserved: number; limit: number; free: number; total: number };
  setMemoryLimit(device: number, bytes: number): void;
  stream(device: number): bigint;
  setStream(device: number, stream: bigint): void;
  /** Our stream waits for that one; that one waits for ours. */
  waitFor(device: number, stream: bigint): void;
  makeWait(device: number, stream: bigint): void;
  /** From the one to the other, what this thread starts on the device is kept instead of run: as a graph. */
  beginCapture(device: number): void;
  endCapture(device: number): object;
  abandonCapture(device: number): void;
  replay(graph: object): void;
  releaseGraph(graph: object): void;
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
  let found: Addon;
  try {
    found = createRequire(import.meta.url)(addonFile());
  } catch (cause) {
    throw notFound("no native build loads here", cause instanceof Error ? cause.message.split("\n")[0] : cause, cause);
  }
  for (const op of Object.keys(calls) as (keyof NativeOps)[]) {
    const taken = pathsOf(found.fields?.[op] ?? []);
    const passed = pathsPassed(op);
    for (let i = 0; i < Math.max(taken.length, passed.length); i++) {
      if (taken[i] === passed[i]) continue;
      const difference = `${op} takes ${taken[i] ?? "nothing"} where it is given ${passed[i] ?? "nothing"}`;
      throw notFound("the native build is of another version", difference);
    }
  }
  return found;
}

function notFound(what: string, reason: unknown, cause?: unknown): FapoError {
  return new FapoError(
    "ERR_ADDON_NOT_FOUND",
    `fapo-kernels: ${what} (${process.platform}-${process.arch}, Node ${process.version}); ` +
      "build it from source with `npx fapo-kernels build` (needs CMake 3.25 and a C++20 compiler). " +
      `The loader said: ${reason}`,
    { cause },
  );
}

/** The values that an op takes, by name: `.batch.gradScale`. */
function pathsOf(fields: Fields, within = ""): string[] {
  return fields.flatMap((field) =>
    typeof field === "string" ? `${within}.${field}` : pathsOf(field[1], `${within}.${field[0]}`),
  );
}

/** The values that `calls` passes. */
function pathsPassed(op: keyof NativeOps): string[] {
  const named = (path: string): object =>
    new Proxy(() => path, { get: (text, name) => (typeof name === "symbol" ? text : named(`${path}.${name}`)) });
  const passed: string[] = [];
  const recorder = { [op]: (...values: unknown[]) => void passed.push(...values.map(String)) };
  (calls[op] as Call<unknown>)(recorder as unknown as NativeOps, named(""));
  return passed;
}

/** What ops are called on while a graph is captured. */
let recorder: NativeOps | undefined;
export function setRecorder(native: NativeOps | undefined): void {
  recorder = native;
}

/** Runs one of `calls`; what it throws becomes one sentence that starts with the op's name. */
export function run<Args>(op: string, call: Call<Args>, args: Args): void {
  const native = recorder ?? addon();
  try {
    call(native, args);
  } catch (error) {
    throw failure(op, error);
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
  if (error instanceof FapoError) return error;
  const { code, message, cudaError } = error as { code?: FapoErrorCode; message?: string; cudaError?: CudaErrorCode };
  return new FapoError(code ?? "ERR_INTERNAL", `${op}: ${message ?? String(error)}`, { cause: error, cudaError });
}

/** The number of a device in native code: -1 is the CPU. */
export const cpuDevice = -1;
