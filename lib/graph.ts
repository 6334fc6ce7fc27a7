/// <reference lib="esnext.disposable" preserve="true" />
/**
 * CUDA graphs: the work of a whole training step, captured once and started again by one call.
 */
import { addon, call, cpuDevice, setRecorder } from "./addon.ts";
import { expect, FapoError } from "./check.ts";
import { DeviceMemory, setOnUse } from "./cuda.ts";
import { calls, type NativeOps } from "./native.ts";
import { type Device, deviceNumber, expectNoOther, ownOptions } from "./tensor.ts";

export interface GraphOptions {
  /** The GPU whose work is captured. Default `"cuda:0"`. */
  device?: Device;
}

/** Work of a GPU that was captured. Made by `captureGraph`. */
export class Graph<Result = unknown> {
  readonly device: Device;
  /** What the captured function returned: tensors in it are written anew by every replay. */
  readonly result: Result;
  #captured: { handle: object; memory: Set<DeviceMemory> } | undefined;

  /** @internal */
  constructor(device: Device, result: Result, handle: object, memory: Set<DeviceMemory>) {
    this.device = device;
    this.result = result;
    this.#captured = { handle, memory };
    Object.freeze(this);
  }

  /**
   * Starts all of it again, on what its tensors hold by then, and returns: as any op, in the order of the calls. What is
   * wrong with the data, such as a token id out of range, is thrown by the next wait.
   * @throws FapoError `ERR_DISPOSED`, `ERR_CUDA`
   */
  replay(): void {
    const captured = this.#captured;
    if (!captured) throw new FapoError("ERR_DISPOSED", "Graph.replay: the graph has been disposed");
    call("Graph.replay", (native) => native.replay(captured.handle));
  }

  /** Lets go of the graph and of the memory it works on. A second call does nothing. */
  dispose(): void {
    const captured = this.#captured;
    this.#captured = undefined;
    if (!captured) return;
    addon().releaseGraph(captured.handle);
    for (const held of captured.memory) held.letGo();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Captures what `body` starts on a GPU into a CUDA graph; nothing of it runs before the first replay. Run the step once
 * before: memory and kernels are ready then. Every array is a tensor on that GPU, for the host is not read again; scalars
 * are kept as they are now. All memory that is used stays until the graph is disposed, whatever becomes of its tensors.
 * Other threads cannot use the GPU while `body` runs.
 *
 * @param body synchronous; `item()`, `synchronize` and copies from or to the host throw in it
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_DEVICE_MISMATCH` for work elsewhere, `ERR_NO_CUDA`, `ERR_CUDA`,
 *   `ERR_OUT_OF_MEMORY`; and whatever `body` throws. Nothing has run then.
 */
export function captureGraph<Result>(body: () => Result, options: GraphOptions = {}): Graph<Result> {
  const op = "captureGraph";
  expect(typeof body === "function", op, "body", "a function", body);
  const { device = "cuda:0", ...rest } = ownOptions(op, options);
  expectNoOther(op, rest);
  const number = deviceNumber(op, "device", device);
  expect(number !== cpuDevice, op, "device", '"cuda:0", "cuda:1", …', device);
  if (capturing) throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: a graph is being captured already`);

  const memory = new Set<DeviceMemory>();
  call(op, (native) => native.beginCapture(number));
  let result: Result;
  let handle: object;
  try {
    startRecording(number, memory);
    try {
      result = body();
      if (isThenable(result)) expect(false, op, "body", "synchronous", result);
    } finally {
      stopRecording();
    }
    handle = call(op, (native) => native.endCapture(number));
  } catch (error) {
    addon().abandonCapture(number);
    for (const held of memory) held.letGo();
    throw error;
  }
  return new Graph(device as Device, result, handle, memory);
}

/** On this thread. */
let capturing = false;

/** From now on ops run on this device alone, and what they work on is held. */
function startRecording(device: number, memory: Set<DeviceMemory>): void {
  const native = addon();
  const recorder: Record<string, (...values: unknown[]) => void> = {};
  for (const op of Object.keys(calls) as (keyof NativeOps)[]) {
    recorder[op] = (...values) => {
      if (values[0] !== device) {
        const where = values[0] === cpuDevice ? "the CPU" : `cuda:${values[0]}`;
        throw new FapoError(
          "ERR_DEVICE_MISMATCH",
          `a graph of cuda:${device} is being captured, and this is on ${where}`,
        );
      }
      for (const value of values) if (value instanceof DeviceMemory) value.used();
      native[op](...values);
    };
  }
  capturing = true;
  setRecorder(recorder as NativeOps);
  setOnUse((used) => {
    if (memory.has(used)) return;
    memory.add(used);
    used.hold();
  });
}

function stopRecording(): void {
  capturing = false;
  setRecorder(undefined);
  setOnUse(undefined);
}

function isThenable(value: unknown): boolean {
  if (typeof value !== "object" || value === null || !("then" in value)) return false;
  if (value instanceof Promise) value.catch(() => {}); // its failure would be nobody's
  return typeof value.then === "function";
}
