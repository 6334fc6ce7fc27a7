/** scripts/check-cuda.mjs: a kernel that needs more than its budget fails, by name. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("../../scripts/check-cuda.mjs", import.meta.url));

const ring = "_ZN4fapo4cuda12_GLOBAL__N_111ring_kernelILb1EEEvNS1_2OpE";
const log = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '${ring}' for 'sm_90'
ptxas info    : Function properties for ${ring}
    32 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 40 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Function properties for _ZN4fapo4cuda10outcome_ofEv
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_ZN4fapo4cuda4castEv' for 'sm_90'
ptxas info    : Function properties for _ZN4fapo4cuda4castEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers
`;
const fits = {
  occupancy: { ring_kernel: { threads: 352, blocks: 2 } },
  kernels: {
    cast: { sm_90: { registers: 16, stack: 0, spills: 0, shared: 0 } },
    "ring_kernel<true>": { sm_90: { registers: 80, stack: 40, spills: 12, shared: 4096 } },
  },
};

function check(budget: unknown): { status: number | null; failures: string[] } {
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-"));
  try {
    const files = { budget: path.join(folder, "budget.json"), log: path.join(folder, "ptxas.log") };
    writeFileSync(files.budget, JSON.stringify(budget));
    writeFileSync(files.log, log);
    const args = [script, "--budget", files.budget, "--log", files.log];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
    assert.equal(stderr, "");
    return { status, failures: stdout.split("\n").filter((line) => line.startsWith("FAIL ")) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("kernels within their budget pass", () => {
  assert.deepEqual(check(fits), { status: 0, failures: [] });
});

test("a budget planted one lower fails, whatever it is of, naming the kernel", () => {
  const said = {
    registers: "80 registers, budget 79",
    stack: "40 bytes of stack, budget 39",
    spills: "12 spilled bytes, budget 11",
    shared: "4096 bytes of shared memory, budget 4095",
  };
  for (const field of ["registers", "stack", "spills", "shared"] as const) {
    const planted = structuredClone(fits);
    planted.kernels["ring_kernel<true>"].sm_90[field]--;
    const failures = [`FAIL ring_kernel<true> on sm_90: ${said[field]}`];
    assert.deepEqual(check(planted), { status: 1, failures });
  }
});

test("a kernel that vanished fails, and so does one without a budget", () => {
  const { cast, ...others } = fits.kernels;
  const failures = [
    "FAIL cast on sm_90 has no budget; --update writes it",
    "FAIL gone on sm_80 is in the budget, and missing",
  ];
  assert.deepEqual(check({ ...fits, kernels: { ...others, gone: { sm_80: cast.sm_90 } } }), { status: 1, failures });
});

test("more registers than the blocks meant for a multiprocessor leave fail, whatever the budget", () => {
  const planted = { ...fits, occupancy: { ring_kernel: { threads: 352, blocks: 3 } } };
  const failures = ["FAIL ring_kernel<true> on sm_90: 80 registers, and 3 blocks of 352 threads leave 56"];
  assert.deepEqual(check(planted), { status: 1, failures });
});
