/** cast between float32 and the 16-bit dtypes, into an `out` that is used again. */
import { cast, type Device, type Tensor, type TensorData, tensor, toDevice } from "fapo-kernels";
import type { Prepared, VocabShape } from "./case.ts";
import {
  type BenchCase,
  type CaseOptions,
  expectClose,
  type FloatDType,
  type OpBench,
  plainTypeScript,
} from "./case.ts";
import { vocabBatch } from "./data.ts";
import { narrow, widening } from "./half.ts";
import { read } from "./place.ts";
import { bytesPer, firstRows, shapeName } from "./vocab.ts";

export const castBench: OpBench = { op: "cast", cases };

function cases({ dtypes, quick, device }: CaseOptions): BenchCase[] {
  // 64 rows of Qwen 2.5.
  const shape: VocabShape = quick ? [8, 32000] : [64, 151936];
  const half = dtypes.filter((dtype) => dtype !== "float32");
  return half.flatMap((dtype) => [
    castCase(shape, "float32", dtype, device),
    castCase(shape, dtype, "float32", device),
  ]);
}

function castCase(shape: VocabShape, from: FloatDType, to: FloatDType, device: Device): BenchCase {
  const [rows, vocab] = shape;
  return {
    op: "cast",
    variant: `to ${to}`,
    shape: shapeName(shape),
    dtype: from,
    device,
    bytes: rows * vocab * (bytesPer[from] + bytesPer[to]), // every element, read once and written once
    floor: "copy",
    prepare: () => prepare(shape, from, to, device),
  };
}

function prepare(shape: VocabShape, from: FloatDType, to: FloatDType, device: Device): Prepared {
  const { logits, tokenIds } = vocabBatch(shape, from, device);
  const out: Tensor = cast(logits, to);
  const call = (): void => void cast(logits, to, { out });
  const some = firstRows(logits, tokenIds);
  const few = toDevice(tensor(some.logits, { shape: [some.rows, some.vocab], dtype: from }), device);
  const theirs: TensorData =
    to === "float32" ? new Float32Array(some.logits.length) : new Uint16Array(some.logits.length);
  return {
    call,
    peers: [
      {
        name: plainTypeScript,
        scale: shape[0] / some.rows,
        call() {
          if (to === "float32") widen(some.logits, widening(from), theirs);
          else narrow(some.logits as Float32Array, to, theirs, 0);
        },
        check() {
          this.call();
          expectClose("result", read(cast(few, to)), theirs, { atol: 0, rtol: 0 });
        },
      },
    ],
  };
}

function widen(from: TensorData, table: Float32Array, to: TensorData): void {
  for (let i = 0; i < to.length; i++) to[i] = table[from[i]!]!;
}
