/** 16-bit floats in plain TypeScript: what a program without native code has to do with bfloat16 and float16 logits. */
import type { TensorData } from "fapo-kernels";
import type { FloatDType } from "./case.ts";

/** All 65,536 values of a 16-bit dtype: widening is then one load, and the table fits into the second-level cache. */
function wideningTable(toFloat: (bits: number) => number): Float32Array {
  return new Float32Array(65536).map((_, bits) => toFloat(bits));
}

let tables: Partial<Record<FloatDType, Float32Array>> = {};

export function widening(dtype: FloatDType): Float32Array {
  const table = tables[dtype] ?? wideningTable(dtype === "bfloat16" ? bfloat16Value : float16Value);
  tables = { ...tables, [dtype]: table };
  return table;
}

/** Row `row` of a matrix of `columns`, as float32 in `into`; float32 rows are viewed, not copied. */
export function wideRow(
  data: TensorData,
  dtype: FloatDType,
  row: number,
  columns: number,
  into: Float32Array,
): Float32Array {
  const begin = row * columns;
  if (dtype === "float32") return (data as Float32Array).subarray(begin, begin + columns);
  const table = widening(dtype);
  for (let i = 0; i < columns; i++) into[i] = table[data[begin + i]!]!;
  return into;
}

/** Rounds to nearest even into `to`, from index `begin` on. */
export function narrow(from: Float32Array, dtype: FloatDType, to: TensorData, begin: number): void {
  if (dtype === "float32") {
    to.set(from, begin);
    return;
  }
  const bits = new Uint32Array(from.buffer, from.byteOffset, from.length);
  if (dtype === "bfloat16") {
    for (let i = 0; i < bits.length; i++) {
      const x = bits[i]!;
      to[begin + i] = (x & 0x7fffffff) > 0x7f800000 ? (x >>> 16) | 0x40 : (x + 0x7fff + ((x >>> 16) & 1)) >>> 16;
    }
    return;
  }
  for (let i = 0; i < bits.length; i++) to[begin + i] = float16Bits(bits[i]!, from[i]!);
}

function float16Bits(bits: number, value: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  // Below the normal numbers: a multiple of 2^-24, rounded by adding and subtracting 1.5 * 2^52.
  if (magnitude < 0x38800000) return sign | (Math.abs(value) * 2 ** 24 + 6755399441055744 - 6755399441055744);
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

function bfloat16Value(bits: number): number {
  return new Float32Array(new Uint32Array([bits << 16]).buffer)[0]!;
}

function float16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}
