/** CUDA graphs: a replay is the calls that were captured, on what their tensors hold by then. */
import assert from "node:assert/strict";
import {
  captureGraph,
  cast,
  cudaMemory,
  fapoAdvantage,
  fusedPolicyLoss,
  policyLoss,
  synchronize,
  type Tensor,
  type TensorData,
  tensor,
  toDevice,
  tokenLogprob,
  tokenLogprobBackward,
  zeros,
} from "fapo-kernels";
import { assertNoted, onEmulated, testEmulated, testGpu } from "./support/cuda.ts";
import { rng } from "./support.ts";

const device = "cuda:0";
const lazy = { CUDA_EMU_STREAM: "lazy" };

/** The inputs of a FAPO step: new numbers with every seed, the same shapes. */
function batch(seed: number): Record<string, Tensor> {
  const [sequences, length, vocab] = [8, 5, 1003];
  const tokens = sequences * length;
  const uniform = rng(seed);
  const integer = (below: number): number => Math.floor(uniform() * below);
  const fill = <Data extends TensorData>(data: Data, value: () => number): Data => {
    for (let i = 0; i < data.length; i++) data[i] = value();
    return data;
  };
  return {
    correct: tensor(fill(new Uint8Array(sequences), () => integer(2))),
    flawed: tensor(fill(new Int8Array(sequences), () => integer(2))),
    logits: tensor(
      fill(new Float32Array(tokens * vocab), () => 6 * uniform() - 3),
      { shape: [tokens, vocab] },
    ),
    tokenIds: tensor(fill(new Int32Array(tokens), () => integer(vocab))),
    responseMask: tensor(fill(new Uint8Array(tokens), () => Number(uniform() < 0.8))),
    oldLogprobs: tensor(fill(new Float32Array(tokens), () => -6.9 - uniform() / 4)),
    cuSeqlens: tensor(Int32Array.from({ length: sequences + 1 }, (_, i) => i * length)),
  };
}

