// `npm run test:sanitize`: the test suite on an addon and an emulated GPU built with AddressSanitizer and
// UndefinedBehaviorSanitizer, and the thread pool and what threads share under ThreadSanitizer (GCC).
//   node scripts/test-sanitize.mjs [test file ...]
import { execFileSync, spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { notTheSlowest } from "./emulated.mjs";

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
    ...["parallel.cpp", "simd/policy_kernel_isa.cpp", "simd/row_kernels.cpp", "simd/row_kernels_isa.cpp"].map(
      (file) => `native/${file}`,
    ),
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
  ASAN_OPTIONS: "detect_leaks=0:exitcode=86:halt_on_error=1:allocator_may_return_null=1",
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

// All but tests of processes that print what the sanitizer adds, and of things that are not the addon.
const leftOut = /^(addon|bench|budget|genrm|house|lifecycle|testGpu|train)\b/;
const given = process.argv.slice(2);
const files = readdirSync("build-ts/test").filter((file) => file.endsWith(".test.js") && !leftOut.test(file));
const tests = given.length > 0 ? given : files.map((file) => path.join("build-ts/test", file));
const runs = [
  { devices: "cpu", stacks: 1, args: [] },
  // A stack that tells of its use after a return is mapped anew for every thread of every block: ten times the time.
  { devices: "cuda:0", stacks: 0, args: [notTheSlowest] },
];
for (const { devices, stacks, args } of runs) {
  if ((process.env.FAPO_TEST_DEVICES ?? devices) !== devices) continue;
  const started = performance.now();
  const ASAN_OPTIONS = `${env.ASAN_OPTIONS}:detect_stack_use_after_return=${stacks}`;
  const run = spawnSync(process.execPath, ["--test", "--test-concurrency=2", ...args, ...tests], {
    env: { ...env, ASAN_OPTIONS, FAPO_TEST_DEVICES: devices, FAPO_TEST_SCALE: "0.1" },
    stdio: "inherit",
  });
  process.exitCode ||= run.status ?? 1;
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(`${run.status === 0 ? "ok  " : "FAIL"} ${tests.length} files on ${devices} (${seconds} s)`);
}
