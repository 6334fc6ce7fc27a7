/**
 * Reads the options of one call of an op: each is copied once, checked, and turned into what the addon takes. Ends in
 * `done()`, which refuses what nobody asked for. Nothing is written before that.
 */
import { cpuDevice, run } from "./addon.ts";
import { describe, expect, FapoError } from "./check.ts";
import type { Call, Memory } from "./native.ts";
import { Properties } from "./properties.ts";
import {
  allocate,
  arrayTypeOf,
  type Device,
  type DType,
  deviceNumber,
  exactType,
  extentOf,
  isTensor,
  memory,
  Tensor,
  type TensorData,
} from "./tensor.ts";

/** An array input: a typed array of the right class, or a tensor of the right dtype. */
export type FloatInput = Float32Array | Tensor;
export type Int32Input = Int32Array | Tensor;
export type Uint8Input = Uint8Array | Tensor;
export type Int8Input = Int8Array | Tensor;

const integerRanges: Partial<Record<DType, readonly [number, number]>> = {
  int32: [-(2 ** 31), 2 ** 31 - 1],
  uint8: [0, 255],
  int8: [-128, 127],
};

export class Arguments {
  readonly op: string;
  readonly #options: Properties;
  /** What `out` holds, once an output was asked for. */
  #out: Properties | undefined;
  #outRead = false;
  /** Where the op runs, and which argument said so first. */
  #device: Device | undefined;
  #deviceFrom = "";
  /** Tensors made for this call. */
  readonly #made: Tensor[] = [];

  constructor(op: string, options: unknown) {
    this.op = op;
    expect(typeof options === "object" && options !== null, op, "options", "an object", options);
    this.#options = new Properties(op, options);
  }

  /** Takes an option out; undefined when it is absent or undefined. */
  take(name: string): unknown {
    return this.#options.take(name);
  }

  /** Refuses options that nobody took. */
  done(): void {
    for (const name of this.#options.left) this.conflict(`unknown option ${name}`);
  }

  fail(name: string, expected: string, got: unknown): never {
    throw new FapoError("ERR_INVALID_ARGUMENT", `${this.op}: expected ${name} to be ${expected}, got ${describe(got)}`);
  }

  /** For options that contradict each other: `policyLoss: klCoef needs klEstimator, which is "none"`. */
  conflict(sentence: string): never {
    throw new FapoError("ERR_INVALID_ARGUMENT", `${this.op}: ${sentence}`);
  }

  // ---- scalars

  number(name: string, fallback: number, expected: string, accepts: (value: number) => boolean): number {
    return this.optionalNumber(name, expected, accepts) ?? fallback;
  }

  optionalNumber(name: string, expected: string, accepts: (value: number) => boolean): number | undefined {
    const value = this.take(name);
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !accepts(value)) this.fail(name, expected, value);
    return value;
  }

  boolean(name: string): boolean {
    const value = this.take(name);
    if (value === undefined) return false;
    if (typeof value !== "boolean") this.fail(name, "true or false", value);
    return value;
  }

  /** One of the names, the first by default, as its position: the order of the enum in C++. */
  choice(name: string, names: readonly string[]): number {
    const value = this.take(name);
    if (value === undefined) return 0;
    const position = typeof value === "string" ? names.indexOf(value) : -1;
    if (position < 0) this.fail(name, `one of ${names.join(", ")}`, value);
    return position;
  }

  // ---- device

  /** Reads the `device` option: where an op on typed arrays alone runs, and tensors must be. Before any of them. */
  readDevice(): void {
    const device = this.take("device");
    if (device === undefined) return;
    deviceNumber(this.op, "device", device);
    this.#device = device as Device;
    this.#deviceFrom = "device";
  }

