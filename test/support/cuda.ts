/** The GPU under test, and child processes on an emulated one whose runtime fails as it is told to. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { testDevices } from "../support.ts";

export const root: string = fileURLToPath(new URL("../../../", import.meta.url));

/** Declares a test of a GPU, real or emulated. */
export function testGpu(name: string, body: () => void | Promise<void>): void {
  const skip = testDevices.some((device) => device.name !== "cpu") ? false : "no GPU among FAPO_TEST_DEVICES";
  test(name, { skip }, body);
}

/** The library of kernels compiled for the emulated GPU; scripts/test.mjs builds it and says where. */
const emulated = process.env.FAPO_TEST_EMULATED ?? "";
const noEmulated = existsSync(emulated) ? false : "no emulated GPU was built";

/** Declares a test that runs on the emulated GPU, in child processes. */
export function testEmulated(name: string, body: () => void): void {
  test(name, { skip: noEmulated }, body);
}

/** What a child ran into: the value of `result`, or the error it threw. */
export interface Outcome {
  result?: unknown;
  code?: string;
  message?: string;
  cudaError?: { number: number; name: string };
}

const prelude = `
import * as fapo from "fapo-kernels";
import * as unsafe from "fapo-kernels/unsafe";
const { cast, cudaMemory, devices, setCudaMemoryLimit, synchronize, tensor, toDevice, tokenLogprob, zeros } = fapo;
const outcomes = [];
/** Notes what a call gives, or throws. */
const note = (call) => {
  try {
    outcomes.push({ result: call() });
  } catch ({ code, message, cudaError }) {
    outcomes.push({ code, message, cudaError });
  }
};
const floats = (n) => tensor(Float32Array.from({ length: n }, (_, i) => i / 8));
const gpu = (n) => toDevice(floats(n), "cuda:0");
const read = (t) => [...toDevice(t, "cpu").data];
`;

/**
 * Runs a module in a child process on the emulated GPU; gives what it noted. CUDA_EMU_* of `env` plant what the runtime
 * does, such as CUDA_EMU_FAULTS="cudaMalloc:3=2" (test/emulator/runtime.h). The runtime must not have been misused.
 */
export function onEmulated(source: string, env: Record<string, string> = {}): Outcome[] {
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-"));
  const ledger = path.join(folder, "ledger.json");
  try {
    const child = spawnSync(
      process.execPath,
      ["--expose-gc", "--input-type=module", "--eval", `${prelude}${source}\nconsole.log(JSON.stringify(outcomes));`],
      {
        cwd: root,
        encoding: "utf8",
        env: { ...process.env, FAPO_KERNELS_CUDA: emulated, CUDA_EMU_LEDGER: ledger, ...env },
      },
    );
    assert.deepEqual({ status: child.status, signal: child.signal }, { status: 0, signal: null }, child.stderr);
    assert.equal(child.stderr, "");
    if (existsSync(ledger)) assert.deepEqual(JSON.parse(readFileSync(ledger, "utf8")).misuse, []);
    return JSON.parse(child.stdout) as Outcome[];
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** One thing noted as an error of this code whose message matches. */
export function assertNoted(outcome: Outcome | undefined, code: string, message: string | RegExp): void {
  assert.equal(outcome?.code, code, JSON.stringify(outcome));
  if (typeof message === "string") {
    assert.equal(outcome.message, message);
  } else {
    assert.match(outcome.message ?? "", message);
  }
}
