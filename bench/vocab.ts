/** What the ops over a vocabulary share. */
import type { Tensor, TensorData } from "fapo-kernels";
import type { Rows } from "./baseline.ts";
import { expectClose, type FloatDType, type VocabShape } from "./case.ts";
import { widening } from "./half.ts";
import { read } from "./place.ts";

export const bytesPer: Record<FloatDType, number> = { float32: 4, bfloat16: 2, float16: 2 };

/** A call on this is all overhead. */
export const tinyShape: VocabShape = [1, 16];

export function shapeName([rows, vocab]: VocabShape): string {
  return `${rows}x${vocab}`;
}

/** Where half of the rows is still a batch. */
export function manyRows([rows]: VocabShape): boolean {
  return rows >= 16;
}

/**
 * Gradients with token-mean are about 1 / (rows * vocab). That is below what float16 holds, so a trainer scales the loss;
 * without it the benchmark would time the writing of zeros.
 */
export function gradScaleOf(dtype: FloatDType, rows: number): number {
  return dtype === "float16" ? 1024 * rows : 1;
}

/** Plain TypeScript is a hundred times slower: it gets a few rows. */
export function baselineRows(rows: number): number {
  return Math.min(rows, 4);
}

/** A copy of the first rows, for the baseline: an op in place must not take them away. */
export function firstRows(logits: Tensor, tokenIds: Int32Array, mask?: Uint8Array): Rows {
  const vocab = logits.shape[1]!;
  const rows = baselineRows(tokenIds.length);
  const own = read(logits).slice(0, rows * vocab);
  return { logits: own, dtype: logits.dtype as FloatDType, rows, vocab, tokenIds, ...(mask && { mask }) };
}

/** Within rounding to the dtype, which may fall either way where the two differ in float32 already. */
export function checkGradients(actual: Tensor, expected: TensorData, dtype: FloatDType): void {
  const wide = (data: TensorData): ArrayLike<number> =>
    dtype === "float32" ? data : Float32Array.from(data, (bits) => widening(dtype)[bits]!);
  const rtol = { float32: 2e-5, bfloat16: 2 ** -7, float16: 2 ** -10 }[dtype];
  const atol = dtype === "float16" ? 2 ** -24 : 1e-11;
  expectClose("gradLogits", wide(read(actual).subarray(0, expected.length)), wide(expected), { atol, rtol });
}
