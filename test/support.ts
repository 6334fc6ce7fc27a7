/** What the tests share: devices, deterministic data, comparison. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cast,
  type Device,
  type DType,
  devices,
  FapoError,
  type FapoErrorCode,
  type Tensor,
  type TensorData,
  type TensorOptions,
  tensor,
  toDevice,
} from "fapo-kernels";
import { devicePointer, fromDevicePointer } from "fapo-kernels/unsafe";

export type FloatDType = "float32" | "bfloat16" | "float16";
export const floatDTypes: readonly FloatDType[] = ["float32", "bfloat16", "float16"];

/** A device under test: the same test runs on each. */
export class TestDevice {
  readonly name: Device;
  readonly #buffers = new WeakMap<object, Tensor>();

  constructor(name: Device) {
    this.name = name;
  }

  /** Whether it is thousands of times slower than a real one, so that sizes have to be small. */
  get emulated(): boolean {
    return this.name !== "cpu" && devices().cuda.emulated;
  }

  /** How many of so many random cases to try: on an emulated GPU a tenth, times FAPO_TEST_SCALE. */
  runs(count: number): number {
    return this.emulated ? Math.ceil((count / 10) * Number(process.env.FAPO_TEST_SCALE ?? 1)) : count;
  }

  /** A tensor on this device. On the CPU it is a view of `data`. */
  tensor(data: Float32Array, options?: TensorOptions): Tensor<"float32">;
  tensor(data: TensorData, options?: TensorOptions): Tensor;
  tensor(data: TensorData, options: TensorOptions = {}): Tensor {
    return toDevice(tensor(data, options), this.name);
  }

  /** A tensor that shares memory with all that are made so of the same buffer: on a GPU with a copy of the buffer. */
  overlapping(data: Float32Array, shape: readonly number[] = [data.length]): Tensor {
    if (this.name === "cpu") return tensor(data, { shape });
    const whole = this.#buffers.get(data.buffer) ?? toDevice(tensor(new Uint8Array(data.buffer)), this.name);
    this.#buffers.set(data.buffer, whole);
    const address = devicePointer(whole).address + BigInt(data.byteOffset);
    return fromDevicePointer({ address, dtype: "float32", shape, device: this.name, owner: whole });
  }

  /** The elements, on the host. */
  read(source: Tensor): TensorData {
    return toDevice(source, "cpu").data;
  }

  floats(source: Tensor): number[] {
    return Array.from(source.dtype === "float32" ? this.read(source) : cast(toDevice(source, "cpu"), "float32").data);
  }
}

/** The devices under test: FAPO_TEST_DEVICES (comma-separated), or the CPU. */
export const testDevices: readonly TestDevice[] = (process.env.FAPO_TEST_DEVICES ?? "cpu")
  .split(",")
  .map((name) => new TestDevice(name as Device));

/** Declares one test per device. */
export function forEachDevice(name: string, body: (device: TestDevice) => void | Promise<void>): void {
  for (const device of testDevices) test(`${name} [${device.name}]`, () => body(device));
}

/** Deterministic uniform numbers in [0, 1): mulberry32. */
export function rng(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Normal numbers from uniform ones (Box and Muller). */
export function normal(random: () => number): () => number {
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Logits of a dtype with the numbers they were rounded to: what a reference must be fed. */
export function roundedLogits(
  values: Float32Array,
  rows: number,
  vocab: number,
  dtype: FloatDType,
): { logits: Tensor; values: Float32Array } {
  const wide = tensor(values, { shape: [rows, vocab] });
  if (dtype === "float32") return { logits: wide, values };
  const logits = cast(wide, dtype);
  return { logits, values: cast(logits, "float32").data as Float32Array };
}

/**
 * |actual - expected| <= atol + rtol |expected| for every element; NaN equals NaN, infinities their like. Returns the
 * largest error as a share of its bound.
 */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { atol, rtol }: { atol: number; rtol: number },
  what = "",
): number {
  assert.equal(actual.length, expected.length, `${what}: length`);
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const [got, want] = [actual[i]!, expected[i]!];
    if (Object.is(got, want) || got === want) continue;
    const share = Math.abs(got - want) / (atol + rtol * Math.abs(want));
    assert.ok(share <= 1, `${what}[${i}]: ${got}, expected ${want} (${share.toPrecision(3)} of the tolerance)`);
    worst = Math.max(worst, share);
  }
  return worst;
}

/** Bitwise equality, so that -0 and NaN payloads count. */
export function assertSameBits(actual: TensorData, expected: TensorData, what = ""): void {
  const bytes = ({ buffer, byteOffset, byteLength }: TensorData): Uint8Array =>
    new Uint8Array(buffer, byteOffset, byteLength);
  assert.ok(Buffer.compare(bytes(actual), bytes(expected)) === 0, `${what}: bits differ`);
}

/** The error of a call, with code and message pinned. */
export function assertFails(call: () => unknown, code: FapoErrorCode, message: string | RegExp): void {
  assert.throws(call, (error) => {
    assert.ok(error instanceof FapoError, `expected a FapoError, got ${error}`);
    if (typeof message === "string") {
      assert.equal(error.message, message);
    } else {
      assert.match(error.message, message);
    }
    assert.equal(error.code, code);
    return true;
  });
}

export type { DType };
