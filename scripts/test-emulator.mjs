// `npm run test:emulator`: the emulated GPU's own tests, in three builds: plain, under AddressSanitizer and
// UndefinedBehaviorSanitizer, and under ThreadSanitizer (GCC on Linux). The primitives' test is compiled by nvcc too,
// where there is one, and run where there is a GPU.
//   node scripts/test-emulator.mjs [test ...]     such as faults, primitives
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

process.chdir(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
const source = "test/emulator";
const tests = new Map([
  ["primitives", { file: "primitives_test.cu", seeds: [0, 1, 2] }],
  ["runtime", { file: "runtime_test.cpp", seeds: [0] }],
  ["faults", { file: "faults_test.cpp", seeds: [0] }], // draws its own
]);
const wanted = process.argv.slice(2).length ? process.argv.slice(2) : [...tests.keys()];

const flags = [
  ..."-std=c++20 -O1 -g -Wall -Wextra -ffp-contract=off -fno-strict-aliasing -Wno-unknown-pragmas".split(" "),
  ...`-DFAPO_EMULATE_CUDA -I. -I${source} -I${source}/include`.split(" "),
];
const address = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"];
// The engine tells ThreadSanitizer of its fibers, and is not instrumented itself.
const builds = [
  { name: "plain", engine: [], rest: [] },
  { name: "address", engine: address, rest: address },
  { name: "thread", engine: ["-DCUDA_EMULATOR_TSAN"], rest: ["-fsanitize=thread"] },
];
const engine = readdirSync(source).filter((file) => /\.(cpp|S)$/.test(file) && !/_test\.cpp$/.test(file));
const env = {
  ...process.env,
  ASAN_OPTIONS: "halt_on_error=1:exitcode=86:detect_leaks=0:detect_stack_use_after_return=1",
  TSAN_OPTIONS: "halt_on_error=1:exitcode=86",
  UBSAN_OPTIONS: "halt_on_error=1:exitcode=86:print_stacktrace=1",
};

const rows = [];
function run(name, program, environment, absent) {
  const { status, stdout, stderr } = spawnSync(program, [], { env: { ...env, ...environment }, encoding: "utf8" });
  const result = status === 0 ? "passed" : status === absent ? stdout.trim() : `FAILED (${status})`;
  if (result.startsWith("FAILED")) console.log(`${stdout}${stderr}`);
  else if (wanted.length === 1) console.log(stdout);
  rows.push([name, result]);
}

for (const { name, engine: engineFlags, rest } of builds) {
  const folder = path.join("build/emulator", name);
  mkdirSync(folder, { recursive: true });
  const compile = (file, more) => {
    const object = path.join(folder, `${file}.o`);
    const language = file.endsWith(".cu") ? ["-x", "c++"] : [];
    execFileSync("g++", [...flags, ...more, ...language, "-c", path.join(source, file), "-o", object], {
      stdio: "inherit",
    });
    return object;
  };
  const objects = engine.map((file) => compile(file, engineFlags));
  for (const test of wanted) {
    const { file, seeds } = tests.get(test);
    const program = path.join(folder, test);
    execFileSync("g++", [...rest, compile(file, rest), ...objects, "-o", program], { stdio: "inherit" });
    for (const seed of seeds) {
      run(`${test}, ${name} build${seeds.length > 1 ? `, seed ${seed}` : ""}`, program, { CUDA_EMU_SEED: `${seed}` });
    }
    if (test === "primitives") {
      run(`${test}, ${name} build, compute capability 8.0`, program, { CUDA_EMU_COMPUTE: "8.0" });
    }
  }
}

const nvcc = ["nvcc", "/usr/local/cuda/bin/nvcc"].find((name) => spawnSync(name, ["--version"]).status === 0);
if (!nvcc) {
  rows.push(["primitives, nvcc", "not run: no nvcc"]);
} else if (wanted.includes("primitives")) {
  const targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"];
  const program = "build/emulator/primitives_cuda";
  const inputs = ["-I.", `-I${source}`, path.join(source, "primitives_test.cu")];
  const { status } = spawnSync(nvcc, ["-std=c++20", ...targets, ...inputs, "-o", program], { stdio: "inherit" });
  rows.push(["primitives, nvcc for sm_80 and sm_90", status === 0 ? "compiled" : "FAILED"]);
  if (status === 0 && existsSync(program)) run("primitives, on a GPU", program, {}, 77);
}

const width = Math.max(...rows.map(([name]) => name.length));
for (const [name, result] of rows) console.log(`${name.padEnd(width)}  ${result}`);
process.exitCode = rows.some(([, result]) => result.startsWith("FAILED")) ? 1 : 0;
