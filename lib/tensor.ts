/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Tensors: typed memory with a shape, and where it lives. No arithmetic here; ops read the memory through `memory()`.
 */
import { call, cpuDevice } from "./addon.ts";
import { expect, FapoError } from "./check.ts";
import { cudaDevice, DeviceMemory, expectCaptured } from "./cuda.ts";
import type { Memory, NativeMatrix } from "./native.ts";

/** Element types. bfloat16 and float16 travel as their 16 bits in a `Uint16Array`. */
export type DType = "float32" | "bfloat16" | "float16" | "int32" | "uint8" | "int8";
export type Device = "cpu" | `cuda:${number}`;
/** The array class that holds each dtype. */
export interface DataByDType {
  float32: Float32Array;
  bfloat16: Uint16Array;
  float16: Uint16Array;
  int32: Int32Array;
  uint8: Uint8Array;
  int8: Int8Array;
}
export type TensorData = DataByDType[DType];

interface TensorDataConstructor {
  new (length: number): TensorData;
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): TensorData;
  readonly BYTES_PER_ELEMENT: number;
}

const arrayTypes: Record<DType, TensorDataConstructor> = {
  float32: Float32Array,
  bfloat16: Uint16Array,
  float16: Uint16Array,
  int32: Int32Array,
  uint8: Uint8Array,
  int8: Int8Array,
};

const inferredDTypes = new Map<TensorDataConstructor | undefined, DType>([
  [Float32Array, "float32"],
  [Int32Array, "int32"],
  [Uint8Array, "uint8"],
  [Int8Array, "int8"],
]);

const internal = Symbol("internal");

/**
 * A row-major array on a device. Rows of a matrix may be strided. Made by `tensor()`, `zeros()`, `cast()`, `toDevice()`
 * and the ops; never constructed directly.
 */
export class Tensor<D extends DType = DType> {
  readonly dtype: D;
  /** Sizes per dimension; `[]` is a scalar. */
  readonly shape: readonly number[];
  /** Elements from the start of one row to the start of the next; the row length where rows are packed. */
  readonly rowStride: number;
  readonly device: Device;
  #data: Memory | undefined;

  /** @internal */
  constructor(key: symbol, data: Memory, shape: readonly number[], dtype: D, rowStride: number) {
    if (key !== internal) throw new FapoError("ERR_INVALID_ARGUMENT", "Tensor: make one with tensor() or zeros()");
    this.#data = data;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.rowStride = rowStride;
    this.device = data instanceof DeviceMemory ? `cuda:${data.device}` : "cpu";
    if (data instanceof DeviceMemory) data.hold();
    Object.freeze(this);
  }

  /**
   * The elements: the very array that was wrapped, not a copy.
   * @throws FapoError `ERR_DISPOSED`; `ERR_DEVICE_MISMATCH` for a tensor on a GPU, whose elements `toDevice` copies
   */
  get data(): DataByDType[D] {
    const data = memory("Tensor.data", "the tensor", this);
    if (data instanceof DeviceMemory) {
      const message = `Tensor.data: the tensor is on ${this.device}; toDevice(tensor, "cpu").data copies its elements`;
      throw new FapoError("ERR_DEVICE_MISMATCH", message);
    }
    return data as DataByDType[D];
  }

  /**
   * The value of a tensor of one element, as a number. On a GPU it waits for everything that was started there.
   * @throws FapoError `ERR_DISPOSED`, `ERR_INVALID_ARGUMENT` when there is not exactly one element; what `synchronize`
   *   throws
   */
  item(): number {
    const data = memory("Tensor.item", "the tensor", this);
    expect(sizeOf(this.shape) === 1 && data.length >= 1, "Tensor.item", "the tensor", "of one element", this);
    return toNumber(onHost("Tensor.item", data, this.dtype, 1)[0]!, this.dtype);
  }

