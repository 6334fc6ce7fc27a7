/** Order: what runs later must not see what is written sooner, on one GPU, on two, and beside other CUDA code. */
import assert from "node:assert/strict";
import { assertNoted, onEmulated, testEmulated } from "./support/cuda.ts";

const lazy = { CUDA_EMU_STREAM: "lazy" };

testEmulated("host memory is read inside the call: what is written to it afterwards is not seen", () => {
  const outcomes = onEmulated(
    `const data = new Float32Array(2_000_000).fill(1), x = tensor(data); const there = toDevice(x, "cuda:0");
     data.fill(2); structuredClone(data.buffer, { transfer: [data.buffer] });
     note(() => toDevice(there, "cpu").data.every((v) => v === 1));`,
    lazy,
  );
  assert.deepEqual(outcomes, [{ result: true }]);
});

testEmulated("more uploads than the staging memory holds, none waited for, arrive whole", () => {
  const outcomes = onEmulated(
    `const all = Array.from({ length: 40 }, (_, i) => toDevice(tensor(new Float32Array(100_000 + i).fill(i)), "cuda:0"));
     note(() => all.every((t, i) => toDevice(t, "cpu").data.every((v) => v === i)));`,
    lazy,
  );
  assert.deepEqual(outcomes, [{ result: true }]);
});

testEmulated("item, toDevice and synchronize wait; memory that is reused is reused in order", () => {
  const outcomes = onEmulated(
    `for (let i = 0; i < 20; i++) {
       const x = toDevice(tensor(Float32Array.of(i)), "cuda:0"), y = cast(x, "bfloat16"); x.dispose();
       const z = toDevice(tensor(Float32Array.of(-1)), "cuda:0"); // in the memory of x
       const back = cast(y, "float32"); y.dispose();
       note(() => [back.item(), z.item()]); z.dispose(); back.dispose();
     }`,
    lazy,
  );
  assert.deepEqual(
    outcomes,
    Array.from({ length: 20 }, (_, i) => ({ result: [i, -1] })),
  );
});

testEmulated("the debug switch changes no result", () => {
  const outcomes = onEmulated(
    `const x = gpu(100), y = cast(x, "bfloat16"); x.dispose();
     note(() => read(cast(y, "float32"))[8]); note(() => read(zeros([3], { device: "cuda:0" })));`,
    { FAPO_CUDA_DEBUG: "1", ...lazy },
  );
  assert.deepEqual(outcomes, [{ result: 1 }, { result: [0, 0, 0] }]);
});

testEmulated("two GPUs: tensors travel between them, and no op takes tensors of both", () => {
  const outcomes = onEmulated(
    `note(() => devices().cuda.devices.map((d) => d.device));
     const a = gpu(3), b = toDevice(a, "cuda:1");
     note(() => [b.device, ...read(cast(b, "bfloat16")).map(Number)].length);
     note(() => cast(a, "float32", { out: b }));
     note(() => fapo.policyLoss({ logprobs: a, advantages: b }));
     note(() => fapo.policyLoss({ logprobs: a, advantages: floats(3) }));
     note(() => fapo.policyLoss({ logprobs: floats(3), advantages: b }));
     note(() => fapo.policyLoss({ logprobs: a, advantages: new Float32Array(3), device: "cuda:1" }));
     note(() => zeros([1], { device: "cuda:2" }));
     note(() => [cudaMemory("cuda:0").used > 0, cudaMemory("cuda:1").used > 0, read(a), read(b)]);`,
    { CUDA_EMU_DEVICES: "2" },
  );
  assert.deepEqual(outcomes[0]!.result, ["cuda:0", "cuda:1"]);
  assert.equal(outcomes[1]!.result, 4);
  const mismatch = (i: number, message: string): void => assertNoted(outcomes[i], "ERR_DEVICE_MISMATCH", message);
  mismatch(2, "cast: expected out to be on cuda:0, like the tensor, got a tensor on cuda:1");
  mismatch(3, "policyLoss: expected advantages to be on cuda:0, like logprobs, got a tensor on cuda:1");
  mismatch(4, "policyLoss: expected advantages to be on cuda:0, like logprobs, got a tensor on cpu");
  mismatch(5, "policyLoss: expected advantages to be on cpu, like logprobs, got a tensor on cuda:1");
  mismatch(6, "policyLoss: expected logprobs to be on cuda:1, as device says, got a tensor on cuda:0");
  assertNoted(
    outcomes[7],
    "ERR_NO_CUDA",
    'zeros: device is "cuda:2", but there is no GPU after cuda:1; use "cpu" or another',
  );
  assert.deepEqual(outcomes[8]!.result, [true, true, [0, 0.125, 0.25], [0, 0.125, 0.25]]);
});

