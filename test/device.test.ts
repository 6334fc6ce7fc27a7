import assert from "node:assert/strict";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import {
  type Device,
  devices,
  fapoAdvantage,
  fapoPenalty,
  groupAdvantage,
  policyLoss,
  setThreads,
  synchronize,
  tensor,
  toDevice,
  zeros,
} from "fapo-kernels";
import { assertFails, forEachDevice } from "./support.ts";

const { cpu, cuda } = devices();

test("devices says what was found, and for CUDA why nothing was", () => {
  assert.ok(["baseline", "avx2", "avx512"].includes(cpu.isa));
  assert.ok(Number.isInteger(cpu.threads) && cpu.threads >= 1 && cpu.threads <= 256);
  assert.equal(cuda.available, cuda.devices.length > 0);
  for (const [i, { device, name }] of cuda.devices.entries()) {
    assert.equal(device, `cuda:${i}`);
    assert.ok(name.length > 0);
  }
  if (!cuda.available) assert.ok(cuda.reason!.length > 0);
});

test("what devices returns is a copy: writing to it changes nothing", () => {
  devices().cpu.threads = 77;
  devices().cuda.available = true;
  assert.deepEqual(devices(), { cpu, cuda });
});

test("setThreads takes 1 to 256, and devices shows it", () => {
  for (const threads of [1, 2, 3, 64, 256]) {
    assert.equal(setThreads(threads), undefined);
    assert.equal(devices().cpu.threads, threads);
  }
  setThreads(cpu.threads);
});

test("setThreads refuses anything else and changes nothing", () => {
  for (const [value, got] of [
    [0, "0"],
    [-0, "-0"],
    [-1, "-1"],
    [257, "257"],
    [1e9, "1000000000"],
    [2 ** 53, "9007199254740992"],
    [1.5, "1.5"],
    [Number.NaN, "NaN"],
    [Number.POSITIVE_INFINITY, "Infinity"],
    ["2", '"2"'],
    [2n, "2n"],
    [null, "null"],
    [undefined, "undefined"],
    [[2], "[2]"],
    [{ valueOf: () => 2 }, "an object (Object)"],
  ] as const) {
    const message = `setThreads: expected threads to be an integer in 1..256, got ${got}`;
    assertFails(() => setThreads(value as number), "ERR_INVALID_ARGUMENT", message);
    assert.equal(devices().cpu.threads, cpu.threads);
  }
});

forEachDevice("synchronize returns when everything is done", (device) => {
  policyLoss({ logprobs: new Float32Array(1000), advantages: new Float32Array(1000), device: device.name });
  assert.equal(synchronize(device.name), undefined);
  assert.equal(synchronize(), undefined);
});

test("synchronize refuses what is no device", () => {
  for (const [value, got] of [
    ["gpu", '"gpu"'],
    ["cuda", '"cuda"'],
    ["cuda:", '"cuda:"'],
    ["cuda:-1", '"cuda:-1"'],
    ["cuda:0x0", '"cuda:0x0"'],
    ["CPU", '"CPU"'],
    ["", '""'],
    [0, "0"],
    [null, "null"],
    [["cpu"], '["cpu"]'],
  ] as const) {
    const message = `synchronize: expected device to be "cpu" or "cuda:0", "cuda:1", …, got ${got}`;
    assertFails(() => synchronize(value as never), "ERR_INVALID_ARGUMENT", message);
  }
});

test("a GPU that is not there is ERR_NO_CUDA with the reason, in every call that names a device", () => {
  const missing: Device = `cuda:${cuda.devices.length}`;
  const floats = new Float32Array(2);
  const verdicts = { correct: [1, 0], flawed: [0, 0] };
  const calls: Record<string, () => unknown> = {
    synchronize: () => synchronize(missing),
    toDevice: () => toDevice(tensor(floats), missing),
    zeros: () => zeros([2], { device: missing }),
    fapoPenalty: () => fapoPenalty({ ...verdicts, device: missing }),
    groupAdvantage: () => groupAdvantage({ rewards: floats, groupSize: 2, device: missing }),
    fapoAdvantage: () => fapoAdvantage({ ...verdicts, groupSize: 2, device: missing }),
    policyLoss: () => policyLoss({ logprobs: floats, advantages: floats, device: missing }),
  };
  for (const [op, call] of Object.entries(calls)) {
    assertFails(call, "ERR_NO_CUDA", new RegExp(`^${op}: .*${missing}`));
    if (!cuda.available) {
      const message = `${op}: device is "cuda:0", but ${cuda.reason}; use "cpu"`;
      assertFails(call, "ERR_NO_CUDA", message);
    }
  }
});

test("a worker that loads the package leaves the number of threads as it was", async () => {
  const before = devices().cpu.threads;
  setThreads(before === 1 ? 2 : 1);
  const set = devices().cpu.threads;
  try {
    const source =
      'import("fapo-kernels").then((api) => require("node:worker_threads").parentPort.postMessage(api.devices().cpu.threads))';
    const worker = new Worker(source, { eval: true });
    const seen = await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
    assert.equal(seen, set);
    assert.equal(devices().cpu.threads, set);
  } finally {
    setThreads(before);
  }
});

test("an array whose buffer shrank below it is refused, and not taken for an empty one", () => {
  // ArrayBuffer.prototype.resize is newer than the types that the tests are compiled with.
  const buffer = Reflect.construct(ArrayBuffer, [16, { maxByteLength: 64 }]) as ArrayBuffer & {
    resize(n: number): void;
  };
  const rewards = new Float32Array(buffer, 0, 4);
  buffer.resize(8);
  assertFails(
    () => groupAdvantage({ rewards, groupSize: 2 }),
    "ERR_INVALID_ARGUMENT",
    "groupAdvantage: the buffer of rewards has been detached or shrunk",
  );
  buffer.resize(16);
  assert.equal(groupAdvantage({ rewards, groupSize: 2 }).advantages.data.length, 4);
});
