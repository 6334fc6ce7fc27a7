/** Memory of a GPU: who owns it, when it is free again, how much there may be, and what copies carry. */
import assert from "node:assert/strict";
import { setImmediate as turn } from "node:timers/promises";
import { inspect } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  cast,
  cudaMemory,
  type DType,
  learningProgress,
  setCudaMemoryLimit,
  type Tensor,
  tensor,
  toDevice,
  zeros,
} from "fapo-kernels";
import { onEmulated, testEmulated, testGpu } from "./support/cuda.ts";
import { assertFails, assertSameBits } from "./support.ts";

const gpu = "cuda:0";
const used = (): number => cudaMemory(gpu).used;

testGpu("dispose frees at once, twice is once, and any other use is ERR_DISPOSED", () => {
  zeros([1], { device: gpu }).dispose();
  const before = used();
  const x = zeros([1000], { device: gpu });
  assert.ok(used() >= before + 4000);
  x.dispose();
  assert.equal(used(), before);
  x.dispose();
  x[Symbol.dispose]();
  assert.equal(used(), before);
  assert.equal(String(x), "a float32 tensor [1000] on cuda:0, disposed");
  assertFails(() => x.item(), "ERR_DISPOSED", "Tensor.item: the tensor has been disposed");
  assertFails(() => x.data, "ERR_DISPOSED", "Tensor.data: the tensor has been disposed");
  assertFails(() => toDevice(x, "cpu"), "ERR_DISPOSED", "toDevice: the tensor has been disposed");
  assertFails(() => cast(x, "bfloat16"), "ERR_DISPOSED", "cast: the tensor has been disposed");
});

testGpu("memory that is freed is taken again: a loop reserves no more", () => {
  const step = (): void => {
    const x = toDevice(tensor(new Float32Array(5000)), gpu);
    const y = cast(x, "float16");
    x.dispose();
    y.dispose();
  };
  step();
  const { reserved } = cudaMemory(gpu);
  for (let i = 0; i < 100; i++) step();
  assert.equal(cudaMemory(gpu).reserved, reserved);
});

testGpu("what nobody holds is freed by the collector", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  collect();
  await turn();
  const before = used();
  (() => {
    for (let i = 0; i < 50; i++) zeros([10_000], { device: gpu });
  })();
  assert.ok(used() >= before + 50 * 40_000);
  for (let i = 0; i < 20 && used() > before; i++) {
    collect();
    await turn();
  }
  assert.equal(used(), before);
});

testGpu("the collector hears of memory on a GPU: a loop that disposes nothing does not use up all of it", async () => {
  const before = used();
  let peak = 0;
  for (let i = 0; i < 300; i++) {
    zeros([1 << 20], { device: gpu });
    peak = Math.max(peak, used() - before);
    await turn();
  }
  assert.ok(peak < (300 * (4 << 20)) / 2, `${peak} bytes`);
});

testGpu("beyond the limit allocations are ERR_OUT_OF_MEMORY with the sizes, and without it they work again", () => {
  setCudaMemoryLimit(gpu, used() + (1 << 20));
  try {
    assertFails(
      () => zeros([1 << 20], { device: gpu }),
      "ERR_OUT_OF_MEMORY",
      /^zeros: no memory on cuda:0 for 4194304 bytes: \d+ are in use here, \d+ of \d+ are free, and the limit is \d+$/,
    );
    zeros([1000], { device: gpu }).dispose();
  } finally {
    setCudaMemoryLimit(gpu, 0);
  }
  zeros([1 << 20], { device: gpu }).dispose();
});

testGpu("setCudaMemoryLimit and cudaMemory name what they cannot take", () => {
  for (const [bytes, got] of [
    [-1, "-1"],
    [1.5, "1.5"],
    [Number.NaN, "NaN"],
    ["1", '"1"'],
  ] as const) {
    const message = `setCudaMemoryLimit: expected bytes to be a number of bytes, got ${got}`;
    assertFails(() => setCudaMemoryLimit(gpu, bytes as number), "ERR_INVALID_ARGUMENT", message);
  }
  const message = 'cudaMemory: expected device to be "cuda:0", "cuda:1", …, got "cpu"';
  assertFails(() => cudaMemory("cpu"), "ERR_INVALID_ARGUMENT", message);
});

testEmulated("FAPO_CUDA_MEMORY_LIMIT limits from the start", () => {
  const [limit, failed] = onEmulated(
    `note(() => cudaMemory("cuda:0").limit); note(() => zeros([1 << 20], { device: "cuda:0" }));`,
    { FAPO_CUDA_MEMORY_LIMIT: "1000000" },
  );
  assert.equal(limit!.result, 1_000_000);
  assert.equal(failed!.code, "ERR_OUT_OF_MEMORY");
});

