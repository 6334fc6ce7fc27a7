/** What the CUDA runtime can answer, planted in the emulated one: each has its code, its words, and no aftermath. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { assertNoted, onEmulated, root, testEmulated } from "./support/cuda.ts";

/** The CPU works whatever CUDA says. */
const cpuWorks = `note(() => tokenLogprob({ logits: tensor(new Float32Array([1, 1]), { shape: [1, 2] }), tokenIds: new Int32Array(1) }).lse.item());`;

for (const [what, env, reason] of [
  ["no driver", { CUDA_EMU_FAULTS: "driver=0" }, /^no NVIDIA driver is installed$/],
  [
    "a driver that is too old",
    { CUDA_EMU_FAULTS: "driver=12040" },
    /^the NVIDIA driver is too old: it supports CUDA 12\.4, and these kernels need 13\.\d \(cudaErrorInsufficientDriver, 35\)$/,
  ],
  ["no GPU", { CUDA_EMU_DEVICES: "0" }, /^no NVIDIA GPU was found \(cudaErrorNoDevice, 100\)$/],
  [
    "GPUs that are hidden",
    { CUDA_EMU_DEVICES: "0", CUDA_VISIBLE_DEVICES: "" },
    /^no GPU is visible \(CUDA_VISIBLE_DEVICES is ""\)$/,
  ],
  [
    "a driver that does not fit its module",
    { CUDA_EMU_FAULTS: "cudaGetDeviceCount=803" },
    /^the CUDA runtime says cudaErrorSystemDriverMismatch \(803\), /,
  ],
  [
    "an unknown error",
    { CUDA_EMU_FAULTS: "cudaGetDeviceCount=999" },
    /^the CUDA runtime says cudaErrorUnknown \(999\), /,
  ],
  ["no library", { FAPO_KERNELS_CUDA: "/nonexistent/library.so" }, /^this build of fapo-kernels has no CUDA kernels$/],
  ["a library that does not load", { FAPO_KERNELS_CUDA: "package.json" }, /^the CUDA kernels do not load: /],
] as const) {
  testEmulated(`${what}: devices says so, "cuda:0" is ERR_NO_CUDA, and the CPU works`, () => {
    const [found, zeros, lse] = onEmulated(
      `note(() => devices().cuda); note(() => zeros([1], { device: "cuda:0" })); ${cpuWorks}`,
      env,
    );
    const cuda = found!.result as { available: boolean; reason: string; devices: unknown[] };
    assert.equal(cuda.available, false);
    assert.match(cuda.reason, reason);
    assert.deepEqual(cuda.devices, []);
    assertNoted(zeros, "ERR_NO_CUDA", `zeros: device is "cuda:0", but ${cuda.reason}; use "cpu"`);
    assert.equal(lse!.result, Math.fround(1 + Math.log(2)));
  });
}

test("the library of this build: without a driver devices says so, and the CPU works", () => {
  const source = `import { devices, tensor, tokenLogprob } from "fapo-kernels";
    const { available, reason } = devices().cuda;
    const { lse } = tokenLogprob({ logits: tensor(new Float32Array([1, 1]), { shape: [1, 2] }), tokenIds: new Int32Array(1) });
    console.log(JSON.stringify({ available, reason, lse: lse.item() }));`;
  const env = { ...process.env, FAPO_KERNELS_CUDA: "" };
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "--eval", source], {
    cwd: root,
    encoding: "utf8",
    env,
  });
  const { available, reason, lse } = JSON.parse(stdout);
  assert.equal(stderr, "");
  assert.equal(lse, Math.fround(1 + Math.log(2)));
  if (!available)
    assert.match(reason, /^(no NVIDIA driver is installed|this build of fapo-kernels has no CUDA kernels|no .*GPU)/);
});

