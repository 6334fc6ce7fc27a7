/**
 * CUDA: opens the library of kernels on first use, says why it cannot be used where it cannot, and holds memory of GPUs.
 */
import { existsSync } from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import { addon, addonFile, type CudaProbe, call } from "./addon.ts";
import { FapoError } from "./check.ts";

/** What came of opening the library: how many GPUs there are, or why there are none. */
export interface CudaState {
  readonly devices: number;
  readonly emulated: boolean;
  readonly reason: string | undefined;
}

let opened: CudaState | undefined;

/** Opens the library when it is first called; never throws but for `ERR_ADDON_NOT_FOUND`. */
export function cuda(): CudaState {
  opened ??= open();
  return opened;
}

function open(): CudaState {
  const none = (reason: string): CudaState => ({ devices: 0, emulated: false, reason });
  addon();
  const file = process.env.FAPO_KERNELS_CUDA || path.join(path.dirname(addonFile()), "fapo_kernels_cuda.so");
  if (!existsSync(file)) return none("this build of fapo-kernels has no CUDA kernels");
  try {
    const module: { exports: { library?: unknown } } = { exports: {} };
    process.dlopen(module, path.resolve(file), constants.dlopen.RTLD_NOW);
    addon().openCuda(module.exports.library);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return none(code === "ERR_NO_CUDA" ? message : `the CUDA kernels do not load: ${message.split("\n")[0]}`);
  }
  const probe = addon().cudaProbe();
  if (probe.devices > 0) return { devices: probe.devices, emulated: probe.emulated, reason: undefined };
  return { ...none(whyNoDevices(probe)), emulated: probe.emulated };
}

/** The runtime's own message is misleading where there is no driver at all. */
function whyNoDevices({ status, statusName, statusMessage, driver, runtime }: CudaProbe): string {
  const insufficientDriver = 35;
  const noDevice = 100;
  if (status === insufficientDriver || driver === 0) {
    if (driver === 0) return "no NVIDIA driver is installed";
    return (
      `the NVIDIA driver is too old: it supports CUDA ${version(driver)}, and these kernels need ${version(runtime)} ` +
      `(${statusName}, ${status})`
    );
  }
  if (status === noDevice || status === 0) {
    const hidden = process.env.CUDA_VISIBLE_DEVICES;
    if (hidden !== undefined) return `no GPU is visible (CUDA_VISIBLE_DEVICES is ${JSON.stringify(hidden)})`;
    return `no NVIDIA GPU was found (cudaErrorNoDevice, ${noDevice})`;
  }
  return `the CUDA runtime says ${statusName} (${status}), ${statusMessage}`;
}

function version(cuda: number): string {
  return `${Math.floor(cuda / 1000)}.${Math.floor((cuda % 1000) / 10)}`;
}

/** The number of `"cuda:N"`, which must be there. */
export function cudaDevice(op: string, argument: string, device: string): number {
  const number = Number(device.slice("cuda:".length));
  const { devices, reason } = cuda();
  if (number < devices) return number;
  const why = reason ?? `there is no GPU after cuda:${devices - 1}`;
  const message = `${op}: ${argument} is ${JSON.stringify(device)}, but ${why}; use "cpu"${reason ? "" : " or another"}`;
  throw new FapoError("ERR_NO_CUDA", message);
}

interface Loan {
  address: bigint;
  length: number;
  elementBytes: number;
  stream: bigint | undefined;
  owner: unknown;
}

/** A graph that is being captured. */
export interface Capture {
  readonly device: number;
  /** What the captured work uses; a hold on each. */
  readonly memory: Set<DeviceMemory>;
  /** What has to wait until the capture is over. */
  readonly afterwards: (() => void)[];
}

/** Of this thread. */
let capture: Capture | undefined;
export function setCapture(begun: Capture | undefined): void {
  capture = begun;
}

/** While a graph is captured, nothing else is worked on: it would be done once, and not by replays. */
export function expectCaptured(op: string, device: number): void {
  if (!capture || device === capture.device) return;
  const where = device < 0 ? "the CPU" : `cuda:${device}`;
  const message = `${op}: a graph of cuda:${capture.device} is being captured, and this is on ${where}`;
  throw new FapoError("ERR_DEVICE_MISMATCH", message);
}

/** For what no graph can contain. */
export function expectNoCapture(op: string): void {
  if (capture)
    throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: a graph is being captured, which cannot contain this`);
}

/** Elements in the memory of a GPU: what a typed array is on the host. Native code reads its properties. */
export class DeviceMemory {
  readonly handle: object;
  readonly device: number;
  /** In bytes, from the start of what the handle stands for. */
  readonly offset: number;
  /** In elements. */
  readonly length: number;
  readonly #tensors: { count: number };
  /** Where the memory belongs to someone else: what keeps it, and the stream that waits before it is used otherwise. */
  #lender: { owner: unknown; stream: bigint | undefined } | undefined;

  private constructor(handle: object, device: number, offset: number, length: number, tensors = { count: 0 }) {
    this.handle = handle;
    this.device = device;
    this.offset = offset;
    this.length = length;
    this.#tensors = tensors;
  }

  /** New memory; that of `zeros` is 0, any other holds anything. */
  static allocate(op: string, device: number, length: number, elementBytes: number, zeroed: boolean): DeviceMemory {
    expectCaptured(op, device);
    const handle = call(op, (native) => native.allocate(device, length * elementBytes, zeroed));
    const allocated = new DeviceMemory(handle, device, 0, length);
    allocated.used(op);
    return allocated;
  }

  /** Memory of someone else, after checks that it is what it should be. */
  static borrow(op: string, device: number, { address, length, elementBytes, stream, owner }: Loan): DeviceMemory {
    const handle = call(op, (native) => native.borrow(device, address, length * elementBytes));
    const borrowed = new DeviceMemory(handle, device, 0, length);
    borrowed.#lender = { owner, stream };
    return borrowed;
  }

  /** A part, `offset` in bytes, that shares the memory. */
  part(offset: number, length: number): DeviceMemory {
    return new DeviceMemory(this.handle, this.device, this.offset + offset, length, this.#tensors);
  }

  /** Something that is started works on it: a graph that is being captured holds it. */
  used(op: string): void {
    if (!capture) return;
    expectCaptured(op, this.device);
    if (capture.memory.has(this)) return;
    capture.memory.add(this);
    this.hold();
  }

  /** A tensor holds it; the memory is freed when the last one that shares it lets go. */
  hold(): void {
    this.#tensors.count++;
  }

  letGo(): void {
    this.#tensors.count--;
    if (this.#tensors.count > 0) return;
    const stream = this.#lender?.stream;
    this.#lender = undefined;
    addon().release(this.handle);
    if (stream === undefined) return;
    const wait = (): void => {
      try {
        addon().makeWait(this.device, stream);
      } catch {
        // A GPU that was lost: nothing runs there that could be waited for.
      }
    };
    if (capture?.device === this.device) {
      capture.afterwards.push(wait);
    } else {
      wait();
    }
  }

  toString(): string {
    return `${this.length} elements on cuda:${this.device}`;
  }
}
