// `npm run test:sanitize`: the test suite on an addon and an emulated GPU built with AddressSanitizer and
// UndefinedBehaviorSanitizer, and the thread pool and what threads share under ThreadSanitizer (GCC).
//   node scripts/test-sanitize.mjs [test file ...]
import { execFileSync, spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { kernelTests, notTheSlowest } from "./emulated.mjs";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const build = "build/sanitize/build";
const cmake = (...args) => execFileSync("cmake", args, { stdio: ["ignore", "ignore", "inherit"] });
cmake(
  "-S",
  ".",
  "-B",
  build,
  "-DCMAKE_BUILD_TYPE=Release",
  "-DFAPO_SANITIZE=address,undefined",
  "-DFAPO_EMULATE_CUDA=ON",
  "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
);
cmake("--build", build, "--parallel", process.env.JOBS ?? "2");

// ---- programs of their own under ThreadSanitizer
const program = (name, sources, flags = []) => {
  const binary = `build/sanitize/${name}`;
  const options = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-I.", ...flags];
  execFileSync("g++", [...options, `test/native/${name}.cpp`, ...sources, "-o", binary], { stdio: "inherit" });
  execFileSync(binary, { stdio: "inherit", env: { ...process.env, TSAN_OPTIONS: "halt_on_error=1" } });
};
program("parallel_test", ["native/parallel.cpp"]);
program(
  "rows_test",
  [
    ...["fused_policy_loss", "policy_loss", "token_logprob"].map((op) => `native/ops/${op}.cpp`),
    ...["parallel.cpp", "simd/row_kernels.cpp", "simd/row_kernels_isa.cpp"].map((file) => `native/${file}`),
  ],
  ["-DFAPO_X86=0", "-DFAPO_ISA=baseline", "-DFAPO_ISA_LEVEL=0"],
);

const library = (name) => execFileSync("gcc", [`-print-file-name=${name}`], { encoding: "utf8" }).trim();
const env = {
  ...process.env,
  FAPO_KERNELS_PREBUILD: path.resolve("build/sanitize"), // where the loader looks for build/Release
  FAPO_KERNELS_CUDA: path.resolve(build, "Release/fapo_kernels_cuda_emulated.so"),
  FAPO_TEST_EMULATED: path.resolve(build, "Release/fapo_kernels_cuda_emulated.so"),
  LD_PRELOAD: `${library("libasan.so")} ${library("libubsan.so")} ${library("libstdc++.so.6")}`,
  ASAN_OPTIONS:
    "detect_leaks=0:exitcode=86:halt_on_error=1:detect_stack_use_after_return=1:allocator_may_return_null=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1:exitcode=86",
};

const loaded = execFileSync(
  process.execPath,
  [
    "--input-type=module",
    "--eval",
    'import { devices } from "fapo-kernels"; devices(); console.log(process.report.getReport().sharedObjects.join("\\n"));',
  ],
  { env, encoding: "utf8" },
);
if (!loaded.includes(path.join("build", "sanitize"))) throw new Error("the sanitized addon was not loaded");

// On the CPU all but tests of processes that print what the sanitizer adds, and of things that are not the addon. On the
// emulated GPU, where a sanitizer costs most, those that exercise the kernels most.
const leftOut = /^(addon|bench|budget|cuda|genrm|house|lifecycle|testGpu|train)\b/;
const given = process.argv.slice(2);
const files = readdirSync("build-ts/test").filter((file) => file.endsWith(".test.js"));
const runs = [
  { devices: "cpu", chosen: files.filter((file) => !leftOut.test(file)), args: [] },
  { devices: "cuda:0", chosen: files.filter((file) => kernelTests.test(file)), args: [notTheSlowest] },
];
for (const { devices, chosen, args } of runs) {
  if ((process.env.FAPO_TEST_DEVICES ?? devices) !== devices) continue;
  const tests = given.length > 0 ? given : chosen.map((file) => path.join("build-ts/test", file));
  const run = spawnSync(process.execPath, ["--test", "--test-concurrency=2", ...args, ...tests], {
    env: { ...env, FAPO_TEST_DEVICES: devices, FAPO_TEST_SCALE: "0.1" },
    stdio: "inherit",
  });
  process.exitCode ||= run.status ?? 1;
}