testEmulated("kernels for other GPUs: the first use says for which, and devices repeats it", () => {
  const [before, zeros, again, after, lse] = onEmulated(
    `note(() => devices().cuda.available); note(() => zeros([1], { device: "cuda:0" }).item());
     note(() => synchronize("cuda:0")); note(() => devices().cuda); ${cpuWorks}`,
    { CUDA_EMU_FAULTS: "cudaFuncGetAttributes=209" },
  );
  assert.equal(before!.result, true);
  const message =
    /cuda:0 cannot be used: it has compute capability \d+\.\d, and these kernels were built for \w+: cudaErrorNoKernelImageForDevice \(209\)$/;
  for (const outcome of [zeros, again]) {
    assertNoted(outcome, "ERR_NO_CUDA", message);
    assert.deepEqual(outcome!.cudaError, { number: 209, name: "cudaErrorNoKernelImageForDevice" });
  }
  const cuda = after!.result as { available: boolean; reason: string };
  assert.equal(cuda.available, false);
  assert.match(cuda.reason, /^it has compute capability/);
  assert.ok(lse!.result);
});

const everyUse = `
  note(() => zeros([2], { device: "cuda:0" }));
  note(() => toDevice(floats(2), "cuda:0"));
  note(() => toDevice(x, "cpu"));
  note(() => cast(x, "bfloat16"));
  note(() => synchronize("cuda:0"));
  note(() => cudaMemory("cuda:0"));
  note(() => setCudaMemoryLimit("cuda:0", 0));
  note(() => unsafe.streamOf("cuda:0"));`;

testEmulated("after a sticky error every later call refuses at once and names the first op; the CPU works", () => {
  const outcomes = onEmulated(
    `const x = gpu(4); synchronize("cuda:0"); cast(x, "bfloat16"); cast(x, "float16");
     note(() => synchronize("cuda:0")); ${everyUse} x.dispose(); ${cpuWorks} note(() => String(x));`,
    { CUDA_EMU_FAULTS: "cudaStreamSynchronize:2=700" },
  );
  const lost =
    "cuda:0 was lost to cudaErrorIllegalAddress (700), an illegal memory access was encountered, in cast or an op after it; nothing runs on it any more: restart the process";
  const uses = "synchronize zeros toDevice toDevice cast synchronize cudaMemory setCudaMemoryLimit streamOf".split(" ");
  for (const [i, op] of uses.entries()) {
    assertNoted(outcomes[i], "ERR_CUDA", `${op}: ${lost}`);
    assert.deepEqual(outcomes[i]!.cudaError, { number: 700, name: "cudaErrorIllegalAddress" });
  }
  assert.ok(outcomes[uses.length]!.result);
  assert.equal(outcomes[uses.length + 1]!.result, "a float32 tensor [4] on cuda:0, disposed");
});

testEmulated(
  "a launch that fails is named exactly; what fails later, as the first in doubt since the last wait",
  () => {
    const source = `const x = gpu(4); for (let i = 0; i < 3; i++) cast(x, "bfloat16"); synchronize("cuda:0");
    note(() => { cast(x, "float16"); synchronize("cuda:0"); }); note(() => zeros([1], { device: "cuda:0" }));`;
    const atLaunch = onEmulated(source, { CUDA_EMU_FAULTS: "cudaLaunchKernelEx:4=719" });
    assertNoted(
      atLaunch[0],
      "ERR_CUDA",
      /^cast: cuda:0 was lost to cudaErrorLaunchFailure \(719\), .*, in cast; nothing/,
    );
    const later = onEmulated(source, { CUDA_EMU_FAULTS: "cudaStreamSynchronize:2=719" });
    assertNoted(later[0], "ERR_CUDA", /^synchronize: cuda:0 was lost .*, in cast; nothing/);
    const debug = onEmulated(source, { CUDA_EMU_FAULTS: "cudaStreamSynchronize:5=719", FAPO_CUDA_DEBUG: "1" });
    assertNoted(debug[0], "ERR_CUDA", /^cast: cuda:0 was lost .*, in cast; nothing/);
    for (const outcomes of [atLaunch, later, debug]) assertNoted(outcomes[1], "ERR_CUDA", /^zeros: cuda:0 was lost/);
  },
);

testEmulated("an error that is not sticky is over with the call that met it", () => {
  const [failed, works] = onEmulated(
    `const x = gpu(4); const used = cudaMemory("cuda:0").used; note(() => cast(x, "bfloat16"));
     note(() => [read(cast(cast(x, "bfloat16"), "float32")), cudaMemory("cuda:0").used - used >= 0]);`,
    { CUDA_EMU_FAULTS: "cudaLaunchKernelEx:1=701" },
  );
  assertNoted(failed, "ERR_CUDA", /^cast: the CUDA runtime says cudaErrorLaunchOutOfResources \(701\) on cuda:0, /);
  assert.deepEqual(works!.result, [[0, 0.125, 0.25, 0.375], true]);
});

