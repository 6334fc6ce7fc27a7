/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Tensors: typed memory with a shape, and where it lives. No arithmetic here; ops read the memory through `memory()`.
 */
import { expect, FapoError } from "./check.ts";

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

type TensorDataConstructor = new (length: number) => TensorData;

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
  #data: TensorData | undefined;

  /** @internal */
  constructor(key: symbol, data: TensorData, shape: readonly number[], dtype: D, rowStride: number) {
    if (key !== internal) throw new FapoError("ERR_INVALID_ARGUMENT", "Tensor: make one with tensor() or zeros()");
    this.#data = data;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.rowStride = rowStride;
    this.device = "cpu";
    Object.freeze(this);
  }

  /**
   * The elements: the very array that was wrapped, not a copy.
   * @throws FapoError `ERR_DISPOSED`
   */
  get data(): DataByDType[D] {
    return memory("Tensor.data", "the tensor", this) as DataByDType[D];
  }

  /**
   * The value of a tensor of one element, as a number.
   * @throws FapoError `ERR_DISPOSED`, `ERR_INVALID_ARGUMENT` when there is not exactly one element
   */
  item(): number {
    const data = memory("Tensor.item", "the tensor", this);
    expect(sizeOf(this.shape) === 1 && data.length >= 1, "Tensor.item", "the tensor", "of one element", this);
    return toNumber(data[0]!, this.dtype);
  }

  /** Lets go of the memory. A second call does nothing; any other use afterwards throws `ERR_DISPOSED`. */
  dispose(): void {
    this.#data = undefined;
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
  static memoryOf(value: object): TensorData | undefined | null {
    return #data in value ? (value.#data ?? null) : undefined;
  }
}

// What a printed tensor shows: the value of a scalar, or what and how much it is, and the first elements.
Object.defineProperty(Tensor.prototype, Symbol.for("nodejs.util.inspect.custom"), {
  value(this: Tensor, _depth: number, _options: unknown, inspect: (value: unknown) => string): string {
    const data = Tensor.memoryOf(this);
    const text = this.toString().replace(/^an? /, "");
    if (!data) return text;
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
export function memory(op: string, argument: string, tensor: Tensor): TensorData {
  const data = Tensor.memoryOf(tensor);
  if (!data) throw new FapoError("ERR_DISPOSED", `${op}: ${argument} has been disposed`);
  return data;
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
  const [rows, columns] = dims as [number, number];
  const strideFits = Number.isSafeInteger(rowStride) && (rowStride as number) >= columns;
  expect(strideFits, op, "rowStride", `an integer of at least ${columns}`, rowStride);
  const stride = rowStride as number;
  const needed = rows === 0 ? 0 : (rows - 1) * stride + columns;
  expect(Number.isSafeInteger(needed) && needed <= length, op, "data", `of at least ${needed} elements`, data);
  return new Tensor(internal, elements, dims, dtype, stride);
}

/** A packed tensor over `data`, whose length is that of the shape. */
export function makeTensor<D extends DType>(data: TensorData, shape: readonly number[], dtype: D): Tensor<D> {
  return new Tensor(internal, data, shape, dtype, shape.length === 0 ? 1 : shape[shape.length - 1]!);
}

export interface ZerosOptions<D extends DType = DType> {
  /** Default `"float32"`. */
  dtype?: D;
  /** Default `"cpu"`. */
  device?: Device;
}

/**
 * A new tensor of zeros.
 * @throws FapoError `ERR_OUT_OF_MEMORY` when the memory cannot be had, `ERR_INVALID_ARGUMENT`, `ERR_NO_CUDA`
 */
export function zeros<D extends DType = "float32">(shape: readonly number[], options: ZerosOptions<D> = {}): Tensor<D> {
  const op = "zeros";
  const { dtype = "float32", device = "cpu", ...rest } = ownOptions(op, options);
  expectNoOther(op, rest);
  expect(isDType(dtype), op, "dtype", `one of ${Object.keys(arrayTypes).join(", ")}`, dtype, "ERR_UNSUPPORTED_DTYPE");
  checkDevice(op, "device", device);
  return allocate(op, checkShape(op, shape), dtype) as Tensor<D>;
}

/** `zeros` without the checks, for outputs of ops. */
export function allocate<D extends DType>(op: string, shape: readonly number[], dtype: D): Tensor<D> {
  try {
    return makeTensor(new arrayTypes[dtype](sizeOf(shape)), shape, dtype);
  } catch (cause) {
    const message = `${op}: no memory for ${article(dtype)} tensor [${shape.join(", ")}]`;
    throw new FapoError("ERR_OUT_OF_MEMORY", message, { cause });
  }
}

/**
 * Moves a tensor to another device. On the CPU a tensor that is there already is returned as it is.
 * @throws FapoError `ERR_NO_CUDA` when there is no such GPU to be used, with the reason; `ERR_DISPOSED`
 */
export function toDevice<D extends DType>(source: Tensor<D>, device: Device): Tensor<D> {
  expect(isTensor(source), "toDevice", "the tensor", "a Tensor", source);
  memory("toDevice", "the tensor", source);
  checkDevice("toDevice", "device", device);
  return source;
}

/**
 * Waits until everything that was started on the device is done, and throws what went wrong there. On the CPU every op
 * is finished when it returns, so this returns at once.
 * @throws FapoError `ERR_NO_CUDA`, `ERR_CUDA`, `ERR_INVALID_ARGUMENT`
 */
export function synchronize(device: Device = "cpu"): void {
  checkDevice("synchronize", "device", device);
}

/** Why `cuda:N` cannot be used: this build holds the CPU kernels alone. */
export const noCudaReason = "this build of fapo-kernels has no CUDA kernels";

/** Accepts `"cpu"`; names the reason for every `"cuda:N"`. */
export function checkDevice(op: string, argument: string, device: unknown): asserts device is Device {
  if (typeof device === "string" && /^cuda:\d+$/.test(device)) {
    throw new FapoError(
      "ERR_NO_CUDA",
      `${op}: ${argument} is ${JSON.stringify(device)}, but ${noCudaReason}; use "cpu"`,
    );
  }
  expect(device === "cpu", op, argument, '"cpu" or "cuda:0", "cuda:1", …', device);
}

/**
 * A copy of an options object: own properties alone, each read once, so that no getter, Proxy or polluted prototype is
 * consulted after this.
 */
export function ownOptions(op: string, options: unknown): Record<string, unknown> {
  expect(typeof options === "object" && options !== null, op, "options", "an object", options);
  const copy: Record<string, unknown> = Object.create(null);
  for (const name of Object.keys(options)) copy[name] = (options as Record<string, unknown>)[name];
  return copy;
}

/** A misspelt option must not become a silent default. */
export function expectNoOther(op: string, rest: object): void {
  for (const name of Object.keys(rest)) throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: unknown option ${name}`);
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

export function isDType(value: unknown): value is DType {
  return typeof value === "string" && Object.hasOwn(arrayTypes, value);
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

/** A Float16Array as the bits it holds; undefined for anything else. */
function float16Bits(data: unknown): Uint16Array | undefined {
  if (typedArrayName(data) !== "Float16Array") return undefined;
  const { buffer, byteOffset, length } = data as Uint16Array;
  return new Uint16Array(buffer, byteOffset, length);
}

function checkShape(op: string, shape: unknown): readonly number[] {
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
