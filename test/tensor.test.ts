/** Tensors, and what there is to run on. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  cast,
  type Device,
  type DType,
  devices,
  FapoError,
  setThreads,
  synchronize,
  type Tensor,
  type TensorData,
  tensor,
  toDevice,
  tokenLogprob,
  zeros,
} from "fapo-kernels";
import { numberOf } from "./reference/halves.ts";
import { arrayFor } from "./support/logits.ts";
import { assertFails, assertSameBits, forEachDevice } from "./support.ts";

const dtypes = ["float32", "bfloat16", "float16", "int32", "uint8", "int8"] as const;
const invalid = "ERR_INVALID_ARGUMENT";
const unsupported = "ERR_UNSUPPORTED_DTYPE";

forEachDevice("a tensor is a view of the array it was made from", (device) => {
  for (const dtype of dtypes) {
    const data = arrayFor(dtype, 6).map((_, i) => i);
    const made = tensor(data, { dtype, shape: [2, 3] });
    assert.equal(made.data, data);
    const { shape, rowStride, device: where } = made;
    assert.deepEqual(
      { dtype: made.dtype, shape, rowStride, where },
      { dtype, shape: [2, 3], rowStride: 3, where: "cpu" },
    );
    const there = device.tensor(data, { dtype, shape: [2, 3] });
    assert.equal(there.device, device.name);
    assertSameBits(device.read(there), data);
  }
});

forEachDevice("dtype and shape are inferred from the array", () => {
  const cases: [TensorData, DType][] = [
    [new Float32Array(4), "float32"],
    [new Int32Array(4), "int32"],
    [new Uint8Array(4), "uint8"],
    [Buffer.alloc(4), "uint8"],
    [new Int8Array(4), "int8"],
  ];
  for (const [data, dtype] of cases) {
    const made = tensor(data);
    assert.deepEqual(
      { dtype: made.dtype, shape: made.shape, rowStride: made.rowStride },
      { dtype, shape: [4], rowStride: 4 },
    );
  }
  const Float16 = (globalThis as { Float16Array?: new (values: number[]) => TensorData }).Float16Array;
  if (Float16) {
    const made = tensor(new Float16([1, -2]));
    assert.equal(made.dtype, "float16");
    assert.deepEqual([...made.data], [0x3c00, 0xc000]);
  }
});

forEachDevice("shapes of any number of dimensions, empty ones too", (device) => {
  for (const shape of [[], [1], [0], [2, 0], [0, 2], [2, 3], [1, 2, 3], [2, 1, 1, 3]]) {
    const count = shape.reduce((product, size) => product * size, 1);
    const made = device.tensor(new Float32Array(count), { shape });
    assert.deepEqual(made.shape, shape);
    assert.equal(device.read(made).length, count);
  }
});

forEachDevice("tensors cannot be changed from outside", () => {
  const shape = [2, 3];
  const made = tensor(new Float32Array(6), { shape });
  shape[0] = 100;
  assert.deepEqual(made.shape, [2, 3]);
  for (const name of ["dtype", "shape", "rowStride", "device", "anything"]) {
    assert.throws(() => Reflect.apply(Object.assign, Object, [made, { [name]: 1 }]), TypeError, name);
  }
  assert.throws(() => (made.shape as number[]).push(1), TypeError);
  const Class = made.constructor as new (...args: unknown[]) => Tensor;
  const message = "Tensor: make one with tensor() or zeros()";
  assertFails(() => new Class(Symbol("internal"), new Float32Array(1), [1], "float32", 1), invalid, message);
});

forEachDevice("tensor() names what it cannot take", () => {
  const f = new Float32Array(6);
  const data = "a typed array of float32, int32, uint8, int8 or 16-bit floats";
  const names = dtypes.join(", ");
  const table: [unknown, unknown, string, string | RegExp][] = [
    [undefined, {}, unsupported, `expected data to be ${data}, got undefined`],
    [null, {}, unsupported, `expected data to be ${data}, got null`],
    [[1, 2], {}, unsupported, `expected data to be ${data}, got [1, 2]`],
    ["x", {}, unsupported, `expected data to be ${data}, got "x"`],
    [new ArrayBuffer(8), {}, unsupported, `expected data to be ${data}, got an object (ArrayBuffer)`],
    [new DataView(new ArrayBuffer(8)), {}, unsupported, `expected data to be ${data}, got DataView(8)`],
    [new Float64Array(2), {}, unsupported, `expected data to be ${data}, got Float64Array(2)`],
    [new Uint32Array(2), {}, unsupported, `expected data to be ${data}, got Uint32Array(2)`],
    [new Int16Array(2), {}, unsupported, `expected data to be ${data}, got Int16Array(2)`],
    [new Uint8ClampedArray(2), {}, unsupported, `expected data to be ${data}, got Uint8ClampedArray(2)`],
    [new BigInt64Array(2), {}, unsupported, `expected data to be ${data}, got BigInt64Array(2)`],
    [new Proxy(f, {}), {}, unsupported, `expected data to be ${data}, got an object (Float32Array)`],
    [Object.create(Float32Array.prototype), {}, unsupported, /expected data to be a typed array/],
    [
      new Uint16Array(2),
      {},
      unsupported,
      'expected dtype to be "bfloat16" or "float16" for a Uint16Array, got undefined',
    ],
    [f, { dtype: "float64" }, unsupported, `expected dtype to be one of ${names}, got "float64"`],
    [f, { dtype: "toString" }, unsupported, `expected dtype to be one of ${names}, got "toString"`],
    [f, { dtype: null }, unsupported, `expected dtype to be one of ${names}, got null`],
    [f, { dtype: "int32" }, unsupported, "expected data to be an Int32Array for dtype int32, got Float32Array(6)"],
    [
      f,
      { dtype: "bfloat16" },
      unsupported,
      "expected data to be a Uint16Array for dtype bfloat16, got Float32Array(6)",
    ],
    [
      new Uint16Array(2),
      { dtype: "float32" },
      unsupported,
      "expected data to be a Float32Array for dtype float32, got Uint16Array(2)",
    ],
    [f, null, invalid, "expected options to be an object, got null"],
    [f, 3, invalid, "expected options to be an object, got 3"],
    [f, { shape: 6 }, invalid, "expected shape to be an array of sizes, got 6"],
    [f, { shape: null }, invalid, "expected shape to be an array of sizes, got null"],
    [f, { shape: Int32Array.of(2, 3) }, invalid, "expected shape to be an array of sizes, got Int32Array(2)"],
    [f, { shape: [2, "3"] }, invalid, 'expected shape to be an array of non-negative integers, got [2, "3"]'],
    [f, { shape: [-2, -3] }, invalid, "expected shape to be an array of non-negative integers, got [-2, -3]"],
    [f, { shape: [1.5, 4] }, invalid, "expected shape to be an array of non-negative integers, got [1.5, 4]"],
    [f, { shape: [Number.NaN] }, invalid, "expected shape to be an array of non-negative integers, got [NaN]"],
    [
      f,
      { shape: [Number.POSITIVE_INFINITY] },
      invalid,
      "expected shape to be an array of non-negative integers, got [Infinity]",
    ],
    [f, { shape: [6n] }, invalid, "expected shape to be an array of non-negative integers, got [6n]"],
    [
      f,
      { shape: [2 ** 30, 2 ** 30] },
      invalid,
      "expected shape to be of fewer than 2^53 elements, got [1073741824, 1073741824]",
    ],
    [f, { shape: [5] }, invalid, "expected data to be of 5 elements for shape [5], got Float32Array(6)"],
    [f, { shape: [7] }, invalid, "expected data to be of 7 elements for shape [7], got Float32Array(6)"],
    [f, { shape: [] }, invalid, "expected data to be of 1 elements for shape [], got Float32Array(6)"],
    [
      f,
      { shape: [6], rowStride: 6 },
      invalid,
      "expected shape to be of two dimensions when rowStride is given, got [6]",
    ],
    [f, { rowStride: 3 }, invalid, "expected shape to be of two dimensions when rowStride is given, got [6]"],
    ...[2, 0, -3, 3.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53].map((stride): (typeof table)[number] => [
      f,
      { shape: [2, 3], rowStride: stride },
      invalid,
      `expected rowStride to be an integer of at least 3, got ${stride}`,
    ]),
    [f, { shape: [2, 3], rowStride: "3" }, invalid, 'expected rowStride to be an integer of at least 3, got "3"'],
    [f, { shape: [2, 3], rowStride: null }, invalid, "expected rowStride to be an integer of at least 3, got null"],
    [f, { shape: [2, 3], rowStride: 3n }, invalid, "expected rowStride to be an integer of at least 3, got 3n"],
    [f, { shape: [2, 3], rowStride: 4 }, invalid, "expected data to be of at least 7 elements, got Float32Array(6)"],
    [
      f,
      { shape: [3, 3], rowStride: 2 ** 52 },
      invalid,
      /expected data to be of at least \d+ elements, got Float32Array\(6\)/,
    ],
    [f, { shape: [2, 3], stride: 4 }, invalid, "unknown option stride"],
    [f, { shape: [2, 3], device: "cpu" }, invalid, "unknown option device"],
  ];
  for (const [source, options, code, message] of table) {
    const full = typeof message === "string" ? `tensor: ${message}` : new RegExp(`^tensor: ${message.source}`);
    assertFails(() => tensor(source as TensorData, options as object), code as "ERR_INVALID_ARGUMENT", full);
  }
});

forEachDevice("a strided matrix may use its data to the last element", () => {
  assert.equal(tensor(new Float32Array(7), { shape: [2, 3], rowStride: 4 }).rowStride, 4);
  assert.equal(tensor(new Float32Array(100), { shape: [2, 3], rowStride: 4 }).rowStride, 4);
  assert.equal(tensor(new Float32Array(0), { shape: [0, 3], rowStride: 4 }).rowStride, 4);
  assert.equal(tensor(new Float32Array(3), { shape: [1, 3], rowStride: 2 ** 40 }).rowStride, 2 ** 40);
});

forEachDevice("arrays that lie about their length are refused", () => {
  class Liar extends Float32Array {
    override get length(): number {
      return 100;
    }
  }
  const message = /^tensor: expected data to be a typed array of .*, got Liar\(100\)$/;
  assertFails(() => tensor(new Liar(2), { shape: [10, 10] }), unsupported, message);
  const patched = Object.defineProperty(new Float32Array(2), "length", { value: 100 });
  assertFails(() => tensor(patched), unsupported, /^tensor: expected data to be a typed array/);
});

forEachDevice("item reads the one element of any dtype", (device) => {
  const cases: [TensorData, DType, number][] = [
    [Float32Array.of(1.5), "float32", 1.5],
    [Int32Array.of(-(2 ** 31)), "int32", -(2 ** 31)],
    [Uint8Array.of(255), "uint8", 255],
    [Int8Array.of(-128), "int8", -128],
    [Float32Array.of(Number.NaN), "float32", Number.NaN],
    [Float32Array.of(-0), "float32", -0],
  ];
  for (const [data, dtype, value] of cases) {
    for (const shape of [[], [1], [1, 1]]) assert.equal(device.tensor(data, { dtype, shape }).item(), value);
  }
  for (const dtype of ["bfloat16", "float16"] as const) {
    for (let bits = 0; bits < 1 << 16; bits += 37) {
      const value = tensor(Uint16Array.of(bits), { dtype, shape: [] }).item();
      assert.ok(Object.is(value, numberOf(bits, dtype)), `${dtype} ${bits.toString(16)}: ${value}`);
    }
  }
  for (const shape of [[2], [0], [2, 1]]) {
    const count = shape.reduce((a, b) => a * b, 1);
    const made = device.tensor(new Float32Array(count), { shape });
    assertFails(
      () => made.item(),
      invalid,
      /^Tensor\.item: expected the tensor to be of one element, got a float32 tensor \[/,
    );
  }
});

forEachDevice("a disposed tensor refuses every use but dispose", (device) => {
  const made = device.tensor(new Float32Array(6), { shape: [2, 3] });
  made.dispose();
  made.dispose();
  made[Symbol.dispose]();
  assertFails(() => made.data, "ERR_DISPOSED", "Tensor.data: the tensor has been disposed");
  assertFails(() => made.item(), "ERR_DISPOSED", "Tensor.item: the tensor has been disposed");
  assertFails(() => cast(made, "bfloat16"), "ERR_DISPOSED", "cast: the tensor has been disposed");
  assertFails(() => toDevice(made, "cpu"), "ERR_DISPOSED", "toDevice: the tensor has been disposed");
  const use = () => tokenLogprob({ logits: made, tokenIds: new Int32Array(2) });
  assertFails(use, "ERR_DISPOSED", "tokenLogprob: logits has been disposed");
  assert.equal(String(made), `a float32 tensor [2, 3] on ${device.name}, disposed`);
  assert.deepEqual(made.shape, [2, 3]);
});

forEachDevice("disposing one tensor leaves another over the same array alone", () => {
  const data = Float32Array.of(1, 2);
  const [one, other] = [tensor(data), tensor(data)];
  one.dispose();
  assert.equal(other.data, data);
  assert.deepEqual([...data], [1, 2]);
});

forEachDevice("nothing poses as a tensor", (device) => {
  const made = device.tensor(new Float32Array(6), { shape: [2, 3] });
  const imitations = [
    Object.create(made),
    new Proxy(made, {}),
    { ...made },
    Object.assign(Object.create(Object.getPrototypeOf(made)), made),
  ];
  for (const imitation of imitations) {
    const use = () => tokenLogprob({ logits: imitation, tokenIds: new Int32Array(2) });
    assertFails(use, invalid, /^tokenLogprob: expected logits to be a tensor \[rows, vocab\]/);
    assertFails(() => toDevice(imitation, "cpu"), invalid, /^toDevice: expected the tensor to be a Tensor/);
    assert.throws(() => (Object.getPrototypeOf(made) as Tensor).item.call(imitation));
  }
});

forEachDevice("zeros makes every dtype and shape, on the device", (device) => {
  for (const dtype of dtypes) {
    for (const shape of [[], [0], [5], [2, 3]]) {
      const made = zeros(shape, { dtype, device: device.name });
      const count = shape.reduce((product, size) => product * size, 1);
      assert.deepEqual(
        { dtype: made.dtype, shape: made.shape, device: made.device },
        { dtype, shape, device: device.name },
      );
      assertSameBits(device.read(made), arrayFor(dtype, count));
    }
  }
  assert.equal(zeros([2]).dtype, "float32");
});

forEachDevice("zeros names what it cannot make", () => {
  const bad =
    (shape: unknown, options: unknown = {}) =>
    () =>
      zeros(shape as number[], options as object);
  assertFails(bad(3), invalid, "zeros: expected shape to be an array of sizes, got 3");
  assertFails(bad(undefined), invalid, "zeros: expected shape to be an array of sizes, got undefined");
  assertFails(bad([-1]), invalid, "zeros: expected shape to be an array of non-negative integers, got [-1]");
  assertFails(
    bad([2 ** 53]),
    invalid,
    /^zeros: expected shape to be an array of non-negative integers, got \[9007199254740992\]$/,
  );
  assertFails(bad([2 ** 30, 2 ** 30]), invalid, /^zeros: expected shape to be of fewer than 2\^53 elements/);
  assertFails(
    bad([2], { dtype: "float64" }),
    unsupported,
    /^zeros: expected dtype to be one of float32, .*, got "float64"$/,
  );
  assertFails(bad([2], { shape: [2] }), invalid, "zeros: unknown option shape");
  assertFails(bad([2], null), invalid, "zeros: expected options to be an object, got null");
  assertFails(
    bad([2], { device: "gpu" }),
    invalid,
    'zeros: expected device to be "cpu" or "cuda:0", "cuda:1", …, got "gpu"',
  );
  const tooLarge = "zeros: no memory for a float32 tensor [4503599627370496, 2]";
  assertFails(
    bad([2 ** 52, 2 ** 0, 1]),
    "ERR_OUT_OF_MEMORY",
    /^zeros: no memory for a float32 tensor \[4503599627370496, 1, 1\]$/,
  );
  assert.ok(tooLarge);
});

forEachDevice("toDevice and synchronize", (device) => {
  const made = tensor(Float32Array.of(1, 2));
  assert.equal(toDevice(made, "cpu"), made);
  const there = toDevice(made, device.name);
  assert.equal(there.device, device.name);
  assertSameBits(toDevice(there, "cpu").data, made.data);
  synchronize();
  synchronize(device.name);
  for (const [value, got] of [
    ["gpu", '"gpu"'],
    ["cuda:x", '"cuda:x"'],
    ["cuda:", '"cuda:"'],
    [null, "null"],
    [0, "0"],
  ] as const) {
    const text = `expected device to be "cpu" or "cuda:0", "cuda:1", …, got ${got}`;
    assertFails(() => toDevice(made, value as unknown as Device), invalid, `toDevice: ${text}`);
    assertFails(() => synchronize(value as unknown as Device), invalid, `synchronize: ${text}`);
  }
  assertFails(
    () => toDevice(null as unknown as Tensor, "cpu"),
    invalid,
    "toDevice: expected the tensor to be a Tensor, got null",
  );
});

forEachDevice("toDevice writes to `out`, which is like the tensor", (device) => {
  const cpu = "cpu";
  const matrix = (first: number, where: Device): Tensor<"float32"> =>
    toDevice(tensor(Float32Array.of(first, 2, 9, 3, 4, 8, 7), { shape: [2, 2], rowStride: 3 }), where);
  for (const [from, to] of [
    [cpu, device.name],
    [device.name, cpu],
    [device.name, device.name],
    [cpu, cpu],
  ] as const) {
    const out = matrix(0, to);
    assert.equal(toDevice(matrix(1, from), to, { out }), out);
    const { data } = toDevice(out, cpu);
    assert.deepEqual([...data].slice(0, 5), [1, 2, 9, 3, 4], `${from} to ${to}`);
  }
  const made = matrix(1, device.name);
  assert.equal(toDevice(made, device.name, { out: made }), made);
  assert.equal(toDevice(made, device.name, { out: undefined }), made);
  const bits = toDevice(tensor(Uint16Array.of(1, 0x7fff), { dtype: "bfloat16" }), device.name);
  const there = toDevice(tensor(new Uint16Array(2), { dtype: "bfloat16" }), device.name);
  assert.deepEqual([...toDevice(toDevice(bits, device.name, { out: there }), cpu).data], [1, 0x7fff]);

  // Rows that are apart, on either side: what lies between them stays.
  const places = [cpu, device.name] as const;
  for (const [from, to] of places.flatMap((a) => places.map((b) => [a, b] as const))) {
    for (const [rowStride, outStride] of [
      [2, 2],
      [2, 3],
      [3, 2],
      [3, 4],
    ] as const) {
      const source = new Float32Array(rowStride + 2).fill(-1);
      source.set([1, 2]);
      source.set([3, 4], rowStride);
      const data = new Float32Array(outStride + 2).fill(9);
      const made = toDevice(tensor(source, { shape: [2, 2], rowStride }), from);
      const given = toDevice(tensor(data, { shape: [2, 2], rowStride: outStride }), to);
      const between = new Array<number>(outStride - 2).fill(9);
      assert.deepEqual([...toDevice(toDevice(made, to, { out: given }), cpu).data], [1, 2, ...between, 3, 4]);
    }
  }
  // A view of more than the tensor, and one whose class says something else.
  const view = new Float32Array(8).fill(9);
  toDevice(toDevice(tensor(Float32Array.of(1, 2)), device.name), cpu, { out: tensor(view.subarray(2, 4)) });
  assert.deepEqual([...view], [9, 9, 1, 2, 9, 9, 9, 9]);
  class Longer extends Float32Array {
    override subarray(): Float32Array<ArrayBuffer> {
      return new Float32Array(4).fill(666);
    }
    static get [Symbol.species](): Float32ArrayConstructor {
      return Uint8Array as never;
    }
  }
  const four = toDevice(tensor(new Float32Array(4)), device.name);
  const one = toDevice(tensor(new Float32Array(1), { shape: [] }), device.name);
  toDevice(tensor(new Longer(1).fill(5), { shape: [] }), device.name, { out: one });
  assert.deepEqual([one.item(), ...toDevice(four, cpu).data], [5, 0, 0, 0, 0]);
  const overlapping = tensor(view.subarray(0, 4));
  assertFails(
    () => toDevice(tensor(view.subarray(2, 6)), cpu, { out: overlapping }),
    invalid,
    "toDevice: expected out to be memory of its own, got memory that overlaps the tensor",
  );
  for (const shape of [[0], [0, 3], [3, 0]]) {
    const nothing = toDevice(tensor(new Float32Array(0), { shape }), device.name);
    assert.equal(toDevice(tensor(new Float32Array(0), { shape }), device.name, { out: nothing }), nothing);
  }

  const vector = toDevice(tensor(new Float32Array(4)), device.name);
  const disposed = matrix(1, device.name);
  disposed.dispose();
  for (const [out, code, message] of [
    [vector, invalid, "toDevice: expected out.shape to be [2, 2], got [4]"],
    [bits, "ERR_UNSUPPORTED_DTYPE", 'toDevice: expected out.dtype to be float32, got "bfloat16"'],
    [new Float32Array(4), invalid, /^toDevice: expected out to be a float32 tensor \[2, 2\], got F/],
    [disposed, "ERR_DISPOSED", "toDevice: out has been disposed"],
  ] as const) {
    assertFails(() => toDevice(made, device.name, { out: out as typeof made }), code, message);
  }
  assertFails(() => toDevice(made, device.name, { into: made } as object), invalid, "toDevice: unknown option into");
  if (device.name !== cpu) {
    const elsewhere = 'toDevice: expected out.device to be "cpu", got "cuda:0"';
    assertFails(() => toDevice(made, cpu, { out: made }), "ERR_DEVICE_MISMATCH", elsewhere);
  }
});

forEachDevice("toDevice refuses a tensor whose buffer has gone elsewhere", (device) => {
  if (device.name === "cpu") return; // there the tensor is returned as it is
  const made = tensor(new Float32Array(6), { shape: [2, 3] });
  structuredClone(made.data.buffer, { transfer: [made.data.buffer as ArrayBuffer] });
  const message = "toDevice: expected the tensor's data to be of at least 6 elements, got Float32Array(0)";
  assertFails(
    () => toDevice(made, device.name),
    "ERR_INVALID_ARGUMENT",
    new RegExp(`^${message.replace(/[()]/g, "\\$&")}`),
  );
});

forEachDevice("a GPU that is not there is refused with the reason that devices() gives", () => {
  const { cuda } = devices();
  if (cuda.available) return;
  assert.ok(cuda.reason && cuda.reason.length > 10);
  assert.deepEqual(cuda.devices, []);
  for (const call of [
    () => toDevice(tensor(new Float32Array(1)), "cuda:0"),
    () => zeros([1], { device: "cuda:0" }),
    () => synchronize("cuda:0"),
  ]) {
    assert.throws(
      call,
      (error) => error instanceof FapoError && error.code === "ERR_NO_CUDA" && error.message.includes(cuda.reason!),
    );
  }
});

forEachDevice("setThreads takes 1 to 256 and shows in devices()", () => {
  const { isa, threads } = devices().cpu;
  assert.ok(["baseline", "avx2", "avx512"].includes(isa));
  try {
    for (const count of [1, 2, 256]) {
      setThreads(count);
      assert.equal(devices().cpu.threads, count);
    }
    for (const [value, got] of [
      [0, "0"],
      [-1, "-1"],
      [257, "257"],
      [1.5, "1.5"],
      [Number.NaN, "NaN"],
      [Number.POSITIVE_INFINITY, "Infinity"],
      ["2", '"2"'],
      [2n, "2n"],
      [null, "null"],
      [undefined, "undefined"],
    ] as const) {
      const message = `setThreads: expected threads to be an integer in 1..256, got ${got}`;
      assertFails(() => setThreads(value as number), invalid, message);
      assert.equal(devices().cpu.threads, 256);
    }
  } finally {
    setThreads(threads);
  }
});

forEachDevice("errors are of one class, with a stable code and one sentence", () => {
  try {
    tensor([] as unknown as TensorData);
    assert.fail("no error");
  } catch (error) {
    assert.ok(error instanceof FapoError && error instanceof Error);
    assert.equal(error.name, "FapoError");
    assert.equal(error.code, unsupported);
    assert.ok(error.stack?.includes("tensor.test"));
    assert.ok(!error.message.includes("\n") && !error.message.endsWith("."));
  }
});

test("console.log shows values, and JSON takes a scalar for its number", () => {
  const matrix = tensor(Float32Array.of(1, 2.5, 3, 4), { shape: [2, 2] });
  assert.equal(inspect(matrix), "float32 tensor [2, 2] on cpu: [ 1, 2.5, 3, 4 ]");
  const scalar = tensor(Float32Array.of(0.5), { shape: [] });
  assert.equal(inspect(scalar), "float32 tensor [] on cpu: 0.5");
  assert.equal(JSON.stringify({ scalar }), '{"scalar":0.5}');
  assert.equal(inspect(cast(matrix, "bfloat16")), "bfloat16 tensor [2, 2] on cpu: [ 1, 2.5, 3, 4 ]");
  matrix.dispose();
  assert.equal(inspect(matrix), "float32 tensor [2, 2] on cpu, disposed");
});

test("large outputs are written to in pages of 2 MB, where there are such pages; zeros take no memory", (context) => {
  // What was asked for is a flag of each piece of memory: "hg".
  const wished = (): number => {
    const pieces = readFileSync("/proc/self/smaps", "utf8").split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
    const kilobytes = pieces.map((piece) =>
      /^VmFlags:.* hg/m.test(piece) ? Number(/^Size: +(\d+)/m.exec(piece)![1]) : 0,
    );
    return 1024 * kilobytes.reduce((sum, size) => sum + size, 0);
  };
  try {
    if (/\[never\]/.test(readFileSync("/sys/kernel/mm/transparent_hugepage/enabled", "utf8"))) throw new Error("never");
    // qemu-user drops the advice; the processor it runs on is that of /proc/cpuinfo.
    const foreign = process.arch !== "x64" && /^vendor_id/m.test(readFileSync("/proc/cpuinfo", "utf8"));
    if (foreign) throw new Error("an emulated processor");
    wished();
  } catch (error) {
    return context.skip(`no huge pages here: ${(error as Error).message}`);
  }
  const before = wished();
  const zero = zeros([2 ** 24], { dtype: "bfloat16" });
  assert.equal(wished(), before);
  const made = cast(zero, "float32");
  const grown = wished() - before;
  assert.ok(grown >= 2 ** 26 - 2 ** 22 && grown <= 2 ** 26 + 2 ** 22, `${grown} bytes more`);
  assert.equal(made.data.length, zero.data.length);
});
