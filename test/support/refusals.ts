/**
 * Bad input as a table: every argument of an op with every way to get it wrong, and the message for each. A refused
 * call must leave every output and every input as it was, and the next good call must work.
 */
import assert from "node:assert/strict";
import { type FapoErrorCode, type Tensor, tensor } from "fapo-kernels";
import { assertFails, type TestDevice } from "../support.ts";
import { assertSameMaps, bitsOf, poisoned } from "./ops.ts";

type Options = Record<string, unknown>;
type DType = "float32" | "int32" | "uint8" | "int8";

export interface Refusal {
  what: string;
  /** What differs from the good call; undefined values are left out of the call. */
  change: Options;
  message: string | RegExp;
  code?: FapoErrorCode;
}

export interface ArrayArgument {
  name: string;
  dtype: DType;
  /** Its length in the good call. */
  length: number;
  /** Takes its length from the call, so that no length is wrong by itself. */
  anyLength?: boolean;
  /** An array of numbers is accepted, too. */
  plain?: boolean;
  optional?: boolean;
  /** Options that the argument needs beside it. */
  beside?: Options;
}

const arrayTypes = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array } as const;
const otherTypes = [
  Float32Array,
  Float64Array,
  Int8Array,
  Int16Array,
  Int32Array,
  Uint8Array,
  Uint8ClampedArray,
  Uint16Array,
  Uint32Array,
  BigInt64Array,
  BigUint64Array,
];
const ranges = { int32: "-2147483648..2147483647", uint8: "0..255", int8: "-128..127" } as const;

/** Values that are no array, and how a message names them. */
const notArrays: readonly (readonly [unknown, string])[] = [
  [null, "null"],
  [3, "3"],
  ["abc", '"abc"'],
  [true, "true"],
  [3n, "3n"],
  [() => 1, "a function"],
  [Symbol("s"), "Symbol(s)"],
  [{ length: 4 }, "an object (Object)"],
  [new ArrayBuffer(8), "an object (ArrayBuffer)"],
  [Object.create(Float32Array.prototype), "an object that cannot be described"],
  [new Proxy(new Float32Array(4), {}), "an object that cannot be described"],
];

export function badArray(op: string, argument: ArrayArgument): Refusal[] {
  const { name, dtype, length, anyLength, plain, optional, beside = {} } = argument;
  const type = arrayTypes[dtype];
  const kind = [
    `${type.name.startsWith("I") ? "an" : "a"} ${type.name}`,
    plain ? ", an array of numbers" : "",
    ` or ${dtype.startsWith("i") ? "an" : "a"} ${dtype} tensor`,
    anyLength ? "" : ` of length ${length}`,
  ].join("");
  const rows: Refusal[] = [];
  const add = (what: string, value: unknown, message: string | RegExp, code?: FapoErrorCode): void => {
    rows.push({ what: `${name} ${what}`, change: { ...beside, [name]: value }, message, ...(code && { code }) });
  };
  const refuse = (value: unknown, got: string, code?: FapoErrorCode): void =>
    add(`is ${got}`, value, `${op}: expected ${name} to be ${kind}, got ${got}`, code);

  if (!optional) refuse(undefined, "undefined");
  for (const [value, got] of notArrays) {
    if (ArrayBuffer.isView(value)) continue;
    // What the description of an imitation says is its own business.
    const exact = got !== "an object that cannot be described";
    add(
      `is ${exact ? got : "an imitation"}`,
      value,
      exact ? `${op}: expected ${name} to be ${kind}, got ${got}` : new RegExp(`^${op}: expected ${name} to be `),
    );
  }
  for (const other of otherTypes) {
    if ((other as unknown) === type) continue;
    refuse(new other(length), `${other.name}(${length})`, "ERR_UNSUPPORTED_DTYPE");
  }
  refuse(new DataView(new ArrayBuffer(length)), `DataView(${length})`, "ERR_UNSUPPORTED_DTYPE");
  if (!plain) refuse([1, 2], "[1, 2]");

  const wrongDType = dtype === "float32" ? "int32" : "float32";
  add(
    "is a tensor of another dtype",
    tensor(new arrayTypes[wrongDType](length)),
    `${op}: expected ${name}.dtype to be ${dtype}, got "${wrongDType}"`,
    "ERR_UNSUPPORTED_DTYPE",
  );
  add(
    "is a matrix",
    tensor(new type(length), { shape: [1, length] }),
    `${op}: expected ${name} to be of one dimension, got a ${dtype} tensor [1, ${length}] on cpu`,
  );
  add("is disposed", disposed(new type(length)), `${op}: ${name} has been disposed`, "ERR_DISPOSED");
  if (!anyLength) {
    for (const wrong of [0, length - 1, length + 1]) {
      add(
        `has ${wrong} elements`,
        new type(wrong),
        `${op}: expected ${name} to be of length ${length}, got ${type.name}(${wrong})`,
      );
    }
  }
  add("is detached", detached(new type(length)), `${op}: the buffer of ${name} has been detached or shrunk`);
  add(
    "is a tensor over a detached buffer",
    detachedTensor(new type(length)),
    new RegExp(
      `^${op}: expected ${name}\\.data to be of ${length} elements, got ${type.name}\\(0\\)( over a detached buffer)?$`,
    ),
  );
  if (plain) {
    const element = dtype === "float32" ? "a number" : `an integer in ${ranges[dtype]}`;
    const bad: (readonly [unknown, string])[] = [
      [undefined, "undefined"],
      [null, "null"],
      ["1", '"1"'],
      [1n, "1n"],
      [{ valueOf: () => 1 }, "an object (Object)"],
      [[1], "[1]"],
    ];
    if (dtype !== "float32") {
      bad.push([1.5, "1.5"], [Number.NaN, "NaN"], [Number.POSITIVE_INFINITY, "Infinity"], [2 ** 32, "4294967296"]);
      if (dtype === "uint8") bad.push([-1, "-1"], [256, "256"]);
      if (dtype === "int8") bad.push([-129, "-129"], [128, "128"]);
    }
    for (const [value, got] of bad) {
      const values: unknown[] = new Array(length).fill(0);
      values[length - 1] = value;
      const message = `${op}: expected ${name}[${length - 1}] to be ${element}, got ${got}`;
      add(`contains ${typeof value} ${got}`, values, message);
    }
    const holey: unknown[] = new Array(length).fill(0);
    delete holey[0];
    add("has a hole", holey, `${op}: expected ${name}[0] to be ${element}, got undefined`);
  }
  return rows;
}

