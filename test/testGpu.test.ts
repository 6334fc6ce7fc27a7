/** scripts/test-gpu.mjs: what it takes for passed, and what for not run; and that what it packs needs nothing. */
import assert from "node:assert/strict";
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { root } from "./support/cuda.ts";

const emulated = path.join(root, "build/emulated/Release/fapo_kernels_cuda_emulated.so");
const noEmulated = existsSync(emulated) ? false : "no emulated GPU was built";

interface Part {
  status: string;
  reason?: string;
  passed?: number;
  details?: Record<string, unknown>;
}
interface Report {
  emulated: boolean;
  commit: string;
  parts: Record<string, Part>;
}

function inFolder(body: (folder: string) => void): void {
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-"));
  try {
    body(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function run(args: readonly string[], env: Record<string, string> = {}): SpawnSyncReturns<string> {
  const script = path.join(root, "scripts/test-gpu.mjs");
  return spawnSync(process.execPath, [script, ...args], { encoding: "utf8", env: { ...process.env, ...env } });
}

const load = (file: string): Report => JSON.parse(readFileSync(file, "utf8"));

test("without a GPU it fails with one line", () => {
  const { status, stdout, stderr } = run(["--part", "compare"], { FAPO_KERNELS_CUDA: "/nonexistent/library.so" });
  assert.deepEqual({ status, stdout }, { status: 1, stdout: "" });
  assert.equal(stderr, "test:gpu: no GPU: this build of fapo-kernels has no CUDA kernels\n");
});

test("an emulated GPU is none, unless asked for, and has no place among results", { skip: noEmulated }, () => {
  const found = run(["--part", "compare"], { FAPO_KERNELS_CUDA: emulated });
  assert.deepEqual([found.status, found.stdout], [1, ""]);
  assert.match(found.stderr, /^test:gpu: no GPU but an emulated one; .*\n$/);
  for (const folder of ["test/results", "bench/results"]) {
    const { status, stderr } = run(["--emulated", "--part", "sticky", "--report", path.join(root, folder, "x.json")]);
    assert.equal(status, 1);
    assert.match(stderr, /^test:gpu: results of an emulated GPU do not belong among those of real ones/);
  }
});

test("an unknown part is refused, with the names of those there are", () => {
  const { status, stderr } = run(["--part", "speed"]);
  assert.equal(status, 1);
  assert.match(stderr, /^test:gpu: there is no part speed; there are .*compare.*\n$/);
});

// A tool of this name that says what it is told to say, and what real ones say.
const tool = `#!/bin/sh
[ "$1" = --version ] && exit 0
for program; do :; done
planted=false
case $program in *illegalAccess.js) planted=true ;; esac
say() { echo "========= $1 SUMMARY: $2"; }
case $SAYS in
  refused) echo "========= Error: Device not supported. Please refer to the documentation"; exit 0 ;;
  blind) say ERROR "0 errors"; exit 0 ;;
  found) echo "========= Invalid __global__ read of size 4 bytes"; say ERROR "1 error"; exit 88 ;;
  silent) exit 0 ;;
esac
if $planted; then echo "========= Invalid __global__ read of size 4 bytes"; say ERROR "1 error"; exit 88; fi
say ERROR "0 errors"
`;

test("a sanitizer passes by what it says, and only where it sees planted errors", { skip: noEmulated }, () => {
  inFolder((folder) => {
    writeFileSync(path.join(folder, "compute-sanitizer"), tool, { mode: 0o755 });
    const report = path.join(folder, "report.json");
    const says = (what: string, name: string): Part => {
      const env = { PATH: `${folder}:${process.env.PATH}`, SAYS: what };
      run(["--emulated", "--part", `sanitizer-${name}`, "--report", report], env);
      return load(report).parts[`sanitizer-${name}`]!;
    };
    assert.equal(says("clean", "memcheck").status, "passed");
    assert.equal(says("found", "memcheck").status, "failed");
    assert.deepEqual(says("found", "racecheck").details?.found, ["========= Invalid __global__ read of size 4 bytes"]);
    for (const [what, name, why] of [
      ["blind", "memcheck", /did not see a planted error/],
      ["refused", "memcheck", /did not see a planted error/],
      ["refused", "racecheck", /Device not supported/],
      ["silent", "synccheck", /said nothing/],
    ] as const) {
      const { status, reason } = says(what, name);
      assert.equal(status, "not run", what);
      assert.match(reason ?? "", why);
    }
    // One report, of all runs on these sources.
    const { emulated: isEmulated, commit, parts } = load(report);
    assert.ok(isEmulated && /^[0-9a-f]{40}$/.test(commit));
    assert.deepEqual(Object.keys(parts), ["sanitizer-memcheck", "sanitizer-racecheck", "sanitizer-synccheck"]);
  });
});

const library = path.join(root, "build/Release/fapo_kernels_cuda.so");
const noPack = noEmulated || (existsSync(library) ? false : "no CUDA kernels were built");

test("what is packed runs in an empty folder, with nothing on PATH", { skip: noPack }, () => {
  inFolder((folder) => {
    const archive = path.join(folder, "gpu.tar.gz");
    const packed = run(["--pack", archive]);
    assert.equal(packed.status, 0, packed.stderr);
    assert.equal(spawnSync("tar", ["-xzf", archive, "-C", folder]).status, 0);
    const there = path.join(folder, "fapo-kernels");
    const bare = (...args: string[]): SpawnSyncReturns<string> =>
      spawnSync(path.join(there, "run.sh"), args, { cwd: "/", encoding: "utf8", env: { PATH: "/nonexistent" } });
    const noGpu = bare("--part", "sticky");
    assert.deepEqual([noGpu.status, noGpu.stdout], [1, ""]);
    assert.match(noGpu.stderr, /^test:gpu: no GPU: .*\n$/);

    mkdirSync(path.join(there, "build/emulated/Release"), { recursive: true });
    cpSync(emulated, path.join(there, path.relative(root, emulated)));
    const done = bare("--emulated", "--part", "sticky");
    assert.equal(done.status, 0, done.stderr + done.stdout);
    const { commit, parts } = load(path.join(there, "build/gpu-emulated.json"));
    assert.deepEqual([parts.sticky?.status, parts.sticky?.passed], ["passed", 1]);
    assert.match(commit, /^[0-9a-f]{40}$/);
  });
});
