// `npm run check`: everything that can be said of the sources without running them.
//   node scripts/check.mjs            format, lint and types of TypeScript; format and lint of C++; house rules
//   node scripts/check.mjs --format   writes the format of the C++ files
//   node scripts/check.mjs --quick    without clang-tidy
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const flags = new Set(process.argv.slice(2));
const bin = (name) => path.join("node_modules", ".bin", name);
let failures = 0;

function report(name, ok, details = "") {
  console.log(`${ok ? "ok  " : "FAIL"} ${name}`);
  if (ok) return;
  failures++;
  console.log(details.trimEnd());
}

function command(name, program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8", maxBuffer: 1 << 28 });
  report(name, status === 0, error ? String(error) : `${stdout}${stderr}`);
}

const files = (folder, pattern) =>
  readdirSync(folder, { recursive: true })
    .map((file) => path.join(folder, String(file)))
    .filter((file) => pattern.test(file));
const native = files("native", /\.(h|cpp)$/);
const cpp = [...native, ...files("cuda", /\.(h|cuh|cpp|cu)$/)];
const cppFormatted = [...cpp, ...files("test/native", /\.cpp$/), ...files("test/emulator", /\.(h|cpp|cu)$/)];

if (flags.has("--format")) {
  command("format C++", bin("clang-format"), ["-i", ...cppFormatted]);
  process.exit(failures ? 1 : 0);
}

command("TypeScript: format and lint (biome)", bin("biome"), ["check", "--error-on-warnings", "."]);
command("TypeScript: types (tsc)", bin("tsc"), ["-b"]);
command("C++: format (clang-format)", bin("clang-format"), ["--dry-run", "--Werror", ...cppFormatted]);

// ---- house rules that a search can see
const text = new Map([...cpp, ...files("lib", /\.ts$/)].map((file) => [file, readFileSync(file, "utf8")]));
function rule(name, applies, forbidden) {
  const hits = [];
  for (const [file, content] of text) {
    if (!applies(file)) continue;
    content.split("\n").forEach((line, i) => {
      if (forbidden.test(line)) hits.push(`  ${file}:${i + 1}: ${line.trim()}`);
    });
  }
  report(name, hits.length === 0, hits.join("\n"));
}
const isCpp = (file) => /^(native|cuda)/.test(file);
rule("house: napi.h only in native/addon.cpp", (f) => isCpp(f) && f !== "native/addon.cpp", /napi\.h/);
rule(
  "house: node_api.h only in cuda/library.cpp",
  (f) => isCpp(f) && f !== "cuda/library.cpp" && f !== "native/addon.cpp",
  /node_api\.h/,
);
rule("house: no CUDA runtime in native/", (f) => f.startsWith("native"), /cuda_runtime/);
rule(
  "house: shared memory and PTX only in cuda/device.cuh",
  (f) => f.startsWith("cuda") && f !== "cuda/device.cuh",
  /__shared__|\basm\b/,
);
rule(
  "house: native/math includes only <bit>, <cmath>, <cstdint> and itself",
  (f) => f.startsWith("native/math"),
  /#include (?!<bit>|<cmath>|<cstdint>|"native\/math\/)/,
);
rule(
  "house: the library never prints, asserts or exits",
  isCpp,
  /\b(printf|std::cout|std::cerr|abort\(|assert\(|exit\()/,
);
rule("house: lib never prints", (f) => f.startsWith("lib") && !/cli/.test(f), /console\.|process\.(stdout|stderr)/);
rule("house: lib/genrm works without the addon", (f) => f.startsWith("lib/genrm"), /from "\.\.\/(addon|ops)/);

// ---- what the compiler made
const objects = existsSync("build") ? files("build", /isa_\w+\.dir.*\.o$/) : [];
if (objects.length === 0) {
  report("C++: build is there", false, "  run `npm run build:native` first");
} else {
  // Weak symbols of files compiled for AVX could be the copies that the linker keeps for every caller.
  const weak = objects
    .filter((file) => !file.includes("isa_baseline"))
    .map((file) => spawnSync("nm", ["-C", "--defined-only", file], { encoding: "utf8" }).stdout)
    .join("")
    .split("\n")
    .filter((line) => / [WVu] /.test(line));
  report("C++: no function with AVX instructions can serve other callers", weak.length === 0, weak.join("\n"));
  glibcFloor("build/Release/fapo_kernels.node", { GLIBC: [2, 27], GLIBCXX: [3, 4, 22] });
}

function glibcFloor(file, floors) {
  if (!existsSync(file)) return report("C++: the addon is built", false, "  run `npm run build:native` first");
  const table = spawnSync("objdump", ["-T", file], { encoding: "utf8" }).stdout ?? "";
  const above = [...table.matchAll(/\b(GLIBC|GLIBCXX)_([0-9.]+)/g)].filter(([, library, version]) => {
    const [have, floor] = [version.split(".").map(Number), floors[library]];
    const at = have.findIndex((part, i) => part !== (floor[i] ?? 0));
    return at >= 0 && have[at] > (floor[at] ?? 0);
  });
  const ok = table.includes("GLIBC_") && above.length === 0;
  report("C++: needs no newer glibc than 2.27", ok, above.map(([symbol]) => `  ${symbol}`).join("\n"));
}

if (!flags.has("--quick")) {
  const tidy = ["clang-tidy", "clang-tidy-19", "clang-tidy-18", "clang-tidy-17"].find(
    (name) => spawnSync(name, ["--version"]).status === 0,
  );
  if (tidy) {
    const sources = native.filter((file) => file.endsWith(".cpp") && !file.endsWith("_isa.cpp"));
    command("C++: lint (clang-tidy)", tidy, ["-p", "build", "--quiet", ...sources]);
  } else {
    report(
      "C++: lint (clang-tidy)",
      false,
      "  clang-tidy is not there: install it (Debian, Ubuntu: apt-get install clang-tidy-19), or leave it out with --quick",
    );
  }
}

process.exit(failures ? 1 : 0);
