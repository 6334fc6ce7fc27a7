// `npm run test:gpu`: everything that only a GPU can show, in parts of under 8 minutes each, with a report. Fails where
// there is no GPU. Needs nothing but Node and what was built: `node scripts/test-gpu.mjs` where there is no npm.
//   --list              the parts
//   --part a,b          these alone; a report of the same commit and GPU keeps its other parts
//   --report file       default: test/results/<gpu>.json
//   --emulated          on the emulated GPU, small: to see that the parts work
//   --pack file.tar.gz  instead of running: all that a machine without Node, npm and network needs; run.sh in it runs
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const calledFrom = process.cwd();
process.chdir(root);
const { values: options } = parseArgs({
  options: {
    list: { type: "boolean", default: false },
    part: { type: "string" },
    report: { type: "string" },
    emulated: { type: "boolean", default: false },
    pack: { type: "string" },
  },
});
const minutes = 60_000;
const longest = 8 * minutes;
const sanitizers = ["memcheck", "racecheck", "initcheck", "synccheck"];

/** A part that does not run says why. */
class NotRun extends Error {}

const parts = new Map([
  ["suite-logits", () => suite(/^(cast|fusedPolicyLoss|golden\.logits|torch)\b/)],
  ["suite-token", () => suite(/^tokenLogprob\b/)],
  ["suite-rest", () => suite(/^(?!(cast|fusedPolicyLoss|golden\.logits|torch|tokenLogprob)\b)/)],
  ["compare", () => testFiles(["build-ts/test/gpu/compare.gpu.js"])],
  ["primitives", primitives],
  ...sanitizers.map((tool) => [`sanitizer-${tool}`, () => sanitizer(tool)]),
  ["large", () => testFiles(["build-ts/test/gpu/large.gpu.js"])],
  ["graphs", () => testFiles(["build-ts/test/gpu/graphs.gpu.js"])],
  ["memory", () => testFiles(["build-ts/test/gpu/memory.gpu.js"])],
  ["sticky", () => testFiles(["build-ts/test/gpu/sticky.gpu.js"])],
  ["repeats", () => testFiles(["build-ts/test/gpu/repeats.gpu.js"])],
  ["bench-float32", () => bench("float32")],
  ["bench-bfloat16", () => bench("bfloat16")],
  ["bench-float16", () => bench("float16")],
]);

if (options.list) {
  console.log([...parts.keys()].join("\n"));
  process.exit(0);
}
if (options.pack) {
  pack(path.resolve(calledFrom, options.pack));
  process.exit(0);
}

// `suite` means all parts whose names begin so.
const wanted = (options.part ?? [...parts.keys()].join(",")).split(",").flatMap((name) => {
  const found = [...parts.keys()].filter((part) => part === name || part.startsWith(`${name}-`));
  if (found.length === 0) fail(`there is no part ${name}; there are ${[...parts.keys()].join(", ")}`);
  return found;
});
const emulatedLibrary = path.resolve("build/emulated/Release/fapo_kernels_cuda_emulated.so");
if (options.emulated) {
  if (!existsSync(emulatedLibrary)) fail("there is no emulated GPU; `npm test` builds one");
  process.env.FAPO_KERNELS_CUDA = emulatedLibrary;
}
if (!existsSync("dist/index.js") || !existsSync("build-ts/test/gpu")) fail("`npm run build:ts` first");
const [{ devices }, { addon }] = await Promise.all([import("fapo-kernels"), import("../dist/addon.js")]);
let cuda;
try {
  ({ cuda } = devices());
} catch (error) {
  fail(error.message);
}
if (!cuda.available) fail(`no GPU: ${cuda.reason}`);
if (cuda.emulated && !options.emulated) fail("no GPU but an emulated one; --emulated runs the parts on it");
const place = aboutHere();
const slug = place.gpu.name.toLowerCase().replace(/[^a-z0-9]+/g, "-");
const file = options.report
  ? path.resolve(calledFrom, options.report)
  : path.resolve(cuda.emulated ? "build/gpu-emulated.json" : `test/results/${slug}.json`);
if (cuda.emulated && /[\\/](bench|test)[\\/]results[\\/]/.test(file)) {
  fail("results of an emulated GPU do not belong among those of real ones; give another --report");
}

