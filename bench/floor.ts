/**
 * The memory floor: how fast this machine moves memory, on the CPU through the same threads and vector loops as the ops,
 * and over the same memory where a case says which: where its pages lie makes a tenth of the time.
 */
import { type Device, type Tensor, tensor, toDevice } from "fapo-kernels";
import type { Prepared } from "./case.ts";

interface Addon {
  run(op: string, call: object, args: FloorArguments): void;
}

interface FloorArguments {
  device: number;
  kind: number;
  data: Memory;
  destination: Memory | undefined;
  result: Memory;
}

/** What native code takes for an array: of the host, or of a GPU. */
type Memory = Float32Array | { length: number; part(offset: number, length: number): Memory };

interface Tensors {
  memory(op: string, argument: string, of: unknown): Memory;
}

/**
 * Reading; reading and writing in place; reading one buffer and writing another past the caches. The copy asks ahead as
 * the ops do, where that makes it faster; the plain copy does not.
 */
export type FloorKind = "read" | "readWrite" | "copy" | "plainCopy";
const kindIds: Record<FloorKind, number> = { read: 0, readWrite: 1, copy: 2, plainCopy: 3 };

// memoryFloor is no op of the public API: it is reached through the modules that the package itself uses.
const { run } = (await import(new URL("../addon.js", import.meta.url).href)) as Addon;
const { calls } = (await import(new URL("../native.js", import.meta.url).href)) as { calls: { memoryFloor: object } };
const { memory } = (await import(new URL("../tensor.js", import.meta.url).href)) as Tensors;

interface Buffers {
  source: Memory;
  target: Memory;
  result: Memory;
}
const buffersOf = new Map<Device, Buffers>();

/** A call that moves `bytes` in all, read and written ones together. */
export function floor(kind: FloorKind, bytes: number, device: Device, moves?: Prepared["moves"]): () => void {
  const length = Math.floor(bytes / (kind === "read" ? 4 : 8));
  const copies = kind === "copy" || kind === "plainCopy";
  const buffers = buffersOf.get(device) ?? {
    source: elements(0, device),
    target: elements(0, device),
    result: elements(1, device),
  };
  buffersOf.set(device, buffers);
  if (!moves && buffers.source.length < length) buffers.source = elements(length, device);
  if (!moves && copies && buffers.target.length < length) buffers.target = elements(length, device);
  const target = moves?.target ? floats(moves.target) : buffers.target;
  const args = {
    device: device === "cpu" ? -1 : Number(device.slice("cuda:".length)),
    kind: kindIds[kind],
    data: first(moves ? floats(moves.source) : buffers.source, length),
    destination: copies ? first(target, length) : undefined,
    result: buffers.result,
  };
  return () => run("bench", calls.memoryFloor, args);
}

/** The memory of a tensor of any dtype, as float32: what the bits mean makes no difference to the time. */
function floats(of: Tensor): Memory {
  if (of.device !== "cpu") return memory("bench", "a tensor", of);
  const { buffer, byteOffset, byteLength } = of.data;
  return new Float32Array(buffer, byteOffset, Math.floor(byteLength / 4));
}

/**
 * On the host written to once: pages that were only ever read are all the same page of zeros, which sits in the cache. On
 * a GPU random, as bits that do not change cost less power.
 */
function elements(length: number, device: Device): Memory {
  if (device === "cpu") return new Float32Array(length).fill(1);
  const some = Float32Array.from({ length: Math.min(length, 1 << 20) }, () => Math.random() - 0.5);
  if (length <= some.length) return memory("bench", "a buffer", toDevice(tensor(some), device));
  const pattern = new Float32Array(length);
  for (let i = 0; i < length; i += some.length) pattern.set(some.subarray(0, length - i), i);
  return memory("bench", "a buffer", toDevice(tensor(pattern), device));
}

function first(data: Memory, length: number): Memory {
  return data instanceof Float32Array ? data.subarray(0, length) : data.part(0, length);
}
