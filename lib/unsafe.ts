/**
 * `fapo-kernels/unsafe`: memory and streams of other CUDA code in this process, by address. What can be checked is
 * checked before anything runs; that the memory stays where it is, and is not written to meanwhile, is yours to see to.
 */
import { call, cpuDevice } from "./addon.ts";
import { expect, FapoError } from "./check.ts";
import { DeviceMemory } from "./cuda.ts";
import {
  arrayTypeOf,
  checkShape,
  type Device,
  type DType,
  deviceNumber,
  expectNoOther,
  extentOf,
  isDType,
  isTensor,
  makeTensor,
  memory,
  ownOptions,
  sizeOf,
  type Tensor,
} from "./tensor.ts";

/** Elements in the memory of a GPU, by address. */
export interface DevicePointer<D extends DType = DType> {
  /** Of the first element; a multiple of the size of one. */
  address: bigint;
  dtype: D;
  /** Row-major. */
  shape: readonly number[];
  /** Elements from one to the next in each dimension. Only the rows of a matrix may be apart. Default: packed. */
  strides?: readonly number[];
  /** `"cuda:0"`, `"cuda:1"`, … */
  device: Device;
  /**
   * The `cudaStream_t` that the memory belongs to. Work of this package waits for what is on it now; what comes on it
   * after `dispose()` waits for this package. Default: the memory is ready, and unused when it is freed.
   */
  stream?: bigint;
  /** Kept alive until the tensor is disposed or collected. */
  owner?: unknown;
}

/**
 * A tensor over memory of someone else, without a copy; never freed here. The memory must be of that device by what the
 * CUDA runtime knows of its first and its last byte.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE`, `ERR_DEVICE_MISMATCH` for memory of another GPU,
 *   `ERR_NO_CUDA`, `ERR_CUDA`
 */
export function fromDevicePointer<D extends DType>(pointer: DevicePointer<D>): Tensor<D> {
  const op = "fromDevicePointer";
  const { address, dtype, shape, strides, device, stream, owner, ...rest } = ownOptions(op, pointer);
  expectNoOther(op, rest);
  expect(isDType(dtype), op, "dtype", "a dtype such as float32", dtype, "ERR_UNSUPPORTED_DTYPE");
  const dims = checkShape(op, shape);
  const rowStride = readStrides(op, dims, strides);
  const number = gpu(op, device);
  expect(typeof address === "bigint" && address >= 0n && address < 2n ** 64n, op, "address", "a BigInt", address);
  const elementBytes = arrayTypeOf(dtype).BYTES_PER_ELEMENT;
  expect(address % BigInt(elementBytes) === 0n, op, "address", `a multiple of ${elementBytes}`, address);
  if (stream !== undefined) checkStream(op, stream);

  const length = extentOf(dims, rowStride);
  expect(Number.isSafeInteger(length * elementBytes), op, "shape", "of fewer than 2^53 bytes", dims);
  const elements =
    length === 0
      ? DeviceMemory.allocate(op, number, 0, elementBytes, false)
      : DeviceMemory.borrow(op, number, { address, length, elementBytes, stream, owner });
  if (stream !== undefined) call(op, (native) => native.waitFor(number, stream));
  return makeTensor(elements, dims, dtype, rowStride) as Tensor<D>;
}

export interface DevicePointerOptions {
  /** A stream of yours: what comes on it from now on waits for everything that was started here on that device. */
  stream?: bigint;
}

/**
 * Where a tensor lies, for other CUDA code. The memory is the tensor's: keep the tensor, and do not dispose of it, for as
 * long as the address is used. `stream` in the result is the one this package works on.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_DEVICE_MISMATCH` for a tensor on the CPU, `ERR_DISPOSED`, `ERR_CUDA`
 */
export function devicePointer<D extends DType>(
  tensor: Tensor<D>,
  options: DevicePointerOptions = {},
): Required<DevicePointer<D>> {
  const op = "devicePointer";
  const { stream, ...rest } = ownOptions(op, options);
  expectNoOther(op, rest);
  expect(isTensor(tensor), op, "the tensor", "a Tensor", tensor);
  const elements = memory(op, "the tensor", tensor);
  if (!(elements instanceof DeviceMemory)) {
    throw new FapoError("ERR_DEVICE_MISMATCH", `${op}: expected a tensor on a GPU, got ${tensor}`);
  }
  const { device, offset, handle } = elements;
  if (stream !== undefined) {
    checkStream(op, stream);
    call(op, (native) => native.makeWait(device, stream));
  }
  const { shape, dtype } = tensor;
  return {
    address: call(op, (native) => native.addressOf(handle)) + BigInt(offset),
    dtype,
    shape,
    strides: packedStrides(shape).map((packed, i) => (shape.length === 2 && i === 0 ? tensor.rowStride : packed)),
    device: tensor.device,
    stream: call(op, (native) => native.stream(device)),
    owner: tensor,
  };
}

/**
 * Makes all work on a GPU go on a stream of yours from now on, for the whole process, workers included; undefined: on
 * the package's own again. What is on the stream before waits for nothing, what comes after is in order.
 *
 * @param stream the address of a `cudaStream_t` of that device; 1 is the legacy default stream. It must outlive its use.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_NO_CUDA`, `ERR_CUDA`
 */
export function setStream(device: Device, stream: bigint | undefined): void {
  const number = gpu("setStream", device);
  if (stream !== undefined) checkStream("setStream", stream);
  call("setStream", (native) => native.setStream(number, stream ?? 0n));
}

/**
 * The address of the `cudaStream_t` that work on a GPU goes on.
 * @throws FapoError `ERR_INVALID_ARGUMENT`, `ERR_NO_CUDA`, `ERR_CUDA`
 */
export function streamOf(device: Device): bigint {
  const number = gpu("streamOf", device);
  return call("streamOf", (native) => native.stream(number));
}

function gpu(op: string, device: unknown): number {
  const number = deviceNumber(op, "device", device);
  expect(number !== cpuDevice, op, "device", '"cuda:0", "cuda:1", …', device);
  return number;
}

function checkStream(op: string, stream: unknown): asserts stream is bigint {
  const ok = typeof stream === "bigint" && stream > 0n && stream < 2n ** 64n;
  expect(ok, op, "stream", "the address of a stream, as a BigInt", stream);
}

function packedStrides(shape: readonly number[]): number[] {
  return shape.map((_, i) => sizeOf(shape.slice(i + 1)));
}

/** The row stride of a matrix, and the row length of anything else. */
function readStrides(op: string, shape: readonly number[], strides: unknown): number {
  const packed = packedStrides(shape);
  const row = shape.length === 0 ? 1 : shape[shape.length - 1]!;
  if (strides === undefined) return row;
  const given = Array.isArray(strides) && strides.length === shape.length;
  expect(given, op, "strides", `${shape.length} numbers, in elements`, strides);
  for (const [i, stride] of (strides as unknown[]).entries()) {
    const apart = shape.length === 2 && i === 0;
    const ok = apart ? Number.isSafeInteger(stride) && (stride as number) >= row : stride === packed[i];
    expect(ok, op, `strides[${i}]`, apart ? `an integer of at least ${row}` : `${packed[i]}`, stride);
  }
  return shape.length === 2 ? (strides[0] as number) : row;
}