testGpu("every dtype and shape travels to the GPU and back to the bit", () => {
  const arrays: [DType, Tensor["data"]][] = [
    ["float32", Float32Array.of(0, -0, Number.NaN, 1e-45, Number.POSITIVE_INFINITY, 3)],
    ["bfloat16", Uint16Array.of(0, 1, 0x7fc0, 0x7f80, 0xffff, 5)],
    ["float16", Uint16Array.of(0, 1, 0x7fc0, 0x7c00, 0xffff, 5)],
    ["int32", Int32Array.of(0, -1, 2 ** 31 - 1, -(2 ** 31), 4, 5)],
    ["uint8", Uint8Array.of(0, 1, 255, 3, 4, 5)],
    ["int8", Int8Array.of(0, -1, 127, -128, 4, 5)],
  ];
  for (const [dtype, data] of arrays) {
    for (const shape of [[6], [2, 3], [1, 2, 3], [6, 1]]) {
      const there = toDevice(tensor(data, { dtype, shape }), gpu);
      assert.deepEqual([there.dtype, there.shape, there.device], [dtype, shape, gpu]);
      assert.equal(toDevice(there, gpu), there);
      const back = toDevice(there, "cpu");
      assert.deepEqual([back.dtype, back.shape, back.device], [dtype, shape, "cpu"]);
      assertSameBits(back.data, data, dtype);
    }
    const scalar = toDevice(tensor(data.slice(5), { dtype, shape: [] }), gpu);
    assert.equal(scalar.item(), tensor(data.slice(5), { dtype, shape: [] }).item());
    assert.equal(JSON.stringify({ scalar }), JSON.stringify({ scalar: scalar.item() }));
    assert.equal(toDevice(toDevice(tensor(data.slice(0, 0), { dtype }), gpu), "cpu").data.length, 0);
  }
});

testGpu("copies of any length are whole, also those that go in parts", () => {
  for (const bytes of [1, 255, 256, 257, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (21 << 20) + 3]) {
    const data = Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + (i >> 8)) & 255);
    const there = toDevice(tensor(data), gpu);
    data[0] = 99;
    const back = toDevice(there, "cpu").data as Uint8Array;
    assert.equal(back[0], 0);
    back[0] = 99;
    assert.ok(Buffer.compare(back, data) === 0, `${bytes} bytes`);
    there.dispose();
  }
});

testGpu("strided rows keep their stride and their padding; cast packs them", () => {
  const data = Float32Array.of(1, 2, 9, 3, 4, 9);
  const there = toDevice(tensor(data, { shape: [2, 2], rowStride: 3 }), gpu);
  assert.equal(there.rowStride, 3);
  assert.deepEqual([...toDevice(there, "cpu").data], [1, 2, 9, 3, 4, 9]);
  assert.deepEqual([...toDevice(cast(there, "float32"), "cpu").data], [1, 2, 3, 4]);
});

testGpu("zeros are zeros in memory that held something else", () => {
  for (let i = 0; i < 10; i++) {
    toDevice(tensor(new Float32Array(300).fill(7)), gpu).dispose();
    const fresh = zeros([300], { device: gpu });
    assert.ok(toDevice(fresh, "cpu").data.every((x) => x === 0));
    fresh.dispose();
  }
});

testGpu("elements of a GPU are not there for the taking, and printing does not fetch them", () => {
  const x = toDevice(tensor(Float32Array.of(1, 2)), gpu);
  assertFails(
    () => x.data,
    "ERR_DEVICE_MISMATCH",
    'Tensor.data: the tensor is on cuda:0; toDevice(tensor, "cpu").data copies its elements',
  );
  assertFails(() => x.item(), "ERR_INVALID_ARGUMENT", /^Tensor.item: expected the tensor to be of one element, got/);
  assert.equal(inspect(x), "float32 tensor [2] on cuda:0");
  assert.equal(String(x), "a float32 tensor [2] on cuda:0");
});

testGpu("sizes that no memory has are refused before anything is asked for", () => {
  assertFails(() => zeros([2 ** 51], { device: gpu }), "ERR_OUT_OF_MEMORY", /^zeros: /);
  assertFails(() => zeros([2 ** 52, 1], { device: gpu }), "ERR_OUT_OF_MEMORY", /^zeros: /);
});

testGpu("learningProgress takes tensors of a GPU to the host", () => {
  const correct = Uint8Array.of(1, 1, 0, 1);
  const flawed = Int8Array.of(0, 1, 0, -1);
  const groupIds = Int32Array.of(0, 1, 0, 1);
  const there = (data: Uint8Array | Int8Array | Int32Array): Tensor => toDevice(tensor(data), gpu);
  assert.deepEqual(
    learningProgress({ correct: there(correct), flawed: there(flawed), groupIds: there(groupIds), groups: 2 }),
    learningProgress({ correct, flawed, groupIds, groups: 2 }),
  );
});
