/** The limit, a GPU without room, what comes after, and that nothing leaks. */
import assert from "node:assert/strict";
import {
  cast,
  cudaMemory,
  setCudaMemoryLimit,
  synchronize,
  type Tensor,
  tensor,
  tokenLogprob,
  zeros,
} from "fapo-kernels";
import { assertFails } from "../support.ts";
import { count, gpu, report, test } from "./parts.ts";

const MiB = 2 ** 20;
const device = gpu.name;

function assertWorks(): void {
  const logits = gpu.tensor(Float32Array.of(2, -1, 0.5, 0, 3), { shape: [1, 5] });
  const { logprobs } = tokenLogprob({ logits, tokenIds: Int32Array.of(4) });
  assert.ok(Math.abs(logprobs.item() + 0.417437911889706) < 1e-6);
}

test("beyond the limit: an error that says so, and the next call works", () => {
  assertWorks();
  const { used } = cudaMemory(device);
  setCudaMemoryLimit(device, used + 64 * MiB);
  try {
    for (let i = 0; i < 3; i++) {
      assertFails(() => zeros([128 * MiB], { dtype: "uint8", device }), "ERR_OUT_OF_MEMORY", /zeros: .*limit/);
      zeros([MiB], { dtype: "uint8", device }).dispose();
      assertWorks();
    }
  } finally {
    setCudaMemoryLimit(device, 0);
  }
});

test("more than the GPU has, at once and piece by piece: an error with sizes, and the next call works", () => {
  const { total } = cudaMemory(device);
  const call = (): Tensor => zeros([total + 2 ** 30], { dtype: "uint8", device });
  assertFails(call, "ERR_OUT_OF_MEMORY", /\d/);
  assertWorks();
  const pieces: Tensor[] = [];
  const piece = Math.ceil(total / 40);
  assert.throws(
    () => {
      for (let i = 0; i < 50; i++) pieces.push(zeros([piece], { dtype: "uint8", device }));
    },
    { code: "ERR_OUT_OF_MEMORY" },
  );
  report("pieces of a fortieth of the memory that fitted", pieces.length);
  for (const each of pieces) each.dispose();
  assertWorks();
  zeros([piece * Math.floor(pieces.length / 2)], { dtype: "uint8", device }).dispose();
  assertWorks();
});

test("calls, tensors and errors leave nothing behind", () => {
  const step = (i: number): void => {
    const x = gpu.tensor(new Float32Array(1000 + (i % 7) * 3000), { shape: [1, 1000 + (i % 7) * 3000] });
    const y = cast(x, "bfloat16");
    const { logprobs, lse } = tokenLogprob({ logits: y, tokenIds: Int32Array.of(5) });
    for (const each of [x, y, logprobs, lse]) each.dispose();
    assert.throws(() => tokenLogprob({ logits: tensor(new Float32Array(3)), tokenIds: [1] } as never));
  };
  for (let i = 0; i < count(2000, 20); i++) step(i);
  synchronize(device);
  const before = cudaMemory(device);
  for (let i = 0; i < count(20_000, 50); i++) step(i);
  synchronize(device);
  const after = cudaMemory(device);
  report("bytes after 20,000 calls", { before, after });
  assert.equal(after.used, before.used);
  assert.equal(after.reserved, before.reserved);
  assert.ok(after.free >= before.free - 64 * MiB, `${before.free - after.free} bytes of the GPU are gone`);
});