const report = { ...place, parts: earlierParts() };
for (const name of wanted) {
  const started = performance.now();
  let result;
  try {
    result = await parts.get(name)();
  } catch (error) {
    if (!(error instanceof NotRun)) throw error;
    result = { status: "not run", reason: error.message };
  }
  const seconds = Math.round((performance.now() - started) / 100) / 10;
  report.parts[name] = { ...result, seconds, date: new Date().toISOString() };
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(report, null, 2)}\n`);
  const counts = result.passed === undefined ? "" : `, ${result.passed} passed, ${result.failed} failed`;
  console.log(`${result.status.padEnd(7)} ${name} (${seconds} s${counts})${result.reason ? `: ${result.reason}` : ""}`);
  for (const failure of result.failures ?? []) console.log(`        ${failure}`);
}
console.log(`written: ${path.relative(calledFrom, file)}`);
const failed = wanted.filter((name) => report.parts[name].status === "failed");
if (failed.length > 0) fail(`failed: ${failed.join(", ")}`);

// ---- parts

/** The suite on the GPU alone: the CPU's turn is `npm test`. Left out is what no GPU has a part in. */
function suite(pattern) {
  const elsewhere = /^(addon|bench|budget|docs|genrm|golden\.genrm|house)\b/;
  const files = readdirSync("build-ts/test").filter((name) => name.endsWith(".test.js"));
  return testFiles(
    files.filter((name) => pattern.test(name) && !elsewhere.test(name)).map((name) => path.join("build-ts/test", name)),
  );
}

function testFiles(files) {
  const run = node(["--test", "--test-reporter=tap", "--test-concurrency=4", ...files]);
  return { ...outcome(run), ...resultOfTap(run) };
}

function primitives() {
  const program = options.emulated ? "build/emulator/plain/primitives" : "build/emulator/primitives_cuda";
  if (!existsSync(program)) throw new NotRun(`${program} was not built: npm run test:emulator -- primitives`);
  const run = child(path.resolve(program), []);
  const lines = run.output.trim().split("\n");
  return { ...outcome(run), details: { said: lines.slice(-30) } };
}

/** Passed is what the tool itself says; a tool that cannot watch this GPU has not run. */
function sanitizer(tool) {
  const command = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"].find(
    (name) => spawnSync(name, ["--version"]).status === 0,
  );
  if (!command) throw new NotRun("there is no compute-sanitizer");
  const watched = (program, ...more) => {
    const args = ["--tool", tool, "--error-exitcode", "88", ...more, process.execPath, program];
    return child(command, args);
  };
  if (tool === "memcheck") {
    // A read of freed memory has to be found, or nothing that was not found means anything.
    const planted = watched("build-ts/test/gpu/illegalAccess.js");
    if (planted.status !== 88) throw new NotRun(`memcheck did not see a planted error: ${last(planted.output)}`);
  }
  const run = watched("build-ts/test/gpu/sanitized.gpu.js", ...(tool === "memcheck" ? ["--leak-check", "full"] : []));
  const summary = run.output.match(/^=+ .*SUMMARY: .*$/gm) ?? [];
  const refused = /^=+ .*(not supported|unable to|refused|permission).*$/im.exec(run.output);
  if (refused) throw new NotRun(refused[0]);
  if (summary.length === 0 && !run.timedOut) throw new NotRun(`${tool} said nothing: ${last(run.output)}`);
  const clean = run.status === 0 && summary.every((line) => /\b0 (errors|hazards)/.test(line));
  const found = run.output.match(/^=+ (Invalid|Race|Error|Uninitialized|Barrier|Leaked|Program hit).*$/gm) ?? [];
  return { ...outcome(run, clean), ...resultOfTap(run), details: { tool, summary, found: found.slice(0, 20) } };
}

function bench(dtype) {
  const json = path.join(path.dirname(file), `${path.basename(file, ".json")}-bench-${dtype}.json`);
  mkdirSync(path.dirname(json), { recursive: true });
  const size = options.emulated ? ["--quick"] : ["--rounds", "7"];
  const run = node(["dist/cli.js", "bench", "--devices", "cuda:0", "--dtypes", dtype, ...size, "--json", json]);
  const lines = run.output.trim().split("\n");
  return { ...outcome(run), details: { report: path.basename(json), said: lines } };
}

// ---- running

function node(args) {
  return child(process.execPath, args);
}

function child(program, args) {
  const details = path.join(mkdtempSync(path.join(tmpdir(), "fapo-kernels-gpu-")), "details.jsonl");
  const env = { ...process.env, FAPO_TEST_DEVICES: "cuda:0", FAPO_GPU_DETAILS: details };
  const { status, signal, error, stdout, stderr } = spawnSync(program, args, {
    env,
    encoding: "utf8",
    timeout: longest,
    maxBuffer: 1 << 30,
  });
  const lines = existsSync(details) ? readFileSync(details, "utf8").trim().split("\n") : [];
  rmSync(path.dirname(details), { recursive: true });
  const reported = Object.fromEntries(lines.map((line) => JSON.parse(line)).map(({ name, value }) => [name, value]));
  return { status, signal, timedOut: error?.code === "ETIMEDOUT", output: `${stdout ?? ""}${stderr ?? ""}`, reported };
}

function outcome(run, ok = run.status === 0) {
  if (run.timedOut) return { status: "failed", reason: `not done after ${longest / minutes} minutes` };
  if (ok) return { status: "passed" };
  return {
    status: "failed",
    reason: run.signal ? `ended by ${run.signal}` : `exit code ${run.status}: ${last(run.output)}`,
  };
}

/** Counts, failures with their messages, the worst errors that test files print, and what they reported. */
function resultOfTap({ output, reported }) {
  const number = (name) =>
    [...output.matchAll(new RegExp(`^# ${name} (\\d+)$`, "gm"))].reduce((sum, m) => sum + Number(m[1]), 0);
  const failures = [...output.matchAll(/^not ok \d+ - (.*)\n(?:.*\n)*? {2}error: (.*(?:\n {4}.*)*)/gm)];
  const worst = [...output.matchAll(/^(?:# )? {2,}(.+: \|error\| .+)$/gm)].map(([, line]) => line);
  return {
    passed: number("pass"),
    failed: number("fail"),
    skipped: number("skipped"),
    ...(failures.length > 0 && { failures: failures.map(([, name, error]) => `${name}: ${error.slice(0, 500)}`) }),
    ...((worst.length > 0 || Object.keys(reported).length > 0) && {
      details: { ...reported, ...(worst.length > 0 && { worst }) },
    }),
  };
}

function last(output) {
  return output.trim().split("\n").pop().slice(0, 300);
}

// ---- report

function aboutHere() {
  const [first] = cuda.devices;
  const { name, computeCapability, multiprocessors, memory } = first;
  const probe = addon().cudaProbe();
  const version = (number) => `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;
  const query = ["--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv,noheader"];
  const smi = spawnSync("nvidia-smi", [...query, "--id=0"], { encoding: "utf8" });
  const [driver, smClock, memoryClock, powerLimit] = smi.status === 0 ? smi.stdout.trim().split(", ") : [];
  return {
    date: new Date().toISOString(),
    ...source(),
    emulated: cuda.emulated,
    gpu: { name, computeCapability, multiprocessors, memory, smClock, memoryClock, powerLimit },
    driver: driver ?? "unknown",
    cuda: { kernels: version(probe.runtime), driver: version(probe.driver) },
    node: process.version,
  };
}

/** The commit of the checkout, or of the one that was packed. */
function source() {
  const packed = "gpu-pack.json";
  if (existsSync(packed)) return JSON.parse(readFileSync(packed, "utf8"));
  const git = (...args) => execFileSync("git", args, { encoding: "utf8" }).trim();
  return { commit: git("rev-parse", "HEAD"), dirty: git("status", "--porcelain") !== "" };
}

/** What an earlier run of the same sources on the same GPU found. */
function earlierParts() {
  if (!existsSync(file)) return {};
  const { parts: earlier, ...then } = JSON.parse(readFileSync(file, "utf8"));
  const same = (name) => JSON.stringify(then[name]) === JSON.stringify(place[name]);
  return ["commit", "dirty", "emulated", "gpu", "driver"].every(same) ? earlier : {};
}

/** One file that runs in an empty folder: sources, what was built from them, the packages that run, and Node. */
function pack(archive) {
  const library = "build/Release/fapo_kernels_cuda.so";
  for (const needed of ["dist/index.js", "build-ts/test/gpu/compare.gpu.js", library]) {
    if (!existsSync(needed)) fail(`${needed} was not built: npm run build, where nvcc is`);
  }
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-gpu-"));
  try {
    const to = path.join(folder, "fapo-kernels");
    const tracked = execFileSync("git", ["ls-files", "-z"], { encoding: "utf8" }).split("\0").filter(existsSync);
    const run = ["node-gyp-build", "fast-check", "pure-rand", "tinybench"].map((name) => `node_modules/${name}`);
    const built = ["dist", "build-ts", "build/Release/fapo_kernels.node", library, "build/emulator/primitives_cuda"];
    for (const each of [...tracked.filter(Boolean), ...built.filter(existsSync), ...run]) {
      cpSync(each, path.join(to, each), { recursive: true });
    }
    cpSync(process.execPath, path.join(to, "bin/node"), { dereference: true });
    spawnSync("strip", ["--strip-all", path.join(to, "bin/node")]); // larger without, but the same
    writeFileSync(path.join(to, "gpu-pack.json"), JSON.stringify(source()));
    const script = `#!/bin/sh\ncd "\${0%/*}" && exec bin/node scripts/test-gpu.mjs "$@"\n`;
    writeFileSync(path.join(to, "run.sh"), script, { mode: 0o755 });
    execFileSync("tar", ["-czf", archive, "-C", folder, "fapo-kernels"]);
  } finally {
    rmSync(folder, { recursive: true });
  }
  console.log(`written: ${path.relative(calledFrom, archive)}; there: tar xzf it, fapo-kernels/run.sh --part compare`);
}

function fail(message) {
  console.error(`test:gpu: ${message}`);
  process.exit(1);
}
