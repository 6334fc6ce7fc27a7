/** The reward, advantage and loss ops give the same bits run to run, for any number of threads, on any thread. */
import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import { devices, setThreads } from "fapo-kernels";
import { digests } from "./support/workload.ts";
import { forEachDevice } from "./support.ts";

forEachDevice("run to run, and for 1, 2, 3, 8 and 64 threads", (device) => {
  const before = devices().cpu.threads;
  const expected = digests(device);
  try {
    for (const threads of device.emulated ? [1] : [1, 2, 3, 8, 64]) {
      setThreads(threads);
      for (let run = 0; run < (device.emulated ? 1 : 4); run++)
        assert.deepEqual(digests(device), expected, `${threads} threads, run ${run}`);
    }
  } finally {
    setThreads(before);
  }
});

forEachDevice("in four worker threads at once, and in the main thread meanwhile", async (device) => {
  const expected = digests(device);
  const repeats = device.emulated ? 1 : 5;
  const workers = Array.from({ length: 4 }, () => {
    const data = { workerData: { device: device.name, repeats } };
    return new Promise<string[][]>((resolve, reject) => {
      const worker = new Worker(new URL("./support/digestWorker.js", import.meta.url), data);
      worker.once("message", resolve);
      worker.once("error", reject);
    });
  });
  for (let run = 0; run < repeats; run++) assert.deepEqual(digests(device), expected);
  for (const found of await Promise.all(workers)) {
    assert.equal(found.length, repeats);
    for (const each of found) assert.deepEqual(each, expected);
  }
});
