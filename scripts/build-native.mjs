// Builds the native addon with cmake-js.
//   node scripts/build-native.mjs           configure, then build, into build/Release
//   node scripts/build-native.mjs --stage   also copy what was built to prebuilds/, which `npm pack` takes along
//   node scripts/build-native.mjs --clean   from nothing
// JOBS=2 limits the compilers that run at once; CMAKE_OPTIONS="FAPO_CUDA=OFF FAPO_WERROR=ON" sets CMake
// variables.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const require = createRequire(path.join(root, "package.json"));
const flags = new Set(process.argv.slice(2));

const needed = [
  { what: "CMake 3.25 or newer", commands: ["cmake"], debian: "cmake" },
  {
    what: "a C++20 compiler (GCC 11 or newer, or Clang 14 or newer)",
    commands: [process.env.CXX, "c++", "g++", "clang++"],
    debian: "g++",
  },
  { what: "make or ninja", commands: ["ninja", "make"], debian: "make" },
];

function fail(message) {
  console.error(`\nfapo-kernels: ${message}`);
  process.exit(1);
}

const runs = (command) => command && spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
const missing = needed.filter(({ commands }) => !commands.some(runs));
if (missing.length > 0) {
  const what = missing.map((tool) => tool.what).join(" and ");
  const debian = missing.map((tool) => tool.debian).join(" ");
  fail(
    `building the native kernels needs ${what}, not found on PATH; install it (Debian, Ubuntu: apt-get install ${debian}) and try again.`,
  );
}

if (flags.has("--clean")) rmSync(path.join(root, "build"), { recursive: true, force: true });
const options = (process.env.CMAKE_OPTIONS ?? "").split(" ").filter(Boolean);
// `cmake-js build` alone skips the configure step once there is a cache, whatever the options.
cmakeJs("configure", ...options.map((option) => `--CD${option}`));
cmakeJs("build", "--parallel", process.env.JOBS ?? String(availableParallelism()));

if (flags.has("--stage")) {
  const folder = path.join(root, "prebuilds", `${process.platform}-${process.arch}`);
  const libc = process.platform !== "linux" ? "" : existsSync("/etc/alpine-release") ? ".musl" : ".glibc";
  mkdirSync(folder, { recursive: true });
  const built = path.join(root, "build", "Release");
  copyFileSync(path.join(built, "fapo_kernels.node"), path.join(folder, `fapo-kernels${libc}.node`));
  const cuda = "fapo_kernels_cuda.so";
  rmSync(path.join(folder, cuda), { force: true });
  if (existsSync(path.join(built, cuda))) copyFileSync(path.join(built, cuda), path.join(folder, cuda));
}

function cmakeJs(...args) {
  let command = [process.execPath];
  try {
    command.push(path.join(path.dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js"));
  } catch {
    // An installed package has no devDependencies: take cmake-js from the registry for this one build.
    command = ["npm", "exec", "--yes", "--package=cmake-js@8", "--", "cmake-js"];
  }
  const [program, ...first] = command;
  const { status } = spawnSync(program, [...first, ...args, "--directory", root], { cwd: root, stdio: "inherit" });
  if (status !== 0) fail("the native build failed; the compiler's message is above.");
}
