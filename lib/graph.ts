/// <reference lib="esnext.disposable" preserve="true" />
/**
 * CUDA graphs: the work of a whole training step, captured once and started again by one call.
 */
import { addon, call, cpuDevice, setRecorder } from "./addon.ts";
import { expect, FapoError } from "./check.ts";
import { type Capture, DeviceMemory, expectCaptured, expectNoCapture, setCapture } from "./cuda.ts";
import { calls, type NativeOps } from "./native.ts";
import { type Device, deviceNumber, expectNoOther, ownOptions } from "./tensor.ts";

export interface GraphOptions {
  /** The GPU whose work is captured. Default `"cuda:0"`. */
  device?: Device;
}

const internal = Symbol("internal");

/** What native code replays, and the memory that it works on. */
interface Captured {
  readonly handle: object;
  readonly memory: ReadonlySet<DeviceMemory>;
}

function letGo({ handle, memory }: Captured): void {
  addon().releaseGraph(handle);
  for (const held of memory) held.letGo();
}

/** For graphs that nobody disposes of. */
const collected = new FinalizationRegistry(letGo);

/** Work of a GPU that was captured. Made by `captureGraph`. */
export class Graph<Result = unknown> {
  readonly device: Device;
  /** What the captured function returned: tensors in it are written anew by every replay. */
  readonly result: Result;
  #captured: Captured | undefined;

  /** @internal */
  constructor(key: symbol, device: Device, result: Result, captured: Captured) {
    if (key !== internal) throw new FapoError("ERR_INVALID_ARGUMENT", "Graph: captureGraph() makes one");
    this.device = device;
    this.result = result;
    this.#captured = captured;
    collected.register(this, captured, captured);
    Object.freeze(this);
  }

  /**
   * Starts all of it again, on what its tensors hold by then, and returns: as any op, in the order of the calls. What is
   * wrong with the data, such as a token id out of range, is thrown by the next wait.
   * @throws FapoError `ERR_DISPOSED`, `ERR_CUDA`, `ERR_INVALID_ARGUMENT` while a graph is captured
   */
  replay(): void {
    expectNoCapture("Graph.replay");
    const captured = this.#captured;
    if (!captured) throw new FapoError("ERR_DISPOSED", "Graph.replay: the graph has been disposed");
    call("Graph.replay", (native) => native.replay(captured.handle));
  }

  /** Lets go of the graph and of the memory it works on. A second call does nothing. */
  dispose(): void {
    const captured = this.#captured;
    this.#captured = undefined;
    if (!captured) return;
    collected.unregister(captured);
    letGo(captured);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Captures what `body` starts on a GPU into a CUDA graph; nothing of it runs before the first replay. Run the step once
 * before: memory and kernels are ready then. Every array is a tensor on that GPU, for the host is not read again; scalars
 * are kept as they are now. All memory that is used stays until the graph is disposed, whatever becomes of its tensors;
 * what is made in `body`, `zeros` too, holds anything before the first replay. Other threads cannot use the GPU while
 * `body` runs.
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
  expectNoCapture(op);

  const capture: Capture = { device: number, memory: new Set(), afterwards: [] };
  call(op, (native) => native.beginCapture(number));
  let result: Result;
  let handle: object;
  try {
    setCapture(capture);
    setRecorder(recorder());
    try {
      result = body();
      if (isThenable(result)) expect(false, op, "body", "synchronous", result);
    } finally {
      setRecorder(undefined);
      setCapture(undefined);
    }
    handle = call(op, (native) => native.endCapture(number));
  } catch (error) {
    addon().abandonCapture(number);
    for (const held of capture.memory) held.letGo();
    for (const one of capture.afterwards) one();
    throw error;
  }
  for (const one of capture.afterwards) one();
  return new Graph(internal, device as Device, result, { handle, memory: capture.memory });
}

/** The ops as they are called meanwhile: on this device alone, and what they work on is held. */
function recorder(): NativeOps {
  const native = addon();
  const ops: Record<string, (...values: unknown[]) => void> = {};
  for (const op of Object.keys(calls) as (keyof NativeOps)[]) {
    ops[op] = (...values) => {
      expectCaptured(op, values[0] as number);
      for (const value of values) if (value instanceof DeviceMemory) value.used(op);
      native[op](...values);
    };
  }
  return ops as NativeOps;
}

function isThenable(value: unknown): boolean {
  const some = (typeof value === "object" && value !== null) || typeof value === "function";
  if (!some || !("then" in value)) return false;
  if (value instanceof Promise) value.catch(() => {}); // its failure would be nobody's
  return typeof value.then === "function";
}
