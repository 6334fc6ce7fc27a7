/** What the tests of the reward, advantage and loss ops share: comparison, the forms of an input, groupings, outputs. */
import type { Int32Input, PolicyMetrics, Tensor, TensorData } from "fapo-kernels";
import { assertClose, assertSameBits, type TestDevice } from "../support.ts";
import { record } from "./worst.ts";

/** Float64 inside, one rounding to float32 at the end. */
export const roundedOnce = { atol: 1e-7, rtol: 1e-6 } as const;

/** Compares and remembers the worst error, which is printed when the file ends. */
export function close(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: { atol: number; rtol: number } = roundedOnce,
): void {
  const share = assertClose(actual, expected, tolerance, what);
  let error = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    if (difference > error) error = difference;
  }
  record(what, error, share);
}

export type Random = () => number;

export function integer(random: Random, low: number, high: number): number {
  return low + Math.floor(random() * (high - low + 1));
}

export function pick<T>(random: Random, values: readonly T[]): T {
  return values[Math.floor(random() * values.length)]!;
}

export function times<T>(count: number, make: (i: number) => T): T[] {
  return Array.from({ length: count }, (_, i) => make(i));
}

export function shuffled<T>(random: Random, values: readonly T[]): T[] {
  const result = [...values];
  for (let i = result.length - 1; i > 0; i--) {
    const j = integer(random, 0, i);
    [result[i], result[j]] = [result[j]!, result[i]!];
  }
  return result;
}

type Typed = Float32Array | Int32Array | Uint8Array | Int8Array;

/**
 * The forms that the same input can take: an array, a view in the middle of another, a tensor on the device, a view of
 * shared memory.
 */
export function inSomeForm<Data extends Typed>(device: TestDevice, random: Random, data: Data): Data | Tensor {
  const type = data.constructor as new (buffer: ArrayBufferLike, offset: number, length: number) => Data;
  const view = (buffer: ArrayBufferLike, offset: number): Data => {
    const result = new type(buffer, offset * data.BYTES_PER_ELEMENT, data.length);
    result.set(data);
    return result;
  };
  switch (integer(random, 0, 3)) {
    case 0:
      return data;
    case 1:
      return view(new ArrayBuffer(data.byteLength + 5 * data.BYTES_PER_ELEMENT), 3);
    case 2:
      return device.tensor(data);
    default:
      return view(new SharedArrayBuffer(data.byteLength + data.BYTES_PER_ELEMENT), 1);
  }
}

export interface Grouping {
  options:
    | { groupSize: number }
    | { groupOffsets: Int32Input | readonly number[] }
    | { groupIds: Int32Input | readonly number[]; groups: number };
  /** The group of each response. */
  ids: number[];
  groups: number;
}

/** One of the ways to say who answers the same prompt. */
export function someGrouping(random: Random, way: "size" | "offsets" | "ids"): Grouping {
  if (way === "size") {
    const [groups, groupSize] = [integer(random, 0, 6), integer(random, 1, 9)];
    return { options: { groupSize }, ids: times(groups * groupSize, (i) => Math.floor(i / groupSize)), groups };
  }
  const sizes = times(integer(random, 1, 7), () => (random() < 0.2 ? 0 : random() < 0.2 ? 1 : integer(random, 2, 9)));
  const ordered = sizes.flatMap((size, group) => times(size, () => group));
  if (way === "offsets") {
    return { options: { groupOffsets: offsetsOf(sizes) }, ids: ordered, groups: sizes.length };
  }
  const ids = shuffled(random, ordered);
  const groupIds = random() < 0.5 ? ids : Int32Array.from(ids);
  return { options: { groupIds, groups: sizes.length }, ids, groups: sizes.length };
}

export function offsetsOf(sizes: readonly number[]): number[] {
  const offsets = [0];
  for (const size of sizes) offsets.push(offsets.at(-1)! + size);
  return offsets;
}

export function metricValues(metrics: PolicyMetrics): Record<string, number> {
  return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [name, (value as Tensor).item()]));
}

/** Every output of a result by name, as the bits on the host. */
export function bitsOf(device: TestDevice, result: object): Map<string, TensorData> {
  const bits = new Map<string, TensorData>();
  for (const [name, value] of Object.entries(result)) {
    const tensors = name === "metrics" ? Object.entries(value as object) : [[name, value] as const];
    for (const [inner, tensor] of tensors) bits.set(inner, device.read(tensor as Tensor).slice());
  }
  return bits;
}

export function assertSameOutputs(device: TestDevice, actual: object, expected: object, what = ""): void {
  assertSameMaps(bitsOf(device, actual), bitsOf(device, expected), what);
}

export function assertSameMaps(
  actual: ReadonlyMap<string, TensorData>,
  expected: ReadonlyMap<string, TensorData>,
  what = "",
): void {
  for (const [name, data] of expected) assertSameBits(actual.get(name)!, data, `${what} ${name}`);
}

/** An `out` of the same shapes as a result, every element of it NaN or 99, so that whatever is not written shows. */
export function poisoned<Result extends object>(device: TestDevice, result: Result): Result {
  const entries = Object.entries(result).map(([name, value]) => {
    if (name !== "metrics") return [name, poisonedTensor(device, value as Tensor)] as const;
    if (device.name === "cpu") for (const scalar of Object.values(value as object)) poison((scalar as Tensor).data);
    return [name, value] as const;
  });
  return Object.fromEntries(entries) as Result;
}

function poisonedTensor(device: TestDevice, tensor: Tensor): Tensor {
  const data = device.read(tensor).slice();
  poison(data);
  return device.tensor(data, { shape: tensor.shape, dtype: tensor.dtype });
}

function poison(data: TensorData): void {
  data.fill(data instanceof Float32Array ? Number.NaN : 99);
}
