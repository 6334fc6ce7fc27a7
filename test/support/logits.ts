/** Batches of logits for the tests of the ops over a vocabulary. */
import { cast, type DType, type Tensor, type TensorData, tensor } from "fapo-kernels";
import { type FloatDType, normal, rng, type TestDevice } from "../support.ts";

export interface LogitsBatch {
  rows: number;
  vocab: number;
  dtype: FloatDType;
  /** As the op gets them. */
  data: Float32Array | Uint16Array;
  /** The numbers they are: what a reference must be fed. */
  values: Float32Array;
  /** 0 and vocab - 1 are among them as soon as there are two rows. */
  tokenIds: Int32Array;
}

export function batchOf(
  values: Float32Array,
  rows: number,
  vocab: number,
  dtype: FloatDType,
  tokenIds: Int32Array = edgeIds(rows, vocab),
): LogitsBatch {
  if (dtype === "float32" || values.length === 0) {
    return { rows, vocab, dtype, data: dtype === "float32" ? values : new Uint16Array(0), values, tokenIds };
  }
  // Both directions of cast are tested against their definition for every value of 16 bits.
  const narrow = cast(tensor(values), dtype);
  return {
    rows,
    vocab,
    dtype,
    data: narrow.data as Uint16Array,
    values: cast(narrow, "float32").data as Float32Array,
    tokenIds,
  };
}

/** The first row takes id 0, the second (or an only one of an odd vocabulary) the last id, others anything. */
function edgeIds(rows: number, vocab: number): Int32Array {
  const random = rng(rows * 1009 + vocab);
  return Int32Array.from({ length: rows }, (_, i) => {
    if (i === 0) return rows === 1 && vocab % 2 === 1 ? vocab - 1 : 0;
    return i === 1 ? vocab - 1 : Math.floor(random() * vocab);
  });
}

const draw = normal(rng(20251122));
const pool = Float64Array.from({ length: 1 << 19 }, draw);

/** offset + sigma * normal, deterministic in its arguments. */
export function normalValues(count: number, sigma: number, offset: number, seed: number): Float32Array {
  const values = new Float32Array(count);
  const start = Math.floor(rng(seed)() * pool.length);
  for (let i = 0; i < count; i++) values[i] = offset + sigma * pool[(start + i) & (pool.length - 1)]!;
  return values;
}

export function normalBatch(
  rows: number,
  vocab: number,
  dtype: FloatDType,
  { sigma = 2, offset = 0, seed = 1 }: { sigma?: number; offset?: number; seed?: number } = {},
): LogitsBatch {
  return batchOf(normalValues(rows * vocab, sigma, offset, seed), rows, vocab, dtype);
}

export function rowOf({ values, vocab }: LogitsBatch, row: number): Float32Array {
  return values.subarray(row * vocab, (row + 1) * vocab);
}

export function logitsTensor(device: TestDevice, { data, rows, vocab, dtype }: LogitsBatch): Tensor {
  return device.tensor(data, { shape: [rows, vocab], dtype });
}

/** A NaN of a 16-bit dtype. */
export const nan16 = 0x7fff;

/** A tensor that nobody has written to: all NaN. */
export function nans(device: TestDevice, shape: readonly number[]): Tensor<"float32">;
export function nans(device: TestDevice, shape: readonly number[], dtype: FloatDType): Tensor;
export function nans(device: TestDevice, shape: readonly number[], dtype: FloatDType = "float32"): Tensor {
  const count = shape.reduce((product, size) => product * size, 1);
  const data = dtype === "float32" ? new Float32Array(count).fill(Number.NaN) : new Uint16Array(count).fill(nan16);
  return device.tensor(data, { shape, dtype });
}

/** The rows with NaN in the gaps between them and behind the last. */
export function spread({ data, rows, vocab, dtype }: LogitsBatch, rowStride: number): Float32Array | Uint16Array {
  const length = rows === 0 ? 0 : (rows - 1) * rowStride + vocab;
  const wide = dtype === "float32" ? new Float32Array(length).fill(Number.NaN) : new Uint16Array(length).fill(nan16);
  for (let i = 0; i < rows; i++) wide.set(data.subarray(i * vocab, (i + 1) * vocab), i * rowStride);
  return wide;
}

/** `data` in memory of its own that starts `bytes` bytes after the start of an allocation. */
export function shifted<Data extends TensorData>(data: Data, bytes: number, shared = false): Data {
  const size = data.byteLength + bytes;
  const buffer = shared ? new SharedArrayBuffer(size) : new ArrayBuffer(size);
  const Type = data.constructor as new (buffer: ArrayBufferLike, offset: number, length: number) => Data;
  const copy = new Type(buffer, bytes, data.length);
  copy.set(data);
  return copy;
}

/** A typed array of the class that a dtype travels in. */
export function arrayFor(dtype: DType, length: number): TensorData {
  const types = {
    float32: Float32Array,
    bfloat16: Uint16Array,
    float16: Uint16Array,
    int32: Int32Array,
    uint8: Uint8Array,
    int8: Int8Array,
  };
  return new types[dtype](length);
}