const there = (inputs: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(Object.entries(inputs).map(([name, one]) => [name, toDevice(one, device)]));

function step(t: Record<string, Tensor>) {
  const advantage = fapoAdvantage({ correct: t.correct!, flawed: t.flawed!, groupSize: 4 });
  const loss = fusedPolicyLoss({
    logits: t.logits!,
    tokenIds: t.tokenIds!,
    responseMask: t.responseMask!,
    oldLogprobs: t.oldLogprobs!,
    cuSeqlens: t.cuSeqlens!,
    advantages: advantage.advantages,
    lossAggMode: "seq-mean-token-mean",
    entropyCoef: 0.01,
  });
  return { ...advantage, ...loss };
}

/** All tensors of a result, on the host. */
function onHost(result: object): Record<string, unknown> {
  const entries = Object.entries(result).map(([name, value]) =>
    "dtype" in value ? [name, toDevice(value, "cpu").data.slice()] : [name, onHost(value)],
  );
  return Object.fromEntries(entries);
}

testGpu("a captured FAPO step, replayed on new inputs, gives the bits of its calls", () => {
  const inputs = there(batch(1));
  step(inputs); // what a first call prepares is there
  using graph = captureGraph(() => step(inputs), { device });
  assert.equal(graph.device, device);
  for (const seed of [2, 3, 1]) {
    const fresh = batch(seed);
    for (const [name, one] of Object.entries(fresh)) toDevice(one, device, { out: inputs[name]! });
    graph.replay();
    assert.deepEqual(onHost(graph.result), onHost(step(there(fresh))), `seed ${seed}`);
  }
});

testGpu("nothing runs while it is captured, and every replay runs all of it", () => {
  const x = toDevice(tensor(Float32Array.of(1, 2)), device);
  const y = zeros([2], { device });
  using graph = captureGraph(() => void toDevice(x, device, { out: y }));
  assert.deepEqual([...toDevice(y, "cpu").data], [0, 0]);
  graph.replay();
  assert.deepEqual([...toDevice(y, "cpu").data], [1, 2]);
  toDevice(tensor(Float32Array.of(3, 4)), device, { out: x });
  graph.replay();
  graph.replay();
  assert.deepEqual([...toDevice(y, "cpu").data], [3, 4]);
});

testGpu("in place: each replay works on what the one before left", () => {
  const rows = 3;
  const logits = tensor(
    Float32Array.from({ length: rows * 700 }, (_, i) => (i * 37) % 11),
    { shape: [rows, 700] },
  );
  const tokenIds = toDevice(tensor(Int32Array.of(1, 2, 3)), device);
  const gradLogprobs = toDevice(tensor(Float32Array.of(1, -1, 0.5)), device);
  const gradientOf = (matrix: Tensor): void => {
    const { logprobs, lse } = tokenLogprob({ logits: matrix, tokenIds });
    tokenLogprobBackward({ logits: matrix, tokenIds, logprobs, lse, gradLogprobs, inPlace: true });
  };
  const captured = toDevice(logits, device);
  using graph = captureGraph(() => gradientOf(captured));
  const called = toDevice(logits, device);
  for (let i = 0; i < 3; i++) {
    graph.replay();
    gradientOf(called);
    assert.deepEqual(toDevice(captured, "cpu").data, toDevice(called, "cpu").data);
  }
});

testGpu("two graphs and calls between them share nothing: each has a work space of its own", () => {
  const make = (seed: number) => there(batch(seed));
  const [a, b] = [make(11), make(12)];
  using first = captureGraph(() => step(a));
  using second = captureGraph(() => step(b));
  const expected = [onHost(step(a)), onHost(step(b))];
  for (const graph of [second, first, second]) graph.replay();
  step(make(13));
  first.replay();
  assert.deepEqual([onHost(first.result), onHost(second.result)], expected);
});

testGpu("the memory of a graph stays while it is there, whatever becomes of its tensors", () => {
  const before = cudaMemory(device).used;
  const x = toDevice(tensor(Float32Array.of(0.5, 1.5, 2.5)), device);
  const graph = captureGraph(() => {
    const narrow = cast(x, "bfloat16");
    const wide = cast(narrow, "float32");
    narrow.dispose();
    return wide;
  });
  x.dispose();
  // Of the sizes that were let go of: were it the same memory, a replay would write to it.
  const others = Array.from({ length: 8 }, () => toDevice(tensor(Float32Array.of(9, 9, 9)), device));
  graph.replay();
  assert.deepEqual([...toDevice(graph.result, "cpu").data], [0.5, 1.5, 2.5]);
  for (const other of others) assert.deepEqual([...toDevice(other, "cpu").data], [9, 9, 9]);
  for (const other of others) other.dispose();
  graph.result.dispose();
  assert.ok(cudaMemory(device).used > before);
  graph.dispose();
  graph.dispose();
  assert.equal(cudaMemory(device).used, before);
  assert.throws(() => graph.replay(), {
    code: "ERR_DISPOSED",
    message: "Graph.replay: the graph has been disposed",
  });
});

testGpu("what a replay finds wrong is thrown by the next wait, and names op, argument and index", () => {
  const logits = toDevice(tensor(new Float32Array(40), { shape: [4, 10] }), device);
  const tokenIds = toDevice(tensor(Int32Array.of(1, 2, 3, 4)), device);
  using graph = captureGraph(() => tokenLogprob({ logits, tokenIds }));
  graph.replay();
  synchronize(device);
  toDevice(tensor(Int32Array.of(1, 2, 10, -7)), device, { out: tokenIds });
  for (let i = 0; i < 2; i++) {
    graph.replay();
    assert.throws(() => synchronize(device), {
      code: "ERR_TOKEN_OUT_OF_RANGE",
      message: /^synchronize: tokenIds\[2\] of tokenLogprob on cuda:0 is outside the vocabulary/,
    });
    synchronize(device);
  }
  // A call that is no part of a graph is named before one that is.
  graph.replay();
  const advantages = toDevice(tensor(Float32Array.of(1, 2)), device);
  const cuSeqlens = toDevice(tensor(Int32Array.of(0, 3, 2)), device);
  policyLoss({ logprobs: zeros([2], { device }), advantages, cuSeqlens });
  assert.throws(() => synchronize(device), { message: /^synchronize: cuSeqlens\[\d\] of policyLoss on cuda:0/ });
});

testGpu("what cannot be captured throws in the body, and the capture is given up", () => {
  const x = toDevice(tensor(Float32Array.of(1, 2, 3)), device);
  const host = tensor(Float32Array.of(4, 5, 6));
  const captured = /is being captured into a graph/;
  using earlier = captureGraph(() => {});
  const refused: [() => unknown, string, RegExp][] = [
    [() => synchronize(device), "ERR_CUDA", captured],
    [() => toDevice(x, "cpu"), "ERR_CUDA", captured],
    [() => toDevice(host, device), "ERR_CUDA", captured],
    [() => toDevice(host, device, { out: x }), "ERR_CUDA", captured],
    [() => zeros([], { device }).item(), "ERR_CUDA", captured],
    [() => policyLoss({ logprobs: x, advantages: new Float32Array(3) }), "ERR_CUDA", captured],
    [
      () => captureGraph(() => {}),
      "ERR_INVALID_ARGUMENT",
      /^captureGraph: a graph is being captured, which cannot contain this$/,
    ],
    [
      () => earlier.replay(),
      "ERR_INVALID_ARGUMENT",
      /^Graph.replay: a graph is being captured, which cannot contain this$/,
    ],
    [
      () => toDevice(host, "cpu", { out: tensor(new Float32Array(3)) }),
      "ERR_DEVICE_MISMATCH",
      /^toDevice: a graph of cuda:0 is being captured, and this is on the CPU$/,
    ],
    [
      () => cast(host, "bfloat16"),
      "ERR_DEVICE_MISMATCH",
      /^cast: a graph of cuda:0 is being captured, and this is on the CPU$/,
    ],
    [
      async () => cast(x, "bfloat16"),
      "ERR_INVALID_ARGUMENT",
      /^captureGraph: expected body to be synchronous, got an object \(Promise\)$/,
    ],
  ];
  for (const [body, code, message] of refused) {
    assert.throws(() => captureGraph(() => body()), { code, message });
    assert.deepEqual([...toDevice(cast(x, "float32"), "cpu").data], [1, 2, 3]);
  }
  const error = new Error("of the body");
  assert.throws(
    () =>
      captureGraph(() => {
        cast(x, "bfloat16");
        throw error;
      }),
    error,
  );
  // An error that the body keeps to itself ends nothing that was captured.
  using graph = captureGraph(() => {
    assert.throws(() => synchronize(device), { code: "ERR_CUDA" });
    return cast(x, "bfloat16");
  });
  graph.replay();
  assert.deepEqual([...toDevice(cast(graph.result, "float32"), "cpu").data], [1, 2, 3]);
});

testGpu("arguments of captureGraph, and a graph of nothing", () => {
  const wrong = (call: () => unknown, message: RegExp): void =>
    assert.throws(call, { code: "ERR_INVALID_ARGUMENT", message });
  wrong(() => captureGraph(7 as never), /^captureGraph: expected body to be a function, got 7$/);
  wrong(() => captureGraph(() => {}, { device: "cpu" }), /^captureGraph: expected device to be "cuda:0".*got "cpu"$/);
  wrong(() => captureGraph(() => {}, { devise: device } as never), /^captureGraph: unknown option devise$/);
  using graph = captureGraph(() => "nothing");
  graph.replay();
  synchronize(device);
  assert.equal(graph.result, "nothing");
});

testEmulated("a lazy stream: replays, copies and calls keep their order", () => {
  const outcomes = onEmulated(
    `const x = gpu(4), y = zeros([4], { device: "cuda:0" });
     const graph = fapo.captureGraph(() => { toDevice(x, "cuda:0", { out: y }); return cast(y, "bfloat16"); });
     const seen = [];
     for (let i = 0; i < 5; i++) {
       toDevice(tensor(new Float32Array(4).fill(i)), "cuda:0", { out: x });
       graph.replay();
       seen.push(cast(graph.result, "float32"));
     }
     graph.dispose();
     note(() => seen.map((one) => read(one)[3]));`,
    lazy,
  );
  assert.deepEqual(outcomes, [{ result: [0, 1, 2, 3, 4] }]);
});

testEmulated("another thread cannot use the GPU meanwhile; one that ends inside a capture leaves it free", () => {
  const outcomes = onEmulated(
    `const { Worker } = await import("node:worker_threads"); const { once } = await import("node:events");
     const start = (body, workerData) => new Worker(
       \`Promise.all([import("fapo-kernels"), import("node:worker_threads")]).then(([fapo, { parentPort, workerData }]) => { \${body} })\`,
       { eval: true, workerData });
     const tell = (flags, i, value) => { Atomics.store(flags, i, value); Atomics.notify(flags, i); };
     const x = gpu(3), flags = new Int32Array(new SharedArrayBuffer(8)), patience = 20_000;
     const other = start(\`const tell = \${tell}; tell(workerData, 0, 1); Atomics.wait(workerData, 1, 0, \${patience});
       try { fapo.zeros([1], { device: "cuda:0" }); parentPort.postMessage("done"); } catch ({ code, message }) { parentPort.postMessage(code + " " + message); }
       tell(workerData, 0, 2);\`, flags);
     Atomics.wait(flags, 0, 0, patience);
     const graph = fapo.captureGraph(() => { tell(flags, 1, 1); Atomics.wait(flags, 0, 1, patience); return cast(x, "bfloat16"); });
     const [said] = await once(other, "message");
     note(() => said);
     note(() => { graph.replay(); return read(cast(graph.result, "float32")); });
     const stuck = start(\`fapo.captureGraph(() => { parentPort.postMessage("inside"); for (;;); });\`);
     await once(stuck, "message");
     note(() => zeros([1], { device: "cuda:0" }));
     await stuck.terminate();
     note(() => read(zeros([1], { device: "cuda:0" })));`,
  );
  const elsewhere = "cuda:0 is being captured into a graph by another thread";
  assert.deepEqual(outcomes[0], { result: `ERR_CUDA zeros: ${elsewhere}` });
  assert.deepEqual(outcomes[1], { result: [0, 0.125, 0.25] });
  assertNoted(outcomes[2], "ERR_CUDA", `zeros: ${elsewhere}`);
  assert.deepEqual(outcomes[3], { result: [0] });
});

testEmulated("two GPUs: a graph is of one, and nothing of the other happens meanwhile", () => {
  const outcomes = onEmulated(
    `const x = gpu(3), other = toDevice(x, "cuda:1"), there = zeros([3], { device: "cuda:1" });
     const graph = fapo.captureGraph(() => toDevice(other, "cuda:1", { out: there }), { device: "cuda:1" });
     note(() => fapo.captureGraph(() => toDevice(other, "cuda:1", { out: there })));
     note(() => fapo.captureGraph(() => toDevice(floats(3), "cuda:1", { out: there })));
     note(() => fapo.captureGraph(() => zeros([1], { device: "cuda:1" })));
     note(() => fapo.captureGraph(() => read(other)));
     note(() => fapo.captureGraph(() => cast(other, "bfloat16")));
     note(() => read(there));
     note(() => { graph.replay(); return read(there); });`,
    { CUDA_EMU_DEVICES: "2" },
  );
  for (const outcome of outcomes.slice(0, 5)) {
    const message = /^(toDevice|zeros|cast): a graph of cuda:0 is being captured, and this is on cuda:1$/;
    assertNoted(outcome, "ERR_DEVICE_MISMATCH", message);
  }
  assert.deepEqual(outcomes.slice(5), [{ result: [0, 0, 0] }, { result: [0, 0.125, 0.25] }]);
});

testEmulated("memory: a graph that is collected lets go; a capture takes what is kept, and a limit holds in it", () => {
  const outcomes = onEmulated(
    `const device = "cuda:0", turn = () => new Promise((done) => setTimeout(done, 5));
     const collect = async () => { for (let i = 0; i < 10; i++) { gc(); await turn(); } };
     const x = zeros([100000], { device }), { used } = cudaMemory(device);
     (() => fapo.captureGraph(() => cast(x, "bfloat16").dispose()))();
     await collect(); note(() => cudaMemory(device).used - used);
     x.dispose(); note(() => used - cudaMemory(device).used >= 400000);
     zeros([600 * 2 ** 18], { device }).dispose();
     note(() => { const graph = fapo.captureGraph(() => zeros([700 * 2 ** 18], { device })); const { reserved } = cudaMemory(device); graph.dispose(); return reserved >> 20; });
     note(() => { fapo.captureGraph(() => setCudaMemoryLimit(device, 2 ** 20)).replay(); synchronize(device); return cudaMemory(device).limit; });
     setCudaMemoryLimit(device, 0); note(() => read(zeros([2], { device })));`,
  );
  assert.deepEqual(outcomes.slice(0, 2), [{ result: 0 }, { result: true }]);
  assert.ok(Number(outcomes[2]?.result) >= 700 && Number(outcomes[2]?.result) < 1024, JSON.stringify(outcomes[2]));
  assert.deepEqual(outcomes.slice(3), [{ result: 2 ** 20 }, { result: [0, 0] }]);
});

testEmulated("a capture that is given up leaves the GPU as it was, though the runtime fails", () => {
  for (let call = 1; call <= 10; call++) {
    const outcomes = onEmulated(
      `let x, y; for (;;) try { x = gpu(3); y = zeros([3], { device: "cuda:0" }); synchronize("cuda:0"); break; } catch {}
       note(() => fapo.captureGraph(() => { throw new Error("of the body"); }));
       note(() => fapo.captureGraph(() => { throw new Error("of the body"); }));
       note(() => { cast(x, "float32", { out: y }); return read(y); });
       note(() => { cast(x, "float32", { out: y }); return read(y); });`,
      { CUDA_EMU_FAULTS: `cudaGetDevice:${call}=999` },
    );
    assert.deepEqual(outcomes[3], { result: [0, 0.125, 0.25] }, `cudaGetDevice:${call}`);
  }
});

testEmulated("the stream of borrowed memory waits, whenever its tensor is disposed of", () => {
  const waits = (dispose: string): unknown => {
    const outcomes = onEmulated(
      `const x = gpu(4), { address } = unsafe.devicePointer(x), stream = unsafe.streamOf("cuda:0");
       const borrow = () => unsafe.fromDevicePointer({ address, dtype: "float32", shape: [4], device: "cuda:0", stream });
       const t = borrow(), y = gpu(4), { addon } = await import("./dist/addon.js");
       let waits = 0; const { makeWait } = addon();
       Object.defineProperty(addon(), "makeWait", { value: (...args) => { waits++; return makeWait(...args); } });
       ${dispose}
       note(() => waits);`,
    );
    return outcomes[0]?.result;
  };
  assert.equal(waits("t.dispose();"), 1);
  assert.equal(waits("fapo.captureGraph(() => t.dispose()).dispose();"), 1);
  assert.equal(
    waits("const g = fapo.captureGraph(() => cast(t, 'float32', { out: y })); t.dispose(); g.dispose();"),
    1,
  );
});

testEmulated("errors of the runtime: each is told, and nothing is left", () => {
  for (const name of ["cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphUpload", "cudaGraphLaunch"]) {
    const outcomes = onEmulated(
      `const x = gpu(3); cast(x, "bfloat16"); synchronize("cuda:0");
       const used = cudaMemory("cuda:0").used;
       note(() => { const graph = fapo.captureGraph(() => cast(x, "bfloat16").dispose()); try { graph.replay(); } finally { graph.dispose(); } });
       note(() => cudaMemory("cuda:0").used - used);
       note(() => { const graph = fapo.captureGraph(() => cast(x, "bfloat16")); graph.replay(); return read(cast(graph.result, "float32")); });`,
      { CUDA_EMU_FAULTS: `${name}:1=999` },
    );
    assertNoted(outcomes[0], "ERR_CUDA", /the CUDA runtime says cudaErrorUnknown \(999\) on cuda:0/);
    assert.deepEqual(outcomes.slice(1), [{ result: 0 }, { result: [0, 0.125, 0.25] }], name);
  }
});

testEmulated("a device lost in a replay is lost, and says so", () => {
  const outcomes = onEmulated(
    `const x = gpu(3); const graph = fapo.captureGraph(() => cast(x, "bfloat16"));
     graph.replay(); note(() => synchronize("cuda:0")); note(() => graph.replay()); note(() => graph.dispose());`,
    { CUDA_EMU_FAULTS: "cudaStreamSynchronize:1=700" },
  );
  assertNoted(
    outcomes[0],
    "ERR_CUDA",
    /^synchronize: cuda:0 was lost to cudaErrorIllegalAddress \(700\).*in the replay of a graph;/,
  );
  assertNoted(outcomes[1], "ERR_CUDA", /^Graph.replay: cuda:0 was lost to cudaErrorIllegalAddress \(700\)/);
  assert.deepEqual(outcomes[2], {});
});

testEmulated("the memory limit, and the debug switch, in a capture", () => {
  for (const env of [{ FAPO_CUDA_DEBUG: "1" }, lazy, { FAPO_CUDA_DEBUG: "1", ...lazy }]) {
    const outcomes = onEmulated(
      `const x = gpu(1000); cast(x, "bfloat16").dispose(); synchronize("cuda:0");
       const graph = fapo.captureGraph(() => { const y = cast(x, "bfloat16"), z = zeros([3], { device: "cuda:0" }); return [cast(y, "float32"), z]; });
       graph.replay(); note(() => read(graph.result[0])[999]); note(() => read(graph.result[1]));
       setCudaMemoryLimit("cuda:0", cudaMemory("cuda:0").reserved);
       note(() => fapo.captureGraph(() => zeros([100000], { device: "cuda:0" })));
       setCudaMemoryLimit("cuda:0", 0); graph.replay(); note(() => read(graph.result[0])[999]);`,
      env,
    );
    assert.deepEqual(outcomes[0], { result: 125 });
    assert.deepEqual(outcomes[1], { result: [0, 0, 0] });
    assertNoted(outcomes[2], "ERR_OUT_OF_MEMORY", /^zeros: no memory on cuda:0 for 400000 bytes/);
    assert.deepEqual(outcomes[3], { result: 125 });
  }
});
