/**
 * The memory floor: how fast this machine moves memory, through the same threads and vector loops as the ops. The buffers
 * are shared by all cases and allocated like those of the ops, so pages are of the same kind.
 */
import type { Device } from "fapo-kernels";

interface Addon {
  run(op: "memoryFloor", args: FloorArguments): void;
}

interface FloorArguments {
  kind: number;
  data: Float32Array;
  destination: Float32Array | undefined;
  result: Float32Array;
}

/** Reading; reading and writing in place; reading one buffer and writing another past the caches. */
export type FloorKind = "read" | "readWrite" | "copy";
const kindIds: Record<FloorKind, number> = { read: 0, readWrite: 1, copy: 2 };

// memoryFloor is no op of the public API: it is reached through the module that the package itself uses.
const { run } = (await import(new URL("../addon.js", import.meta.url).href)) as Addon;

let source = new Float32Array(0);
let target = new Float32Array(0);
const result = new Float32Array(1);

/** A call that moves `bytes` in all, read and written ones together; undefined where there is none yet: on GPUs. */
export function floor(kind: FloorKind, bytes: number, device: Device): (() => void) | undefined {
  if (device !== "cpu") return undefined;
  const length = Math.ceil(bytes / (kind === "read" ? 4 : 8));
  // Written to once: pages that were only ever read are all the same page of zeros, which sits in the cache.
  if (source.length < length) source = new Float32Array(length).fill(1);
  if (kind === "copy" && target.length < length) target = new Float32Array(length).fill(1);
  const args = {
    kind: kindIds[kind],
    data: source.subarray(0, length),
    destination: kind === "copy" ? target.subarray(0, length) : undefined,
    result,
  };
  return () => run("memoryFloor", args);
}
