/** cast: every value of 16 bits, every rounding. */
import assert from "node:assert/strict";
import { cast, type DType, type Tensor, tensor } from "fapo-kernels";
import fc from "fast-check";
import { bitsOf, numberOf, roundTo } from "./reference/halves.ts";
import { spread } from "./support/logits.ts";
import { assertFails, assertSameBits, floatDTypes, forEachDevice, rng } from "./support.ts";

const halves = ["bfloat16", "float16"] as const;
const everyPattern = Uint16Array.from({ length: 1 << 16 }, (_, bits) => bits);
const floatOf = (bits: number): number => new Float32Array(new Uint32Array([bits]).buffer)[0]!;

for (const dtype of halves) {
  forEachDevice(`every ${dtype} widens to the number it means`, (device) => {
    const source = device.tensor(everyPattern, { dtype });
    const wide = device.read(cast(source, "float32")) as Float32Array;
    for (const [bits, value] of wide.entries()) {
      const expected = numberOf(bits, dtype);
      assert.ok(Object.is(value, expected), `${bits.toString(16)}: ${value}, expected ${expected}`);
    }
  });

  forEachDevice(`every ${dtype} comes back from float32 as the same bits, NaN as NaN`, (device) => {
    const wide = cast(device.tensor(everyPattern, { dtype }), "float32");
    const back = device.read(cast(wide, dtype));
    for (const [bits, got] of back.entries()) {
      if (Number.isNaN(numberOf(bits, dtype))) {
        assert.ok(Number.isNaN(numberOf(got, dtype)), `${bits.toString(16)} became ${got.toString(16)}`);
        assert.equal(got & 0x8000, bits & 0x8000, `the sign of ${bits.toString(16)}`);
      } else {
        assert.equal(got, bits);
      }
    }
  });

  forEachDevice(`narrowing to ${dtype} rounds to nearest even next to every value and every midpoint`, (device) => {
    const values: number[] = [];
    for (const bits of everyPattern) {
      const value = numberOf(bits, dtype);
      const next = numberOf(bits + 1, dtype);
      if (!Number.isFinite(value)) continue;
      // Past the largest number: the midpoint to what would come next.
      const middle = Number.isFinite(next) ? (value + next) / 2 : value + (value - numberOf(bits - 1, dtype)) / 2;
      const word = new Uint32Array(Float32Array.of(middle).buffer)[0]!;
      values.push(value, middle, floatOf(word - 1), floatOf(word + 1));
    }
    const floats = Float32Array.from(values);
    const got = device.read(cast(device.tensor(floats), dtype));
    for (const [i, value] of floats.entries()) {
      if (Number.isNaN(value)) continue;
      const expected = bitsOf(roundTo(value, dtype), dtype);
      assert.equal(got[i], expected, `${value}: ${got[i]!.toString(16)}, expected ${expected.toString(16)}`);
    }
  });

  forEachDevice(`narrowing to ${dtype} is right for any float32`, (device) => {
    const property = fc.property(fc.array(fc.float(), { minLength: 1, maxLength: 200 }), (values) => {
      const floats = Float32Array.from(values);
      const got = device.read(cast(device.tensor(floats), dtype));
      for (const [i, value] of floats.entries()) {
        const rounded = roundTo(value, dtype);
        assert.ok(Object.is(numberOf(got[i]!, dtype), rounded), `${value}: ${got[i]}, expected ${rounded}`);
      }
    });
    fc.assert(property, { seed: 20251122, numRuns: 1000 });
  });

  forEachDevice(`infinities, zeros and NaN of every payload survive narrowing to ${dtype}`, (device) => {
    const special = device.read(cast(device.tensor(Float32Array.of(Infinity, -Infinity, 0, -0)), dtype));
    const infinity = dtype === "bfloat16" ? 0x7f80 : 0x7c00;
    assert.deepEqual([...special], [infinity, infinity | 0x8000, 0, 0x8000]);
    const payloads = new Uint32Array([0x7f800001, 0x7f80ffff, 0x7fffffff, 0xff800001, 0xffbfffff, 0xffffffff]);
    const got = device.read(cast(device.tensor(new Float32Array(payloads.buffer)), dtype));
    for (const bits of got) assert.ok(Number.isNaN(numberOf(bits, dtype)), bits.toString(16));
  });
}

forEachDevice("between the two 16-bit dtypes a value is rounded once", (device) => {
  const between = device.read(cast(device.tensor(everyPattern, { dtype: "bfloat16" }), "float16"));
  const back = device.read(cast(device.tensor(everyPattern, { dtype: "float16" }), "bfloat16"));
  for (const bits of everyPattern) {
    const [wide, half] = [numberOf(bits, "bfloat16"), numberOf(bits, "float16")];
    const toHalf = numberOf(between[bits]!, "float16");
    const toWide = numberOf(back[bits]!, "bfloat16");
    assert.ok(Object.is(toHalf, roundTo(wide, "float16")), `bfloat16 ${bits.toString(16)}`);
    assert.ok(Object.is(toWide, roundTo(half, "bfloat16")), `float16 ${bits.toString(16)}`);
  }
});