testEmulated("an error left behind by other code is not taken for ours", () => {
  const source = `note(() => read(gpu(2)));`;
  assert.deepEqual(onEmulated(source, { CUDA_EMU_FAULTS: "stale=2" })[0]!.result, [0, 0.125]);
  // Of another GPU, perhaps: this one still answers.
  assert.deepEqual(onEmulated(source, { CUDA_EMU_FAULTS: "stale=700" })[0]!.result, [0, 0.125]);
});

testEmulated("where no host memory can be pinned, copies go without", () => {
  const source = `const n = 3_000_001, x = gpu(n); note(() => toDevice(x, "cpu").data.every((v, i) => v === Math.fround(i / 8)));
    note(() => read(cast(toDevice(floats(3), "cuda:0"), "bfloat16")).length);`;
  for (const CUDA_EMU_STREAM of ["", "lazy"]) {
    const outcomes = onEmulated(source, { CUDA_EMU_FAULTS: "cudaHostAlloc=2", CUDA_EMU_STREAM });
    assert.deepEqual(outcomes, [{ result: true }, { result: 3 }]);
  }
});

testEmulated("where no event can be made, the call says so, and the next one copies whole", () => {
  const source = `const step = () => read(cast(toDevice(floats(9), "cuda:0"), "bfloat16")).length;
    for (let i = 0; i < 4; i++) note(step);`;
  const failures: string[] = [];
  for (let k = 1; k <= 3; k++) {
    const outcomes = onEmulated(source, {
      CUDA_EMU_FAULTS: `cudaEventCreateWithFlags:${k}=2`,
      CUDA_EMU_STREAM: "lazy",
    });
    const failed = outcomes.filter(({ code }) => code !== undefined);
    for (const { code } of failed) failures.push(code!);
    assert.ok(failed.length <= 1);
    for (const { result } of outcomes.filter((outcome) => !failed.includes(outcome))) assert.equal(result, 9);
  }
  assert.ok(failures.length > 0 && failures.every((code) => code === "ERR_OUT_OF_MEMORY"), failures.join());
});

testEmulated("one cudaMalloc that fails is tried again; two are ERR_OUT_OF_MEMORY, and nothing is lost", () => {
  const source = `const before = cudaMemory("cuda:0").used; let x;
    const step = () => { const a = toDevice(floats(1000), "cuda:0"); try { const b = cast(a, "bfloat16"); try { const c = cast(b, "float32"); try { return read(c)[8]; } finally { c.dispose(); } } finally { b.dispose(); } } finally { a.dispose(); } };
    for (let i = 0; i < 4; i++) note(step);
    note(() => cudaMemory("cuda:0").used - before);`;
  // The first block is the device's own; then three tensors.
  for (let k = 2; k <= 4; k++) {
    const once = onEmulated(source, { CUDA_EMU_FAULTS: `cudaMalloc:${k}=2` });
    assert.deepEqual(once, [{ result: 1 }, { result: 1 }, { result: 1 }, { result: 1 }, { result: 0 }]);
    const [failed, ...rest] = onEmulated(source, { CUDA_EMU_FAULTS: `cudaMalloc:${k}=2,cudaMalloc:${k + 1}=2` });
    assertNoted(
      failed,
      "ERR_OUT_OF_MEMORY",
      /^\w+: no memory on cuda:0 for \d+ bytes: \d+ are in use here, \d+ of \d+ are free: cudaErrorMemoryAllocation \(2\)$/,
    );
    assert.deepEqual(rest, [{ result: 1 }, { result: 1 }, { result: 1 }, { result: 0 }]);
  }
});

testEmulated("out of memory for good: the message has the sizes, and what fits still works", () => {
  const [failed, fits] = onEmulated(
    `note(() => zeros([1 << 26], { device: "cuda:0" })); note(() => zeros([1 << 20], { device: "cuda:0" }).shape);`,
    { CUDA_EMU_MEMORY: "64" },
  );
  assertNoted(
    failed,
    "ERR_OUT_OF_MEMORY",
    /^zeros: no memory on cuda:0 for 268435456 bytes: \d+ are in use here, \d+ of 67108864 are free/,
  );
  assert.deepEqual(fits!.result, [1 << 20]);
});
