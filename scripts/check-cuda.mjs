// `npm run check:cuda`: what ptxas made of the CUDA kernels, against cuda/budget.json: no kernel takes more registers,
// stack, spilled bytes or shared memory than its budget, and none so many registers that fewer of its blocks than meant
// run on a multiprocessor at once.
//   node scripts/check-cuda.mjs                 compiles cuda/*.cu where they changed
//   node scripts/check-cuda.mjs --update        writes the budget, after every intended change
//   node scripts/check-cuda.mjs --table         also prints the numbers for sm_90 and sm_100, as Markdown
// --budget file: another budget. --log file: what `nvcc -Xptxas=-v` said, instead of compiling.
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";

process.chdir(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
const { values: options } = parseArgs({
  options: {
    update: { type: "boolean", default: false },
    table: { type: "boolean", default: false },
    budget: { type: "string", default: "cuda/budget.json" },
    log: { type: "string" },
  },
});
const architectures = ["sm_80", "sm_90", "sm_100", "sm_120"];
const fields = ["registers", "stack", "spills", "shared"];
const units = {
  registers: "registers",
  stack: "bytes of stack",
  spills: "spilled bytes",
  shared: "bytes of shared memory",
};

const nvcc = ["nvcc", "/usr/local/cuda/bin/nvcc"].find((name) => spawnSync(name, ["--version"]).status === 0);
if (!options.log && !nvcc) {
  console.log("check:cuda: nvcc is absent: the budget of the CUDA kernels is not checked");
  process.exit(0);
}

const used = parse(options.log ? readFileSync(options.log, "utf8") : await compile());
const { occupancy, kernels: budget } = JSON.parse(readFileSync(options.budget, "utf8"));
if (options.table) printTable();
const failures = options.update ? [] : [...overBudget(), ...overOccupancy()];
if (options.update) {
  writeFileSync(options.budget, format());
  failures.push(...overOccupancy());
}
for (const failure of failures) console.log(`FAIL ${failure}`);
const what = `${used.size} kernels, ${architectures.join(", ")}`;
console.log(`check:cuda: ${what}: ${failures.length === 0 ? "within budget" : `${failures.length} over budget`}`);
process.exitCode = failures.length === 0 ? 0 : 1;

/** What ptxas said of every file; kept in build/ until a source changes. */
async function compile() {
  const sources = [...filesOf("cuda", /\.(cu|cuh|h)$/), ...filesOf("native", /\.h$/)];
  const hash = createHash("sha256").update(execFileSync(nvcc, ["--version"]));
  for (const file of sources) hash.update(file).update(readFileSync(file));
  const key = hash.digest("hex");
  const kept = "build/cuda-usage.log";
  if (existsSync(kept)) {
    const log = readFileSync(kept, "utf8");
    if (log.startsWith(key)) return log;
  }

  const targets = architectures.map((name) => `-gencode=arch=${name.replace("sm", "compute")},code=${name}`);
  const flags = ["-std=c++20", "-O3", "-I.", "--fatbin", "-Xptxas=-v", ...targets];
  // device.cu has one kernel, which does nothing, and what CMake defines.
  const waiting = sources.filter((file) => file.endsWith(".cu") && file !== "cuda/device.cu");
  const logs = [];
  const worker = async () => {
    for (let file = waiting.pop(); file; file = waiting.pop()) {
      const { stderr } = await promisify(execFile)(nvcc, [...flags, file, "-o", "/dev/null"], { maxBuffer: 1 << 28 });
      logs.push(stderr);
    }
  };
  await Promise.all(Array.from({ length: Number(process.env.JOBS ?? 2) }, worker));
  mkdirSync("build", { recursive: true });
  writeFileSync(kept, [key, ...logs].join("\n"));
  return logs.join("\n");
}

function filesOf(folder, pattern) {
  const found = readdirSync(folder, { recursive: true }).map((file) => path.join(folder, String(file)));
  return found.filter((file) => pattern.test(file)).sort();
}

/** Kernel -> architecture -> numbers. What ptxas says of functions that are not inlined counts for their kernel. */
function parse(log) {
  const found = new Map();
  let numbers;
  for (const line of log.split("\n")) {
    const entry = /Compiling entry function '(\S+)' for '(\w+)'/.exec(line);
    if (entry) {
      numbers = { name: entry[1], architecture: entry[2], registers: 0, stack: 0, spills: 0, shared: 0 };
      found.set(`${numbers.name} ${numbers.architecture}`, numbers);
    }
    if (!numbers) continue;
    const first = (pattern) => Number(pattern.exec(line)?.[1] ?? 0);
    numbers.registers = Math.max(numbers.registers, first(/Used (\d+) registers/));
    numbers.stack = Math.max(numbers.stack, first(/(\d+) bytes (?:stack frame|cumulative stack size)/));
    numbers.spills += first(/(\d+) bytes spill stores/);
    numbers.shared = Math.max(numbers.shared, first(/(\d+) bytes smem/));
  }
  const all = [...found.values()];
  if (all.length === 0) throw new Error("ptxas said nothing of any kernel");
  const names = execFileSync("c++filt", { input: all.map(({ name }) => name).join("\n"), encoding: "utf8" }).split(
    "\n",
  );
  const kernels = new Map();
  all.forEach(({ name, architecture, ...rest }, i) => {
    const short = shortName(names[i]);
    if (!kernels.has(short)) kernels.set(short, {});
    kernels.get(short)[architecture] = rest;
  });
  return new Map([...kernels].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** `void fapo::cuda::(anonymous namespace)::f<fapo::f16, true>(int)` is `f<f16, true>`. */
function shortName(name) {
  const bare = name.replaceAll("(anonymous namespace)::", "").replaceAll("fapo::", "").replaceAll("cuda::", "");
  return bare.replace(/\(.*$/, "").replace(/^void /, "");
}

function overBudget() {
  const found = [];
  for (const [kernel, byArchitecture] of used) {
    for (const [architecture, numbers] of Object.entries(byArchitecture)) {
      const most = budget[kernel]?.[architecture];
      if (!most) found.push(`${kernel} on ${architecture} has no budget; --update writes it`);
      else {
        for (const field of fields.filter((name) => numbers[name] > most[name])) {
          found.push(`${kernel} on ${architecture}: ${numbers[field]} ${units[field]}, budget ${most[field]}`);
        }
      }
    }
  }
  for (const [kernel, byArchitecture] of Object.entries(budget)) {
    for (const architecture of Object.keys(byArchitecture)) {
      if (!used.get(kernel)?.[architecture]) found.push(`${kernel} on ${architecture} is in the budget, and missing`);
    }
  }
  return found;
}

/** Registers are given to warps in portions of 8 per thread, of 65,536 per multiprocessor. */
function overOccupancy() {
  const found = [];
  for (const [family, { threads, blocks }] of Object.entries(occupancy)) {
    const most = Math.floor(65536 / (threads * blocks) / 8) * 8;
    const members = [...used].filter(([kernel]) => kernel.replace(/<.*$/, "") === family);
    if (members.length === 0) found.push(`${family} is in the budget, and missing`);
    for (const [kernel, byArchitecture] of members) {
      for (const [architecture, { registers }] of Object.entries(byArchitecture)) {
        if (registers <= most) continue;
        const meant = `${blocks} blocks of ${threads} threads leave ${most}`;
        found.push(`${kernel} on ${architecture}: ${registers} registers, and ${meant}`);
      }
    }
  }
  return found;
}

/** One line per architecture. */
function format() {
  const list = (object, each) => Object.entries(object).map(([key, value]) => `${JSON.stringify(key)}: ${each(value)}`);
  const line = (object) => `{ ${list(object, JSON.stringify).join(", ")} }`;
  const inOrder = (byArchitecture) =>
    Object.fromEntries(architectures.flatMap((a) => (byArchitecture[a] ? [[a, byArchitecture[a]]] : [])));
  const block = (byArchitecture) => `{\n      ${list(inOrder(byArchitecture), line).join(",\n      ")}\n    }`;
  const kernels = list(Object.fromEntries(used), block).join(",\n    ");
  return `{\n  "occupancy": {\n    ${list(occupancy, line).join(",\n    ")}\n  },\n  "kernels": {\n    ${kernels}\n  }\n}\n`;
}

function printTable() {
  const shown = ["sm_90", "sm_100"];
  console.log(`| kernel | ${shown.map((name) => `${name}: registers | stack | spilled | shared`).join(" | ")} |`);
  console.log(`| --- |${" --- |".repeat(shown.length * fields.length)}`);
  for (const [kernel, byArchitecture] of used) {
    const cells = shown.flatMap((name) => fields.map((field) => byArchitecture[name]?.[field] ?? "–"));
    console.log(`| \`${kernel}\` | ${cells.join(" | ")} |`);
  }
}