forEachDevice("every shape, length and offset is cast whole", (device) => {
  const random = rng(5);
  for (let length = 0; length < 140; length++) {
    const values = Float32Array.from({ length }, () => 100 * random() - 50);
    for (const dtype of halves) {
      const expected = Uint16Array.from(values, (value) => bitsOf(roundTo(value, dtype), dtype));
      assertSameBits(device.read(cast(device.tensor(values), dtype)), expected, `${length} to ${dtype}`);
      const memory = new Float32Array(length + 3);
      memory.set(values, 3);
      assertSameBits(device.read(cast(device.tensor(memory.subarray(3)), dtype)), expected, `${length} at an offset`);
    }
  }
  for (const shape of [[], [1], [2, 3], [2, 3, 4], [0], [0, 5], [5, 0]]) {
    const count = shape.reduce((product, size) => product * size, 1);
    const source = device.tensor(new Float32Array(count).fill(1.5), { shape });
    const result = cast(source, "bfloat16");
    assert.deepEqual({ shape: result.shape, dtype: result.dtype }, { shape, dtype: "bfloat16" });
    assert.ok(Array.from(device.read(result)).every((bits) => bits === 0x3fc0));
  }
});

forEachDevice("rows that are not packed become so, and nothing between them is taken along", (device) => {
  for (const dtype of floatDTypes) {
    for (const wanted of floatDTypes) {
      const [rows, vocab, rowStride] = [3, 37, 41];
      const values = Float32Array.from({ length: rows * vocab }, (_, i) => (i % 50) - 25);
      const packed = cast(device.tensor(values, { shape: [rows, vocab] }), dtype);
      const data = device.read(packed) as Float32Array | Uint16Array;
      const batch = { rows, vocab, dtype, data, values, tokenIds: new Int32Array(rows) };
      const strided = device.tensor(spread(batch, rowStride), { shape: [rows, vocab], dtype, rowStride });
      const result = cast(strided, wanted);
      assert.equal(result.rowStride, vocab);
      assertSameBits(device.read(result), device.read(cast(packed, wanted)), `${dtype} to ${wanted}`);
    }
  }
});

forEachDevice("a cast to the same dtype is a copy", (device) => {
  for (const dtype of floatDTypes) {
    const source = cast(device.tensor(Float32Array.of(1, -2, Infinity)), dtype);
    const copy = cast(source, dtype);
    assert.notEqual(copy, source);
    assertSameBits(device.read(copy), device.read(source));
    if (device.name === "cpu") assert.notEqual(copy.data.buffer, source.data.buffer);
  }
});

forEachDevice("cast names what it cannot take", (device) => {
  const wanted = "float32, bfloat16 or float16";
  const good = device.tensor(Float32Array.of(1, 2));
  for (const [source, got] of [
    [undefined, "undefined"],
    [null, "null"],
    [new Float32Array(2), "Float32Array(2)"],
    [{ dtype: "float32" }, "an object (Object)"],
    [new Proxy(good, {}), /.+/],
    [Object.create(good), /.+/],
  ] as const) {
    const message =
      typeof got === "string"
        ? `cast: expected the tensor to be a Tensor, got ${got}`
        : /^cast: expected the tensor to be a Tensor/;
    assertFails(() => cast(source as unknown as Tensor, "float32"), "ERR_INVALID_ARGUMENT", message);
  }
  for (const data of [Int32Array.of(1), Uint8Array.of(1), Int8Array.of(1)]) {
    const source = device.tensor(data);
    const message = `cast: expected the tensor's dtype to be ${wanted}, got "${source.dtype}"`;
    assertFails(() => cast(source, "float32"), "ERR_UNSUPPORTED_DTYPE", message);
  }
  for (const [dtype, got] of [
    ["int32", '"int32"'],
    ["float64", '"float64"'],
    ["", '""'],
    [undefined, "undefined"],
    [null, "null"],
    ["__proto__", '"__proto__"'],
    [{ toString: () => "float32" }, "an object (Object)"],
  ] as const) {
    const message = `cast: expected dtype to be ${wanted}, got ${got}`;
    assertFails(() => cast(good, dtype as DType), "ERR_UNSUPPORTED_DTYPE", message);
  }
  const gone = device.tensor(Float32Array.of(1));
  gone.dispose();
  assertFails(() => cast(gone, "bfloat16"), "ERR_DISPOSED", "cast: the tensor has been disposed");
});

forEachDevice("cast finds out when memory went away under the tensor", (device) => {
  if (device.name !== "cpu") return;
  for (const shape of [[6], [2, 3]]) {
    const data = new Float32Array(6);
    const source = tensor(data, { shape });
    structuredClone(data.buffer, { transfer: [data.buffer] });
    assertFails(() => cast(source, "bfloat16"), "ERR_INVALID_ARGUMENT", /^cast: /);
  }
});

forEachDevice("cast writes into out, and refuses one that does not fit", (device) => {
  const source = device.tensor(Float32Array.of(1, 2, 3, 4), { shape: [2, 2] });
  const out = device.tensor(new Uint16Array(4), { shape: [2, 2], dtype: "bfloat16" });
  assert.equal(cast(source, "bfloat16", { out }), out);
  assert.deepEqual(device.floats(out), [1, 2, 3, 4]);
  const strided = device.tensor(new Uint16Array(5), { shape: [2, 2], dtype: "bfloat16", rowStride: 3 });
  assert.equal(cast(source, "bfloat16", { out: strided }), strided);
  assert.deepEqual(Array.from(device.read(strided)), [0x3f80, 0x4000, 0, 0x4040, 0x4080]);
  const wanted = "cast: expected out to be a bfloat16 tensor [2, 2], got ";
  const small = device.tensor(new Uint16Array(2), { dtype: "bfloat16" });
  assertFails(
    () => cast(source, "bfloat16", { out: small }),
    "ERR_INVALID_ARGUMENT",
    new RegExp(wanted.replace(/[[]/g, "\\[")),
  );
  assertFails(() => cast(source, "float32", { out: source }), "ERR_INVALID_ARGUMENT", /overlaps source$/);
  assertFails(() => cast(source, "bfloat16", { ouy: 1 } as never), "ERR_INVALID_ARGUMENT", "cast: unknown option ouy");
});