const notNumbers: readonly (readonly [unknown, string])[] = [
  [Number.NaN, "NaN"],
  [null, "null"],
  ["1", '"1"'],
  [1n, "1n"],
  [true, "true"],
  [[1], "[1]"],
  [{ valueOf: () => 1 }, "an object (Object)"],
  [() => 1, "a function"],
];

/** A number: what is expected, and what lies outside. */
export function badNumber(
  op: string,
  name: string,
  expected: string,
  outside: readonly number[],
  beside: Options = {},
): Refusal[] {
  const values = [
    ...notNumbers,
    ...outside.map((value) => [value, Object.is(value, -0) ? "-0" : String(value)] as const),
  ];
  return values.map(([value, got]) => ({
    what: `${name} is ${got}`,
    change: { ...beside, [name]: value },
    message: `${op}: expected ${name} to be ${expected}, got ${got}`,
  }));
}

export function badChoice(op: string, name: string, names: readonly string[]): Refusal[] {
  const values = [
    ["", '""'],
    [names[0]!.toUpperCase(), JSON.stringify(names[0]!.toUpperCase())],
    ["constructor", '"constructor"'],
    [0, "0"],
    [false, "false"],
    [[names[0]], `["${names[0]}"]`],
    [{ toString: () => names[0] }, "an object (Object)"],
  ] as const;
  return values.map(([value, got]) => ({
    what: `${name} is ${got}`,
    change: { [name]: value },
    message: `${op}: expected ${name} to be one of ${names.join(", ")}, got ${got}`,
  }));
}

/** What no op takes, whatever its arguments. */
export function badCall(op: string, device = true): Refusal[] {
  const rows: Refusal[] = [
    { what: "an unknown option", change: { flawedPenatly: 1 }, message: `${op}: unknown option flawedPenatly` },
    {
      what: "an unknown option that is undefined",
      change: { nonsense: null },
      message: `${op}: unknown option nonsense`,
    },
  ];
  if (device) {
    rows.push(
      {
        what: "device is a number",
        change: { device: 0 },
        message: `${op}: expected device to be "cpu" or "cuda:0", "cuda:1", …, got 0`,
      },
      {
        what: "device is unknown",
        change: { device: "gpu" },
        message: `${op}: expected device to be "cpu" or "cuda:0", "cuda:1", …, got "gpu"`,
      },
    );
  }
  return rows;
}