testEmulated("a GPU that is lost leaves the other alone", () => {
  const outcomes = onEmulated(
    `const b = toDevice(floats(2), "cuda:1"); synchronize("cuda:1"); zeros([1], { device: "cuda:0" });
     note(() => synchronize("cuda:0")); note(() => zeros([1], { device: "cuda:0" }));`,
    { CUDA_EMU_DEVICES: "2", CUDA_EMU_FAULTS: "cudaStreamSynchronize:2=700" },
  );
  for (const outcome of outcomes) assertNoted(outcome, "ERR_CUDA", /cuda:0 was lost/);
});

testEmulated("memory by address: the same elements, kept with their owner, never freed", () => {
  const outcomes = onEmulated(
    `const x = toDevice(tensor(Float32Array.from({ length: 12 }, (_, i) => i), { shape: [3, 4] }), "cuda:0");
     const pointer = unsafe.devicePointer(x); const used = cudaMemory("cuda:0").used;
     note(() => [typeof pointer.address, pointer.dtype, pointer.shape, pointer.strides, pointer.device]);
     const y = unsafe.fromDevicePointer(pointer);
     note(() => [read(y), cudaMemory("cuda:0").used - used]);
     const part = unsafe.fromDevicePointer({ ...pointer, address: pointer.address + 4n, shape: [3, 2], strides: [4, 1] });
     const packed = cast(part, "float32"); note(() => read(packed)); packed.dispose();
     note(() => { cast(y, "float32", { out: part }); });
     y.dispose(); y.dispose(); note(() => cudaMemory("cuda:0").used - used); note(() => read(x).length);
     note(() => unsafe.fromDevicePointer({ ...pointer, shape: [0, 4], address: 0n }).shape);`,
    lazy,
  );
  assert.deepEqual(outcomes[0]!.result, ["bigint", "float32", [3, 4], [4, 1], "cuda:0"]);
  assert.deepEqual(outcomes[1]!.result, [Array.from({ length: 12 }, (_, i) => i), 0]);
  assert.deepEqual(outcomes[2]!.result, [1, 2, 5, 6, 9, 10]);
  assertNoted(outcomes[3], "ERR_INVALID_ARGUMENT", /^cast: expected out to be a float32 tensor \[3, 4\]/);
  assert.deepEqual(outcomes.slice(4), [{ result: 0 }, { result: 12 }, { result: [0, 4] }]);
});

testEmulated("an address that is not what it is said to be is refused before anything runs", () => {
  const outcomes = onEmulated(
    `const x = toDevice(floats(64), "cuda:0"); const p = unsafe.devicePointer(x);
     const bad = (change) => note(() => unsafe.fromDevicePointer({ ...p, ...change }));
     bad({ address: 4096n }); bad({ address: p.address + 2n }); bad({ shape: [1 << 24] }); bad({ device: "cuda:1" });
     bad({ address: 5 }); bad({ device: "cpu" }); bad({ strides: [2] }); bad({ dtype: "float64" }); bad({ stream: 0n }); bad({ size: 1 });
     note(() => unsafe.devicePointer(floats(2))); note(() => unsafe.setStream("cuda:0", 7)); note(() => read(x).length);`,
    { CUDA_EMU_DEVICES: "2" },
  );
  const wanted: [string, RegExp][] = [
    ["ERR_INVALID_ARGUMENT", /expected address to begin 256 bytes of memory of cuda:0, got/],
    ["ERR_INVALID_ARGUMENT", /expected address to be a multiple of 4, got \d+n/],
    ["ERR_INVALID_ARGUMENT", /expected address to begin 67108864 bytes of memory of cuda:0, got/],
    ["ERR_DEVICE_MISMATCH", /expected address to be memory of cuda:1, got memory of cuda:0/],
    ["ERR_INVALID_ARGUMENT", /expected address to be a BigInt, got 5/],
    ["ERR_INVALID_ARGUMENT", /expected device to be "cuda:0", "cuda:1", …, got "cpu"/],
    ["ERR_INVALID_ARGUMENT", /expected strides\[0\] to be 1, got 2/],
    ["ERR_UNSUPPORTED_DTYPE", /expected dtype to be a dtype such as float32, got "float64"/],
    ["ERR_INVALID_ARGUMENT", /expected stream to be the address of a stream, as a BigInt, got 0n/],
    ["ERR_INVALID_ARGUMENT", /unknown option size/],
    ["ERR_DEVICE_MISMATCH", /^devicePointer: expected a tensor on a GPU, got a float32 tensor \[2\] on cpu/],
    ["ERR_INVALID_ARGUMENT", /^setStream: expected stream to be the address of a stream, as a BigInt, got 7/],
  ];
  for (const [i, [code, message]] of wanted.entries()) assertNoted(outcomes[i], code, message);
  assert.equal(outcomes[wanted.length]!.result, 64);
});

