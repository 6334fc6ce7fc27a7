/** What there is to run on. */
import { addon, call, cpuDevice } from "./addon.ts";
import { expect } from "./check.ts";
import { cuda } from "./cuda.ts";
import { type Device, deviceNumber } from "./tensor.ts";

export interface Devices {
  cpu: {
    /** The instruction set that was chosen; the environment variable `FAPO_ISA` can ask for a lesser one. */
    isa: "baseline" | "avx2" | "avx512";
    /** How many threads an op may use. */
    threads: number;
  };
  cuda: {
    available: boolean;
    /** Why there is none. */
    reason?: string;
    /** Whether the GPUs are emulated, as in the tests of this package. */
    emulated: boolean;
    /** One entry per GPU, `"cuda:0"` first. */
    devices: readonly CudaDevice[];
  };
}

export interface CudaDevice {
  device: `cuda:${number}`;
  name: string;
  /** Such as `"9.0"`. */
  computeCapability: string;
  multiprocessors: number;
  /** In bytes. */
  memory: number;
  /** Why it cannot be used, as far as that is known without using it. */
  reason?: string;
}

/**
 * What was found, and why not where it was not. Looks for GPUs, and does not start to use them.
 * @throws FapoError `ERR_ADDON_NOT_FOUND`
 */
export function devices(): Devices {
  const { devices: count, emulated, reason } = cuda();
  const found = Array.from({ length: count }, (_, i) => cudaDevice(i));
  const usable = found.some((device) => device.reason === undefined);
  const why = reason ?? found.find((device) => device.reason !== undefined)?.reason;
  return {
    cpu: { isa: addon().isa, threads: addon().threads() },
    cuda: { available: usable, ...(usable || why === undefined ? {} : { reason: why }), emulated, devices: found },
  };
}

function cudaDevice(i: number): CudaDevice {
  const { name, reason, computeMajor, computeMinor, multiprocessors, memory } = addon().deviceInfo(i);
  const device: CudaDevice = {
    device: `cuda:${i}`,
    name,
    computeCapability: `${computeMajor}.${computeMinor}`,
    multiprocessors,
    memory,
  };
  return reason === "" ? device : { ...device, reason };
}

/** The memory of a GPU, in bytes. */
export interface CudaMemory {
  /** Held by tensors and work space of this process. */
  used: number;
  /** Taken from the GPU: used, or kept for reuse. */
  reserved: number;
  /** What may be taken; 0: no limit but the GPU's. */
  limit: number;
  /** Free on the GPU, whoever uses the rest. */
  free: number;
  total: number;
}

/**
 * How much memory of a GPU this process uses.
 * @throws FapoError `ERR_NO_CUDA`, `ERR_CUDA`, `ERR_INVALID_ARGUMENT`
 */
export function cudaMemory(device: Device = "cuda:0"): CudaMemory {
  const number = gpuNumber("cudaMemory", device);
  return call("cudaMemory", (native) => native.memoryInfo(number));
}

/**
 * How much memory of a GPU this package may take, for the whole process, workers included: beyond that, allocations
 * throw `ERR_OUT_OF_MEMORY`. Memory that is kept for reuse is given back where it is above the limit; what tensors hold
 * stays. The environment variable `FAPO_CUDA_MEMORY_LIMIT` sets it for every GPU, in bytes.
 *
 * @param bytes 0: no limit but the GPU's
 * @throws FapoError `ERR_NO_CUDA`, `ERR_CUDA`, `ERR_INVALID_ARGUMENT`
 */
export function setCudaMemoryLimit(device: Device, bytes: number): void {
  const op = "setCudaMemoryLimit";
  const number = gpuNumber(op, device);
  expect(Number.isSafeInteger(bytes) && bytes >= 0, op, "bytes", "a number of bytes", bytes);
  call(op, (native) => native.setMemoryLimit(number, bytes));
}

function gpuNumber(op: string, device: unknown): number {
  const number = deviceNumber(op, "device", device);
  expect(number !== cpuDevice, op, "device", '"cuda:0", "cuda:1", …', device);
  return number;
}

/**
 * How many threads an op may use on the CPU, the calling one among them: of the whole process, workers included.
 * Default: all cores that the process may use. Results do not depend on it.
 *
 * @param threads 1..256
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_ADDON_NOT_FOUND`
 */
export function setThreads(threads: number): void {
  const ok = Number.isInteger(threads) && threads >= 1 && threads <= 256;
  expect(ok, "setThreads", "threads", "an integer in 1..256", threads);
  addon().setThreads(threads);
}