/** Every output of an op in `out` got wrong. */
export function badOut(op: string, device: TestDevice, good: object): Refusal[] {
  const rows: Refusal[] = [];
  const add = (what: string, out: unknown, message: string | RegExp, code?: FapoErrorCode): void => {
    rows.push({ what: `out ${what}`, change: { out }, message, ...(code && { code }) });
  };
  const result = `the result of an earlier ${op}`;
  for (const [value, got] of [
    [null, "null"],
    [5, "5"],
    ["x", '"x"'],
  ] as const) {
    add(`is ${got}`, value, `${op}: expected out to be ${result}, got ${got}`);
  }
  add("has another property", { ...good, more: 1 }, `${op}: expected out to be ${result}, got "one with more"`);
  for (const [name, value] of Object.entries(good)) {
    const argument = new RegExp(`^${op}: expected out\\.${name} to be `);
    add(`lacks ${name}`, { ...good, [name]: undefined }, argument);
    add(`.${name} is an array`, { ...good, [name]: new Float32Array(4) }, argument);
    if (name === "metrics") {
      add(".metrics is a copy", { ...good, metrics: { ...(value as object) } }, argument);
      continue;
    }
    const output = value as Tensor;
    const { dtype, shape } = output;
    const kind = `a ${dtype} tensor [${shape.join(", ")}]`;
    const type = arrayTypes[dtype as DType];
    const other = dtype === "float32" ? "uint8" : "float32";
    const size = device.read(output).length;
    const replaced = (data: InstanceType<(typeof arrayTypes)[DType]>, newShape: readonly number[]): object => ({
      ...good,
      [name]: device.tensor(data, { shape: newShape }),
    });
    add(
      `.${name} has another dtype`,
      replaced(new arrayTypes[other](size), shape),
      `${op}: expected out.${name} to be ${kind}, got a ${other} tensor [${shape.join(", ")}] on ${device.name}`,
      "ERR_UNSUPPORTED_DTYPE",
    );
    add(
      `.${name} is longer`,
      replaced(new type(size + 1), [size + 1]),
      `${op}: expected out.${name} to be ${kind}, got a ${dtype} tensor [${size + 1}] on ${device.name}`,
    );
    add(`.${name} has another shape`, replaced(new type(size), [1, size]), argument);
    const gone = device.tensor(new type(size), { shape });
    gone.dispose();
    add(`.${name} is disposed`, { ...good, [name]: gone }, `${op}: out.${name} has been disposed`, "ERR_DISPOSED");
  }
  return rows;
}

/** Runs the table. `good` gives the options of a call that works, new ones each time. */
export function assertRefusals<Result extends object>(
  device: TestDevice,
  op: (options: never) => Result,
  good: () => Options,
  rows: readonly Refusal[],
): void {
  const call = op as (options: Options) => Result;
  const expected = bitsOf(device, call(good()));
  for (const { what, change, message, code = "ERR_INVALID_ARGUMENT" } of rows) {
    const options: Options = { ...good(), out: poisoned(device, call(good())), ...change };
    const out = options.out as Result;
    for (const [name, value] of Object.entries(options)) if (value === undefined) delete options[name];
    const untouched = snapshot(device, options, "out" in change ? undefined : out);
    try {
      assertFails(() => call(options), code, message);
    } catch (error) {
      throw new Error(`${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
    assertSameMaps(snapshot(device, options, "out" in change ? undefined : out), untouched, `${what}: written`);
  }
  assertSameMaps(bitsOf(device, call(good())), expected, "a good call after the bad ones");
  assert.ok(rows.length > 0);
}

/** The bytes of every array among the options, and of the outputs. */
function snapshot(device: TestDevice, options: Options, out: object | undefined): Map<string, Uint8Array> {
  const bytes = new Map<string, Uint8Array>();
  for (const [name, value] of Object.entries(options)) {
    if (!ArrayBuffer.isView(value)) continue;
    try {
      bytes.set(name, Uint8Array.from(new Uint8Array(value.buffer, value.byteOffset, value.byteLength)));
    } catch {
      // Detached, or an imitation: there is nothing to be written.
    }
  }
  if (!out) return bytes;
  for (const [name, data] of bitsOf(device, out)) {
    bytes.set(`out.${name}`, Uint8Array.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
  }
  return bytes;
}

export function detached<Data extends { buffer: ArrayBufferLike }>(data: Data): Data {
  structuredClone(data.buffer, { transfer: [data.buffer as ArrayBuffer] });
  return data;
}

function detachedTensor(data: Float32Array | Int32Array | Uint8Array | Int8Array): Tensor {
  const result = tensor(data);
  detached(data);
  return result;
}

function disposed(data: Float32Array | Int32Array | Uint8Array | Int8Array): Tensor {
  const result = tensor(data);
  result.dispose();
  return result;
}