  /**
   * Lets go of the memory; that of a GPU is free for other tensors at once. A second call does nothing; any other use
   * afterwards throws `ERR_DISPOSED`.
   */
  dispose(): void {
    const data = this.#data;
    this.#data = undefined;
    if (data instanceof DeviceMemory) data.letGo();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A scalar is its value in JSON, so that logged metrics are numbers; anything else is described. */
  toJSON(): unknown {
    return this.shape.length === 0 && this.#data ? this.item() : this.toString();
  }

  toString(): string {
    return `a ${this.dtype} tensor [${this.shape.join(", ")}] on ${this.device}${this.#data ? "" : ", disposed"}`;
  }

  /** @internal Undefined when `value` is no tensor, null when it is disposed. */
  static memoryOf(value: object): Memory | undefined | null {
    return #data in value ? (value.#data ?? null) : undefined;
  }
}

// What a printed tensor shows: the value of a scalar, or what and how much it is, and the first elements. Not those of a
// GPU: printing does not wait.
Object.defineProperty(Tensor.prototype, Symbol.for("nodejs.util.inspect.custom"), {
  value(this: Tensor, _depth: number, _options: unknown, inspect: (value: unknown) => string): string {
    const data = Tensor.memoryOf(this);
    const text = this.toString().replace(/^an? /, "");
    if (!data || data instanceof DeviceMemory) return text;
    if (this.shape.length === 0) return `${text}: ${this.item()}`;
    const shown = Array.from(data.subarray(0, 6), (bits) => toNumber(bits, this.dtype));
    return `${text}: ${inspect(shown)}${data.length > 6 ? " …" : ""}`;
  },
});

/** Whether `value` is one of our tensors: by its private field, so nothing can pose as one. */
export function isTensor(value: unknown): value is Tensor {
  return typeof value === "object" && value !== null && Tensor.memoryOf(value) !== undefined;
}

/** The elements of a tensor, for the addon. Throws `ERR_DISPOSED` when they are gone. */
export function memory(op: string, argument: string, tensor: Tensor): Memory {
  const data = Tensor.memoryOf(tensor);
  if (!data) throw new FapoError("ERR_DISPOSED", `${op}: ${argument} has been disposed`);
  return data;
}

/** The elements as an array of the host: a copy of what is on a GPU, after a wait for it. */
export function onHost(op: string, data: Memory, dtype: DType, length: number = data.length): TensorData {
  if (!(data instanceof DeviceMemory)) return data;
  expectCaptured(op, data.device);
  const copy = newOutputArray(op, [length], dtype);
  call(op, (native) => native.copyToHost(copy, data.handle, data.offset));
  return copy;
}

export interface TensorOptions {
  /** Default: one dimension, the length of the data. */
  shape?: readonly number[];
  /** Default: that of the array. Required for a `Uint16Array`: `"bfloat16"` or `"float16"`. */
  dtype?: DType;
  /** Elements from row to row, for a matrix whose rows are not packed. Default: the row length. */
  rowStride?: number;
}

/**
 * Wraps an array of yours, without a copy. Writes to the array show in the tensor.
 *
 * @param data `Float32Array`, `Int32Array`, `Uint8Array`, `Int8Array`; `Uint16Array` holds bfloat16 or float16, and
 *   `dtype` says which; a `Float16Array`, where Node has it, is float16. Over a SharedArrayBuffer, too.
 * @throws FapoError `ERR_INVALID_ARGUMENT` (shape, stride, length), `ERR_UNSUPPORTED_DTYPE`
 */
export function tensor<D extends DType>(data: DataByDType[D], options: TensorOptions & { dtype: D }): Tensor<D>;
export function tensor(data: Float32Array, options?: TensorOptions): Tensor<"float32">;
export function tensor(data: Int32Array, options?: TensorOptions): Tensor<"int32">;
export function tensor(data: TensorData, options?: TensorOptions): Tensor;
export function tensor(data: TensorData, options: TensorOptions = {}): Tensor {
  const op = "tensor";
  const { dtype: wanted, rowStride, ...rest } = ownOptions(op, options);
  const shape = rest.shape;
  delete rest.shape;
  expectNoOther(op, rest);

  const elements = float16Bits(data) ?? data;
  const type = ArrayBuffer.isView(elements) ? exactType(elements) : undefined;
  expect(
    type !== undefined,
    op,
    "data",
    "a typed array of float32, int32, uint8, int8 or 16-bit floats",
    data,
    "ERR_UNSUPPORTED_DTYPE",
  );
  const inferred = elements === data ? inferredDTypes.get(type) : "float16";
  const dtype = wanted === undefined ? inferred : wanted;
  expect(dtype !== undefined, op, "dtype", '"bfloat16" or "float16" for a Uint16Array', dtype, "ERR_UNSUPPORTED_DTYPE");
  expect(isDType(dtype), op, "dtype", `one of ${Object.keys(arrayTypes).join(", ")}`, dtype, "ERR_UNSUPPORTED_DTYPE");
  expect(
    arrayTypes[dtype] === type && (elements === data || dtype === "float16"),
    op,
    "data",
    `${article(arrayTypes[dtype].name)} for dtype ${dtype}`,
    data,
    "ERR_UNSUPPORTED_DTYPE",
  );

  const length = elements.length;
  const dims = shape === undefined ? [length] : checkShape(op, shape);
  if (rowStride === undefined) {
    expect(sizeOf(dims) === length, op, "data", `of ${sizeOf(dims)} elements for shape [${dims.join(", ")}]`, data);
    return makeTensor(elements, dims, dtype);
  }
  expect(dims.length === 2, op, "shape", "of two dimensions when rowStride is given", dims);
  const columns = dims[1]!;
  const strideFits = Number.isSafeInteger(rowStride) && (rowStride as number) >= columns;
  expect(strideFits, op, "rowStride", `an integer of at least ${columns}`, rowStride);
  const stride = rowStride as number;
  const needed = extentOf(dims, stride);
  expect(Number.isSafeInteger(needed) && needed <= length, op, "data", `of at least ${needed} elements`, data);
  return new Tensor(internal, elements, dims, dtype, stride);
}

/** A tensor over `data`, whose length is that of the shape; packed unless `rowStride` says otherwise. */
export function makeTensor<D extends DType>(
  data: Memory,
  shape: readonly number[],
  dtype: D,
  rowStride: number = shape.length === 0 ? 1 : shape[shape.length - 1]!,
): Tensor<D> {
  return new Tensor(internal, data, shape, dtype, rowStride);
}

export interface ZerosOptions<D extends DType = DType> {
  /** Default `"float32"`. */
  dtype?: D;
  /** Default `"cpu"`. */
  device?: Device;
}

/**
 * A new tensor of zeros.
 * @throws FapoError `ERR_OUT_OF_MEMORY` when the memory cannot be had, `ERR_INVALID_ARGUMENT`, `ERR_NO_CUDA`, `ERR_CUDA`
 */
export function zeros<D extends DType = "float32">(shape: readonly number[], options: ZerosOptions<D> = {}): Tensor<D> {
  const op = "zeros";
  const { dtype = "float32", device = "cpu", ...rest } = ownOptions(op, options);
  expectNoOther(op, rest);
  expect(isDType(dtype), op, "dtype", `one of ${Object.keys(arrayTypes).join(", ")}`, dtype, "ERR_UNSUPPORTED_DTYPE");
  const place = deviceNumber(op, "device", device);
  const dims = checkShape(op, shape);
  if (place === cpuDevice) return makeTensor(newArray(op, dims, dtype), dims, dtype) as Tensor<D>;
  return makeTensor(newDeviceMemory(op, place, dims, dtype, true), dims, dtype) as Tensor<D>;
}

/** A new tensor for the output of an op: on a GPU it holds anything. */
export function allocate<D extends DType>(op: string, shape: readonly number[], dtype: D, device: number): Tensor<D> {
  if (device === cpuDevice) return makeTensor(newOutputArray(op, shape, dtype), shape, dtype);
  return makeTensor(newDeviceMemory(op, device, shape, dtype, false), shape, dtype);
}

function newArray(op: string, shape: readonly number[], dtype: DType): TensorData {
  try {
    return new arrayTypes[dtype](sizeOf(shape));
  } catch (cause) {
    const message = `${op}: no memory for ${article(dtype)} tensor [${shape.join(", ")}]`;
    throw new FapoError("ERR_OUT_OF_MEMORY", message, { cause });
  }
}

/** For what is about to be written from its first element to its last: zeros that stay untouched cost no memory. */
function newOutputArray(op: string, shape: readonly number[], dtype: DType): TensorData {
  const array = newArray(op, shape, dtype);
  if (array.byteLength >= separateMemory) call(op, (native) => native.preferHugePages(array));
  return array;
}

/** Bytes from which on glibc's malloc always takes memory for an array alone from the system. */
const separateMemory = 2 ** 25;

function newDeviceMemory(
  op: string,
  device: number,
  shape: readonly number[],
  dtype: DType,
  zeroed: boolean,
): DeviceMemory {
  const elementBytes = arrayTypes[dtype].BYTES_PER_ELEMENT;
  const countable = Number.isSafeInteger(sizeOf(shape) * elementBytes);
  expect(countable, op, "shape", "of fewer than 2^53 bytes", shape, "ERR_OUT_OF_MEMORY");
  return DeviceMemory.allocate(op, device, sizeOf(shape), elementBytes, zeroed);
}

export interface ToDeviceOptions<D extends DType = DType> {
  /** A tensor of the same dtype and shape on that device, to be written to and returned. Its rows may be apart. */
  out?: Tensor<D> | undefined;
}

/**
 * Copies a tensor to another device; one that is there already is returned as it is, unless `out` says where its copy
 * goes. A new tensor gets all of its memory, the padding of strided rows included, and rows keep their stride; of `out`
 * the elements alone are written. To the CPU it waits, as `synchronize` does, and throws what that throws after `out` has
 * been written; to a GPU it does not: the source may be changed at once. From GPU to GPU it goes through memory of the
 * host.
 * @throws FapoError `ERR_NO_CUDA` when there is no such GPU to be used, with the reason; `ERR_OUT_OF_MEMORY`;
 *   `ERR_DISPOSED`; `ERR_INVALID_ARGUMENT`, `ERR_UNSUPPORTED_DTYPE` and `ERR_DEVICE_MISMATCH` for an `out` that does not
 *   fit; `ERR_CUDA` and, from a GPU, what kernels found wrong there
 */
export function toDevice<D extends DType>(
  source: Tensor<D>,
  device: Device,
  options: ToDeviceOptions<D> = {},
): Tensor<D> {
  const op = "toDevice";
  expect(isTensor(source), op, "the tensor", "a Tensor", source);
  const data = memory(op, "the tensor", source);
  const place = deviceNumber(op, "device", device);
  const { out, ...rest } = ownOptions(op, options);
  expectNoOther(op, rest);
  if (out !== undefined) return copyInto(op, source, data, device, out) as Tensor<D>;
  if (source.device === device) return source;
  const { dtype, shape, rowStride } = source;
  expectLength(op, "the tensor's data", data, source);
  const array = onHost(op, data, dtype);
  if (place === cpuDevice) return makeTensor(array, shape, dtype, rowStride);
  const elements = newDeviceMemory(op, place, [array.length], dtype, false);
  const copy = makeTensor(elements, shape, dtype, rowStride);
  try {
    call(op, (native) => native.copyToDevice(elements.handle, 0, array));
    return copy;
  } catch (error) {
    copy.dispose();
    throw error;
  }
}

/** Copies the elements of `source` to `out`, a tensor like it on `device`; what lies between rows stays. */
function copyInto(op: string, source: Tensor, data: Memory, device: Device, out: unknown): Tensor {
  const { dtype, shape } = source;
  expect(isTensor(out), op, "out", `a ${dtype} tensor [${shape.join(", ")}]`, out);
  expect(out.dtype === dtype, op, "out.dtype", dtype, out.dtype, "ERR_UNSUPPORTED_DTYPE");
  expect(out.shape.join() === shape.join(), op, "out.shape", `[${shape.join(", ")}]`, out.shape);
  expect(out.device === device, op, "out.device", `"${device}"`, out.device, "ERR_DEVICE_MISMATCH");
  const target = memory(op, "out", out);
  const length = expectLength(op, "the tensor's data", data, source);
  expectLength(op, "out.data", target, out);
  expectCaptured(op, target instanceof DeviceMemory ? target.device : cpuDevice);
  if (target === data && out.rowStride === source.rowStride) return out;
  const rows = rowsOf(source);
  if (target instanceof DeviceMemory && data instanceof DeviceMemory && data.device === target.device) {
    copyRows(op, dtype, rows, target, out.rowStride, data, source.rowStride);
    return out;
  }
  const from = data instanceof DeviceMemory ? onHost(op, data, dtype, length) : firstOf(data, dtype, length);
  if (!(target instanceof DeviceMemory)) {
    const to = firstOf(target, dtype, expectLength(op, "out.data", target, out));
    if (overlap(from, to)) throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: ${overlapping}`);
    setRows(rows, to, out.rowStride, from, source.rowStride);
    return out;
  }
  // Rows travel packed, and are put apart on the GPU.
  let packed = from;
  if (rows.count > 1 && source.rowStride !== rows.length) {
    packed = newArray(op, shape, dtype);
    setRows(rows, packed, rows.length, from, source.rowStride);
  }
  if (rows.count <= 1 || out.rowStride === rows.length) {
    target.used(op);
    call(op, (native) => native.copyToDevice(target.handle, target.offset, packed));
    return out;
  }
  const there = makeTensor(newDeviceMemory(op, target.device, shape, dtype, false), shape, dtype);
  try {
    const arrived = memory(op, "the tensor", there) as DeviceMemory;
    call(op, (native) => native.copyToDevice(arrived.handle, arrived.offset, packed));
    copyRows(op, dtype, rows, target, out.rowStride, arrived, rows.length);
  } finally {
    there.dispose();
  }
  return out;
}

const overlapping = "expected out to be memory of its own, got memory that overlaps the tensor";

interface Rows {
  count: number;
  /** In elements. */
  length: number;
}

/** Anything but a matrix is one row. */
function rowsOf({ shape }: Tensor): Rows {
  return shape.length === 2 ? { count: shape[0]!, length: shape[1]! } : { count: 1, length: sizeOf(shape) };
}

function setRows(rows: Rows, to: TensorData, toStride: number, from: TensorData, fromStride: number): void {
  const whole = rows.count === 1 || (toStride === rows.length && fromStride === rows.length);
  if (whole) to.set(from);
  for (let i = 0; i < rows.count && !whole; i++) {
    to.set(from.subarray(i * fromStride, i * fromStride + rows.length), i * toStride);
  }
}

function copyRows(
  op: string,
  dtype: DType,
  { count, length }: Rows,
  to: DeviceMemory,
  toStride: number,
  from: DeviceMemory,
  fromStride: number,
): void {
  from.used(op);
  to.used(op);
  const bytes = (elements: number): number => elements * arrayTypes[dtype].BYTES_PER_ELEMENT;
  const [toBytes, fromBytes, rowBytes] = [bytes(toStride), bytes(fromStride), bytes(length)];
  // The stride of one row says nothing.
  const apart = (stride: number): number => Math.max(stride, rowBytes);
  call(op, (native) =>
    native.copyOnDevice(
      to.handle,
      to.offset,
      apart(toBytes),
      from.handle,
      from.offset,
      apart(fromBytes),
      rowBytes,
      count,
    ),
  );
}

/** The first elements, as an array of the plain class: nothing that a subclass overrides is asked. */
function firstOf(data: TensorData, dtype: DType, length: number): TensorData {
  if (length === 0) return new arrayTypes[dtype](0); // its buffer may be gone
  return new arrayTypes[dtype](typedArrayBuffer(data), typedArrayOffset(data), length);
}

function overlap(a: TensorData, b: TensorData): boolean {
  return (
    a.buffer === b.buffer && a.byteOffset < b.byteOffset + b.byteLength && b.byteOffset < a.byteOffset + a.byteLength
  );
}

/** How many elements lie between the first and the last of a tensor: as many must be there still. */
function expectLength(op: string, argument: string, data: Memory, { shape, rowStride }: Tensor): number {
  const needed = extentOf(shape, rowStride);
  // The buffer may have been transferred or resized since.
  expect(data.length >= needed, op, argument, `of at least ${needed} elements`, data);
  return needed;
}

/**
 * Waits until everything that was started on the device is done, and throws what went wrong there: once. On the CPU
 * every op is finished when it returns, so this returns at once.
 * @throws FapoError `ERR_NO_CUDA`, `ERR_CUDA`, `ERR_INVALID_ARGUMENT`; `ERR_TOKEN_OUT_OF_RANGE` and
 *   `ERR_INVALID_ARGUMENT` for ids, offsets and verdicts that lay on the GPU
 */
export function synchronize(device: Device = "cpu"): void {
  const number = deviceNumber("synchronize", "device", device);
  if (number !== cpuDevice) call("synchronize", (native) => native.synchronize(number));
}

/** The number of a device that is there to be used: -1 for the CPU. Names the reason where a GPU is not. */
export function deviceNumber(op: string, argument: string, device: unknown): number {
  if (device === "cpu") return cpuDevice;
  const named = typeof device === "string" && /^cuda:(0|[1-9]\d*)$/.test(device);
  expect(named, op, argument, '"cpu" or "cuda:0", "cuda:1", …', device);
  return cudaDevice(op, argument, device);
}

/**
 * A copy of an options object: own properties alone, each read once, so that no getter, Proxy or polluted prototype is
 * consulted after this.
 */
export function ownOptions(op: string, options: unknown): Record<string, unknown> {
  expect(typeof options === "object" && options !== null, op, "options", "an object", options);
  const copy: Record<string, unknown> = Object.create(null);
  for (const [name, value] of Object.entries(options)) copy[name] = value;
  return copy;
}

/** A misspelt option must not become a silent default. */
export function expectNoOther(op: string, rest: object): void {
  for (const name of Object.keys(rest)) throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: unknown option ${name}`);
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Elements from the first to the last: only a matrix has rows that lie apart. */
export function extentOf(shape: readonly number[], rowStride: number): number {
  if (shape.length !== 2) return sizeOf(shape);
  const [rows, columns] = shape as [number, number];
  return rows === 0 || columns === 0 ? 0 : (rows - 1) * rowStride + columns;
}

export function isDType(value: unknown): value is DType {
  return typeof value === "string" && Object.hasOwn(arrayTypes, value);
}

/** `enum class DType` of native/tensor.h. */
const dtypeIds: Record<DType, number> = { float32: 0, bfloat16: 1, float16: 2, int32: 3, uint8: 4, int8: 5 };

export function nativeMatrix(op: string, argument: string, matrix: Tensor): NativeMatrix {
  return { data: memory(op, argument, matrix), rowStride: matrix.rowStride, dtype: dtypeIds[matrix.dtype] };
}

/** The typed array class of a dtype. */
export function arrayTypeOf(dtype: DType): TensorDataConstructor {
  return arrayTypes[dtype];
}

/**
 * Which of our array classes a view belongs to, by its internal slot: subclasses (Buffer) count, imitations and those
 * that say another length than they have do not.
 */
export function exactType(view: ArrayBufferView): TensorDataConstructor | undefined {
  if ("length" in view && view.length !== typedArrayLength(view)) return undefined;
  switch (typedArrayName(view)) {
    case "Float32Array":
      return Float32Array;
    case "Uint16Array":
      return Uint16Array;
    case "Int32Array":
      return Int32Array;
    case "Uint8Array":
      return Uint8Array;
    case "Int8Array":
      return Int8Array;
    default:
      return undefined;
  }
}

/** The getters that no subclass can override. */
function typedArrayGetter<Value>(property: PropertyKey): (view: unknown) => Value {
  const prototype = Object.getPrototypeOf(Uint8Array.prototype);
  const getter = Object.getOwnPropertyDescriptor(prototype, property)!.get!;
  return (view) => Reflect.apply(getter, view, []);
}

const typedArrayName = typedArrayGetter<string | undefined>(Symbol.toStringTag);
const typedArrayLength = typedArrayGetter<number>("length");
const typedArrayBuffer = typedArrayGetter<ArrayBufferLike>("buffer");
const typedArrayOffset = typedArrayGetter<number>("byteOffset");

/** A Float16Array as the bits it holds; undefined for anything else. */
function float16Bits(data: unknown): Uint16Array | undefined {
  if (typedArrayName(data) !== "Float16Array") return undefined;
  const { buffer, byteOffset, length } = data as Uint16Array;
  return new Uint16Array(buffer, byteOffset, length);
}

export function checkShape(op: string, shape: unknown): readonly number[] {
  expect(Array.isArray(shape), op, "shape", "an array of sizes", shape);
  const dims = [...(shape as unknown[])];
  const whole = dims.every((size): size is number => Number.isSafeInteger(size) && (size as number) >= 0);
  expect(whole, op, "shape", "an array of non-negative integers", dims);
  expect(Number.isSafeInteger(sizeOf(dims)), op, "shape", "of fewer than 2^53 elements", dims);
  return dims;
}

function toNumber(bits: number, dtype: DType): number {
  if (dtype === "bfloat16") {
    return new Float32Array(new Uint32Array([bits << 16]).buffer)[0]!;
  }
  if (dtype === "float16") {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction;
  }
  return bits;
}

function article(noun: string): string {
  return `${/^[aeiou]/i.test(noun) && !noun.startsWith("Uint") && !noun.startsWith("uint") ? "an" : "a"} ${noun}`;
}
