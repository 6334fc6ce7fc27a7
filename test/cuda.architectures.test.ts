/** GPUs of other architectures: how much shared memory they have decides how rows are spread. */
import assert from "node:assert/strict";
import { onEmulated, testEmulated } from "./support/cuda.ts";

testEmulated("whatever shared memory a GPU has, the vocabulary ops run, and agree with the CPU", () => {
  // Tiles of 4,096 float32: 3, 5 and 7 of them do not divide by a cluster.
  const source = `
    const rows = 5; // more than the emulated GPU has blocks for
    for (const vocab of [3 * 4096, 5 * 4096 - 7, 7 * 4096]) {
      const host = tensor(Float32Array.from({ length: rows * vocab }, (_, i) => 8 * Math.sin(i * i)), { shape: [rows, vocab] });
      const tokenIds = Int32Array.from({ length: rows }, (_, i) => (i * 4099) % vocab);
      const gradLogprobs = new Float32Array(rows).fill(1), advantages = Float32Array.of(1, -1, 0, 2, -2);
      const run = (logits) => {
        const forward = tokenLogprob({ logits, tokenIds, entropy: true });
        const backward = fapo.tokenLogprobBackward({ logits, tokenIds, ...forward, gradLogprobs });
        const fused = fapo.fusedPolicyLoss({ logits, tokenIds, advantages, entropy: true, entropyCoef: 0.1 });
        const outputs = [forward.logprobs, forward.entropy, fused.logprobs, fused.entropy, fused.loss];
        return [...outputs, backward.gradLogits, fused.gradLogits].map(read);
      };
      note(() => {
        const cpu = run(host), gpu = run(toDevice(host, "cuda:0"));
        return cpu.every((expected, i) => expected.every((v, j) => Math.abs(v - gpu[i][j]) < 2e-5));
      });
    }`;
  for (const CUDA_EMU_COMPUTE of ["8.0", "8.9", "9.0", "12.0"]) {
    const outcomes = onEmulated(source, { CUDA_EMU_COMPUTE });
    assert.deepEqual(outcomes, new Array(3).fill({ result: true }), CUDA_EMU_COMPUTE);
  }
});

testEmulated("where the runtime refuses a kernel its shared memory, the kernels that need none take its place", () => {
  const [outcome] = onEmulated(
    `const logits = tensor(new Float32Array(5 * 4096), { shape: [5, 4096] });
     note(() => read(tokenLogprob({ logits: toDevice(logits, "cuda:0"), tokenIds: new Int32Array(5) }).logprobs));`,
    { CUDA_EMU_FAULTS: "cudaFuncSetAttribute=1" },
  );
  assert.deepEqual(outcome, { result: new Array(5).fill(Math.fround(-Math.log(4096))) });
});
