// `npm test`: the suite on the CPU and on a GPU: a real one where there is one, an emulated one where there is none.
//   node scripts/test.mjs [test file ...]
// FAPO_TEST_DEVICES=cpu leaves GPUs out.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { devices } from "fapo-kernels";
import { buildEmulated } from "./emulated.mjs";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const env = { ...process.env };
const { cpu, cuda } = devices();
const found = [`cpu (${cpu.isa}) real`];
// Also where there is a GPU: what the CUDA runtime can fail at is planted in the emulated one.
const emulated = buildEmulated();
env.FAPO_TEST_EMULATED ??= emulated.library ?? "";

if (env.FAPO_TEST_DEVICES) {
  found.push(`tested: ${env.FAPO_TEST_DEVICES}`);
} else if (cuda.available) {
  env.FAPO_TEST_DEVICES = "cpu,cuda:0";
  found.push(`cuda:0 (${cuda.devices[0].name}) ${cuda.emulated ? "emulated" : "real"}`);
} else {
  env.FAPO_TEST_DEVICES = emulated.library ? "cpu,cuda:0" : "cpu";
  if (emulated.library) env.FAPO_KERNELS_CUDA = emulated.library;
  found.push(emulated.library ? `cuda:0 emulated (${cuda.reason})` : `cuda:0 absent (${cuda.reason}; ${emulated.why})`);
}
console.log(`devices under test: ${found.join(", ")}`);

const tests = process.argv.slice(2);
if (tests.length === 0) {
  for (const file of readdirSync("build-ts/test")) {
    if (file.endsWith(".test.js")) tests.push(path.join("build-ts/test", file));
  }
}
process.exitCode =
  spawnSync(process.execPath, ["--test", "--test-reporter=spec", ...tests], { env, stdio: "inherit" }).status ?? 1;