testEmulated("a stream of the caller's: work goes on it, in order with what went before and comes after", () => {
  const outcomes = onEmulated(
    `const x = gpu(8); const own = unsafe.streamOf("cuda:0");
     note(() => { unsafe.setStream("cuda:0", own); return unsafe.streamOf("cuda:0") === own; });
     const y = cast(x, "bfloat16"); unsafe.setStream("cuda:0", undefined);
     note(() => unsafe.streamOf("cuda:0") === own); note(() => read(cast(y, "float32"))[7]);
     note(() => { unsafe.devicePointer(y, { stream: own }); return true; });`,
    lazy,
  );
  assert.deepEqual(outcomes, [{ result: true }, { result: true }, { result: 0.875 }, { result: true }]);
});

testEmulated(
  "a stream that is being captured: no wait, and no memory of the host, which a replay would read again",
  () => {
    const outcomes = onEmulated(
      `note(() => synchronize("cuda:0")); note(() => toDevice(floats(1), "cuda:0"));
     note(() => toDevice(zeros([1], { device: "cuda:0" }), "cpu")); note(() => cast(zeros([1], { device: "cuda:0" }), "bfloat16").shape);`,
      { CUDA_EMU_FAULTS: "capturing=1" },
    );
    const message =
      /: the stream of cuda:0 is being captured into a graph: neither waits nor arrays of the host can be$/;
    for (const outcome of outcomes.slice(0, 3)) assertNoted(outcome, "ERR_CUDA", message);
    assert.deepEqual(outcomes[3]!.result, [1]);
  },
);

testEmulated("workers share the GPU, and leave nothing behind when they end or are terminated", () => {
  const outcomes = onEmulated(
    `const { Worker } = await import("node:worker_threads"); const { once } = await import("node:events");
     const body = \`Promise.all([import("fapo-kernels"), import("node:worker_threads")]).then(([{ cast, tensor, toDevice }, { parentPort, workerData }]) => {
       for (let n = 0; n < workerData.rounds; n++) {
         const x = toDevice(tensor(new Float32Array(1000).fill(n % 64)), "cuda:0"), y = cast(x, "bfloat16"), z = cast(y, "float32");
         if (!toDevice(z, "cpu").data.every((v) => v === n % 64)) throw new Error("wrong");
         if (n % 2) { x.dispose(); y.dispose(); z.dispose(); }
         if (n === 3) parentPort.postMessage("running");
       }
     })\`;
     const start = (rounds) => new Worker(body, { eval: true, workerData: { rounds } });
     zeros([1], { device: "cuda:0" }).dispose();
     const ended = Array.from({ length: 4 }, () => start(40)); await Promise.all(ended.map((w) => once(w, "exit")));
     const stopped = Array.from({ length: 4 }, () => start(1e9)); await Promise.all(stopped.map((w) => once(w, "message")));
     await Promise.all(stopped.map((w) => w.terminate()));
     note(() => cudaMemory("cuda:0").used); note(() => read(gpu(2)));`,
  );
  assert.deepEqual(outcomes, [{ result: 0 }, { result: [0, 0.125] }]);
});

for (const [name, source] of [
  ["the end of the script", "gpu(5);"],
  ["process.exit", "gpu(5); console.log(JSON.stringify(outcomes)); process.exit(0);"],
  ["an exit handler that uses the GPU", 'const x = gpu(5); process.on("exit", () => { cast(x, "bfloat16"); });'],
] as const) {
  testEmulated(`the process ends as it should after ${name}, with work still queued`, () => {
    assert.deepEqual(onEmulated(source, lazy), []);
  });
}
