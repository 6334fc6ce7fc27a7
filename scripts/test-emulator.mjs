// `npm run test:emulator`: the emulated GPU's own tests, and the CUDA kernels on it, in three builds: plain, under
// AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer (GCC on Linux). The primitives' test is
// compiled by nvcc too, where there is one, and run where there is a GPU. JOBS compilers run at once, default 2.
//   node scripts/test-emulator.mjs [test ...]     of faults, runtime, primitives, kernels
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

process.chdir(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
const folder = "test/emulator";
const sources = (where, pattern) =>
  readdirSync(where)
    .filter((file) => pattern.test(file))
    .map((file) => path.join(where, file));

const engine = sources(folder, /^(?!.*_test\.).*\.(cpp|S)$/);
const kernels = [
  ...sources("cuda", /\.cu$/),
  ...sources("native/ops", /\.cpp$/),
  "native/backend.cpp",
  "native/memory_floor.cpp",
  "native/parallel.cpp",
  "native/simd/policy_kernel_isa.cpp",
  "native/simd/row_kernels.cpp",
  "native/simd/row_kernels_isa.cpp",
];
const tests = {
  primitives: { sources: ["primitives_test.cu"], runs: [{}, { SEED: "1" }, { SEED: "2" }, { COMPUTE: "8.0" }] },
  runtime: { sources: ["runtime_test.cpp"], runs: [{}] },
  faults: { sources: ["faults_test.cpp"], runs: [{}] },
  kernels: { sources: ["kernels_test.cpp"], with: kernels, runs: [{}, { COMPUTE: "8.0" }, { STREAM: "lazy" }] },
};
const wanted = process.argv.slice(2).length ? process.argv.slice(2) : Object.keys(tests);

const flags = [
  ..."-std=c++20 -O1 -g -Wall -Wextra -Wno-psabi -ffp-contract=off -fno-math-errno -fno-trapping-math".split(" "),
  ...`-fno-strict-aliasing -Wno-unknown-pragmas -DFAPO_EMULATE_CUDA -I. -I${folder} -I${folder}/include`.split(" "),
  ...'-DFAPO_CUDA_BUILT_FOR="emulation" -DFAPO_CUDA_OLDEST=0 -DFAPO_X86=0'.split(" "),
  ..."-DFAPO_ISA=baseline -DFAPO_ISA_LEVEL=0".split(" "),
];
const address = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"];
// The engine tells the sanitizers of its fibers, and is not, or not wholly, instrumented itself.
const thread = "-DCUDA_EMULATOR_TSAN";
const builds = [
  { name: "plain", schedule: [], engine: [], rest: [] },
  { name: "address", schedule: ["-DCUDA_EMULATOR_ASAN"], engine: address, rest: address },
  { name: "thread", schedule: [thread], engine: [thread], rest: ["-fsanitize=thread"] },
];
const sanitizers = {
  ASAN_OPTIONS: "halt_on_error=1:exitcode=86:detect_leaks=0:detect_stack_use_after_return=0", // it maps memory per fiber
  TSAN_OPTIONS: "halt_on_error=1:exitcode=86",
  UBSAN_OPTIONS: "halt_on_error=1:exitcode=86:print_stacktrace=1",
};

// ---- compile
const objectOf = (build, source) => path.join("build/emulator", build.name, `${path.basename(source)}.o`);
const inputs = (name) => [...tests[name].sources.map((file) => path.join(folder, file)), ...(tests[name].with ?? [])];
const commands = builds.flatMap((build) => {
  mkdirSync(path.join("build/emulator", build.name), { recursive: true });
  const compile = (source, more) => [
    ...[...flags, ...more, ...(source.endsWith(".cu") ? ["-x", "c++"] : [])],
    ...["-c", source, "-o", objectOf(build, source)],
  ];
  return [
    ...engine.map((source) => compile(source, /collectives|schedule/.test(source) ? build.schedule : build.engine)),
    // Instrumented loops of vectors take GCC minutes, and are the CPU's.
    ...[...new Set(wanted.flatMap(inputs))].map((source) =>
      compile(source, source.endsWith("_isa.cpp") ? [] : build.rest),
    ),
  ];
});
const gcc = (args) =>
  new Promise((resolve, reject) => {
    spawn("g++", args, { stdio: "inherit" }).on("close", (status) =>
      status === 0 ? resolve() : reject(new Error(`g++ ${args.join(" ")}`)),
    );
  });
async function compileAll() {
  for (let args = commands.pop(); args; args = commands.pop()) await gcc(args);
}
await Promise.all(Array.from({ length: Number(process.env.JOBS ?? 2) }, compileAll));

// ---- run
const rows = [];
function run(name, program, environment, absent) {
  const variables = Object.entries(environment).map(([key, value]) => [`CUDA_EMU_${key}`, value]);
  const env = { ...process.env, ...sanitizers, ...Object.fromEntries(variables) };
  const { status, stdout, stderr } = spawnSync(program, [], { env, encoding: "utf8" });
  const passed = status === 0 || status === absent;
  if (!passed || wanted.length === 1) console.log(`${stdout}${stderr}`);
  const under = variables.map(([key, value]) => `, ${key}=${value}`).join("");
  rows.push([`${name}${under}`, status === 0 ? "passed" : passed ? stdout.trim() : `FAILED (${status})`]);
}

for (const build of builds) {
  for (const name of wanted) {
    const program = path.join("build/emulator", build.name, name);
    const objects = [...engine, ...inputs(name)].map((source) => objectOf(build, source));
    await gcc([...build.rest, ...objects, "-o", program]);
    for (const environment of tests[name].runs) run(`${name}, ${build.name} build`, program, environment);
  }
}

if (wanted.includes("primitives")) {
  const nvcc = ["nvcc", "/usr/local/cuda/bin/nvcc"].find((name) => spawnSync(name, ["--version"]).status === 0);
  const program = "build/emulator/primitives_cuda";
  const targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"];
  const source = [`-I${folder}`, "-I.", path.join(folder, "primitives_test.cu"), "-o", program];
  const compiled = nvcc && spawnSync(nvcc, ["-std=c++20", ...targets, ...source], { stdio: "inherit" }).status === 0;
  rows.push(["primitives, nvcc for sm_80 and sm_90", compiled ? "compiled" : nvcc ? "FAILED" : "not run: no nvcc"]);
  if (compiled) run("primitives, on a GPU", program, {}, 77);
}

const width = Math.max(...rows.map(([name]) => name.length));
for (const [name, result] of rows) console.log(`${name.padEnd(width)}  ${result}`);
process.exitCode = rows.some(([, result]) => result.startsWith("FAILED")) ? 1 : 0;