  /** Where the op runs. After all inputs have been read. */
  get device(): number {
    const device = this.#device;
    if (device === undefined || device === "cpu") return cpuDevice;
    return deviceNumber(this.op, this.#deviceFrom, device);
  }

  /** All tensors of a call are on one device. */
  locate(name: string, { device }: Tensor): void {
    if (device === this.#device) return;
    if (this.#device === undefined) {
      this.#device = device;
      this.#deviceFrom = name;
    } else {
      const from = this.#deviceFrom;
      const other = from === "" ? "where the op runs" : from === "device" ? "as device says" : `like ${from}`;
      const message = `${this.op}: expected ${name} to be on ${this.#device}, ${other}, got a tensor on ${device}`;
      throw new FapoError("ERR_DEVICE_MISMATCH", message);
    }
  }

  // ---- arrays

  /** `length` elements of `dtype`. */
  array(name: string, dtype: DType, length: number, plain: "typed" | "plain" = "typed"): Memory {
    return (
      this.optionalArray(name, dtype, length, plain) ?? this.fail(name, this.#kind(dtype, length, plain), undefined)
    );
  }

  optionalArray(name: string, dtype: DType, length: number, plain: "typed" | "plain" = "typed"): Memory | undefined {
    const data = this.optionalArrayOfAnyLength(name, dtype, plain, length);
    if (data !== undefined && data.length !== length) this.fail(name, `of length ${length}`, data);
    return data;
  }

  /** As `array`, where the length is what the caller says it is. */
  arrayOfAnyLength(name: string, dtype: DType, plain: "typed" | "plain" = "typed"): Memory {
    return (
      this.optionalArrayOfAnyLength(name, dtype, plain) ??
      this.fail(name, this.#kind(dtype, undefined, plain), undefined)
    );
  }

  optionalArrayOfAnyLength(
    name: string,
    dtype: DType,
    plain: "typed" | "plain" = "typed",
    length?: number,
  ): Memory | undefined {
    const value = this.take(name);
    if (value === undefined) return undefined;
    if (ArrayBuffer.isView(value)) {
      const fits = exactType(value) === arrayTypeOf(dtype);
      if (!fits) {
        expect(false, this.op, name, this.#kind(dtype, length, plain), value, "ERR_UNSUPPORTED_DTYPE");
      }
      if (isGone(value)) this.conflict(`the buffer of ${name} has been detached or shrunk`);
      return value as TensorData;
    }
    if (isTensor(value)) {
      expect(value.dtype === dtype, this.op, `${name}.dtype`, dtype, value.dtype, "ERR_UNSUPPORTED_DTYPE");
      expect(value.shape.length === 1, this.op, name, `of one dimension`, value);
      const data = memory(this.op, name, value);
      // Its buffer may have been transferred or resized since.
      expect(data.length === value.shape[0], this.op, `${name}.data`, `of ${value.shape[0]} elements`, data);
      this.locate(name, value);
      return data;
    }
    if (Array.isArray(value) && plain === "plain") return this.#fromNumbers(name, dtype, value);
    return this.fail(name, this.#kind(dtype, length, plain), value);
  }

  /** A matrix of logits: a tensor `[rows, vocab]` of a floating-point dtype. */
  logits(name: string): Tensor {
    const value = this.take(name);
    if (!isTensor(value)) this.fail(name, "a tensor [rows, vocab]; tensor(data, { shape }) makes one", value);
    const floating = value.dtype === "float32" || value.dtype === "bfloat16" || value.dtype === "float16";
    expect(floating, this.op, `${name}.dtype`, "float32, bfloat16 or float16", value.dtype, "ERR_UNSUPPORTED_DTYPE");
    expect(value.shape.length === 2, this.op, `${name}.shape`, "[rows, vocab]", value.shape);
    expect(value.shape[1]! >= 1, this.op, `${name}.shape`, "[rows, vocab] with a vocab of at least 1", value.shape);
    this.#expectWhole(name, value);
    this.locate(name, value);
    return value;
  }

  #fromNumbers(name: string, dtype: DType, values: readonly unknown[]): TensorData {
    const range = integerRanges[dtype];
    const data = new (arrayTypeOf(dtype))(values.length);
    for (let i = 0; i < data.length; i++) {
      const value = values[i];
      if (range === undefined) {
        if (typeof value !== "number") this.fail(`${name}[${i}]`, "a number", value);
        const fits = !Number.isFinite(value) || Number.isFinite(Math.fround(value));
        if (!fits) this.fail(`${name}[${i}]`, "a number that a float32 holds", value);
      } else if (!Number.isInteger(value) || (value as number) < range[0] || (value as number) > range[1]) {
        this.fail(`${name}[${i}]`, `an integer in ${range[0]}..${range[1]}`, value);
      }
      data[i] = value as number;
    }
    return data;
  }

  #kind(dtype: DType, length: number | undefined, plain: "typed" | "plain"): string {
    const or = plain === "plain" ? ", an array of numbers" : "";
    const size = length === undefined ? "" : ` of length ${length}`;
    const name = arrayTypeOf(dtype).name;
    const article = (noun: string): string => (/^i/i.test(noun) ? "an" : "a");
    return `${article(name)} ${name}${or} or ${article(dtype)} ${dtype} tensor${size}`;
  }

  /** The elements a tensor says it has are still there: its buffer may have been transferred or shrunk since. */
  #expectWhole(name: string, matrix: Tensor): void {
    const needed = extentOf(matrix.shape, matrix.rowStride);
    const data = memory(this.op, name, matrix);
    if (data.length < needed) this.fail(`${name}.data`, `of at least ${needed} elements`, data);
  }

  // ---- outputs

  /** An output: the tensor that `out` has under this name, after checks, or a new one. After all options were read. */
  output<D extends DType>(name: string, dtype: D, shape: readonly number[]): Tensor<D> {
    const out = this.reusable();
    if (out) return this.given(name, out.take(name), dtype, shape, "out.");
    return this.made(() => allocate(this.op, shape, dtype, this.device));
  }

  /** As `output`, for one that may not have been asked for: `out` must not have it then. */
  optionalOutput<D extends DType>(
    wanted: boolean,
    name: string,
    dtype: D,
    shape: readonly number[],
  ): Tensor<D> | undefined {
    if (wanted) return this.output(name, dtype, shape);
    const value = this.reusable()?.take(name);
    if (value !== undefined) this.fail(`out.${name}`, "absent, for it was not asked for", value);
    return undefined;
  }

  /** What `out` holds, for whoever checks some of it; undefined where there is no `out`. After all options were read. */
  reusable(): Properties | undefined {
    if (this.#outRead) return this.#out;
    this.#outRead = true;
    const out = this.take("out");
    this.done();
    if (out === undefined) return undefined;
    if (typeof out !== "object" || out === null || Array.isArray(out) || out instanceof Tensor) {
      this.fail("out", `the result of an earlier ${this.op}`, out);
    }
    this.#out = new Properties(this.op, out, "out.");
    // Where only typed arrays are given and no device, outputs do not choose one.
    this.#device ??= "cpu";
    return this.#out;
  }

  /** The object that `out` gives, after all its outputs were taken; undefined where there is none. */
  reused<Result extends object>(): Result | undefined {
    const out = this.reusable();
    for (const name of out?.left ?? []) this.fail("out", `the result of an earlier ${this.op}`, `one with ${name}`);
    return out?.object as Result | undefined;
  }

  /** Makes a tensor for this call. When that fails, or the op does, all that were made are freed at once. */
  made<D extends DType>(make: () => Tensor<D>): Tensor<D> {
    return this.#orFree(() => {
      const tensor = make();
      this.#made.push(tensor);
      return tensor;
    });
  }

  /** Runs the op of the addon. */
  run<Args>(call: Call<Args>, args: Args): void {
    this.#orFree(() => run(this.op, call, args));
  }

  #orFree<Result>(body: () => Result): Result {
    try {
      return body();
    } catch (error) {
      for (const tensor of this.#made) tensor.dispose();
      throw error;
    }
  }

  /** A tensor that the caller gives to be written to, after checks. `within` goes before its name in messages. */
  given<D extends DType>(name: string, value: unknown, dtype: D, shape: readonly number[], within = ""): Tensor<D> {
    const fits = isTensor(value) && value.dtype === dtype && isSameShape(value.shape, shape);
    if (!fits) {
      const code = isTensor(value) && value.dtype !== dtype ? "ERR_UNSUPPORTED_DTYPE" : "ERR_INVALID_ARGUMENT";
      expect(false, this.op, within + name, `a ${dtype} tensor [${shape.join(", ")}]`, value, code);
    }
    if (shape.length === 2) {
      this.#expectWhole(within + name, value);
    } else {
      const length = shape.length === 0 ? 1 : shape[0]!;
      const data = Tensor.memoryOf(value) ?? memory(this.op, within + name, value);
      if (data.length !== length) this.fail(`${within}${name}.data`, `of ${length} elements`, data);
    }
    if (value.device !== this.#device) this.locate(within + name, value);
    return value as Tensor<D>;
  }
}

function isSameShape(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** A view of a buffer that was transferred, or shrunk below it, looks empty; the methods of typed arrays refuse it. */
function isGone(view: ArrayBufferView): boolean {
  if (view.byteLength > 0) return false;
  try {
    Reflect.apply(typedArrayKeys, view, []);
    return false;
  } catch {
    return true;
  }
}

const typedArrayKeys: () => unknown = Object.getPrototypeOf(Uint8Array.prototype).keys;

/** Conditions that refuse NaN by themselves. */
export const isFiniteNumber = (value: number): boolean => Number.isFinite(value);
export const isPositive = (value: number): boolean => value > 0 && value < Number.POSITIVE_INFINITY;
export const isNotNegative = (value: number): boolean => value >= 0 && value < Number.POSITIVE_INFINITY;
export const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 1;
