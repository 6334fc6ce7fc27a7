/** An illegal access in a child process: every later call says so there, the CPU goes on, and nobody else notices. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { tokenLogprob } from "fapo-kernels";
import type { Outcome } from "../support/cuda.ts";
import { gpu, report, test } from "./parts.ts";

const program = fileURLToPath(new URL("illegalAccess.js", import.meta.url));

function works(): number {
  const logits = gpu.tensor(Float32Array.of(2, -1, 0.5, 0, 3), { shape: [1, 5] });
  return tokenLogprob({ logits, tokenIds: Int32Array.of(4) }).logprobs.item();
}

test("after an illegal access every call on the GPU fails with its name, and other processes work", () => {
  const before = works();
  const child = spawnSync(process.execPath, [program], { encoding: "utf8" });
  assert.deepEqual({ status: child.status, signal: child.signal }, { status: 0, signal: null }, child.stderr);
  assert.equal(child.stderr, "");
  const outcomes = JSON.parse(child.stdout) as Outcome[];
  const onCpu = outcomes.pop();
  assert.equal(outcomes.length, 4);
  for (const { code, message, cudaError } of outcomes) {
    assert.equal(code, "ERR_CUDA", message ?? "a call that did not fail");
    assert.deepEqual(cudaError, { number: 700, name: "cudaErrorIllegalAddress" });
    assert.match(message!, /tokenLogprob/);
  }
  assert.match(String(onCpu?.result), /^-1\.4076/);
  assert.equal(works(), before);
  report("said", outcomes[0]!.message);
});
