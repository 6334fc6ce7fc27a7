/** cast: between the floating-point dtypes. */
import { Arguments } from "../arguments.ts";
import { expect } from "../check.ts";
import { calls } from "../native.ts";
import { allocate, type DType, extentOf, isTensor, nativeMatrix, sizeOf, type Tensor } from "../tensor.ts";

const floatingDTypes: readonly unknown[] = ["float32", "bfloat16", "float16"];

export interface CastOptions {
  /** A tensor of the wanted shape and dtype, to be written to and returned. Its rows may be strided. */
  out?: Tensor | undefined;
}

/**
 * A packed copy of a tensor in another floating-point dtype: widening is exact, narrowing rounds to nearest even and
 * keeps NaN. The way to bfloat16 logits in JavaScript.
 *
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DEVICE_MISMATCH`, `ERR_OUT_OF_MEMORY`,
 *   `ERR_DISPOSED`, `ERR_CUDA`
 */
export function cast<D extends DType>(source: Tensor, dtype: D, options: CastOptions = {}): Tensor<D> {
  const op = "cast";
  const args = new Arguments(op, options);
  const out = args.take("out");
  args.done();
  expect(isTensor(source), op, "the tensor", "a Tensor", source);
  const wanted = "float32, bfloat16 or float16";
  expect(
    floatingDTypes.includes(source.dtype),
    op,
    "the tensor's dtype",
    wanted,
    source.dtype,
    "ERR_UNSUPPORTED_DTYPE",
  );
  expect(floatingDTypes.includes(dtype), op, "dtype", wanted, dtype, "ERR_UNSUPPORTED_DTYPE");
  args.locate("the tensor", source);
  const { shape } = source;
  const native = nativeMatrix(op, "the tensor", source);
  // Only a matrix can be strided; anything else is one long row.
  const matrix = shape.length === 2;
  const columns = matrix ? shape[1]! : sizeOf(shape);
  const needed = extentOf(shape, source.rowStride);
  expect(native.data.length >= needed, op, "the tensor's data", `of at least ${needed} elements`, native.data);
  const result =
    out === undefined ? args.made(() => allocate(op, shape, dtype, args.device)) : args.given("out", out, dtype, shape);
  const packed = { rowStride: columns };
  args.run(calls.cast, {
    device: args.device,
    source: matrix ? native : { ...native, ...packed },
    rows: matrix ? shape[0]! : 1,
    columns,
    result: matrix ? nativeMatrix(op, "out", result) : { ...nativeMatrix(op, "out", result), ...packed },
  });
  return result;
}
