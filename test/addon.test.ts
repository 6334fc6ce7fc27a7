import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { devices } from "fapo-kernels";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Runs a module that imports the package; gives what it printed. */
function evaluate(source: string, env: Record<string, string> = {}): string {
  return execFileSync(process.execPath, ["--input-type=module", "--eval", source], {
    cwd: root,
    env: { ...process.env, ...env },
    encoding: "utf8",
  }).trim();
}

test("CommonJS can require the package", () => {
  const api = createRequire(import.meta.url)("fapo-kernels") as typeof import("fapo-kernels");
  const logits = api.tensor(new Float32Array([2, -1, 0.5, 0, 3]), { shape: [1, 5] });
  const { logprobs } = api.tokenLogprob({ logits, tokenIds: new Int32Array([4]) });
  assert.ok(Math.abs((logprobs.data[0] ?? 0) - -0.417437911889706) < 1e-6);
});

test("importing the package runs nothing and needs no build", () => {
  assert.equal(
    evaluate(
      'await import("fapo-kernels"); console.log(process.report.getReport().sharedObjects.filter((f) => f.includes("fapo")).length)',
    ),
    "0",
  );
});

test("FAPO_ISA chooses a lesser instruction set, never one the machine lacks", () => {
  const isa = (env: Record<string, string>): string =>
    evaluate('import { devices } from "fapo-kernels"; console.log(devices().cpu.isa)', env);
  assert.equal(isa({ FAPO_ISA: "baseline" }), "baseline");
  const best = isa({});
  for (const unknown of ["", "avx9", "AVX2"]) assert.equal(isa({ FAPO_ISA: unknown }), best, unknown);
  const order = ["baseline", "avx2", "avx512"];
  assert.ok(order.includes(best));
  for (const wanted of order.slice(0, order.indexOf(best) + 1)) assert.equal(isa({ FAPO_ISA: wanted }), wanted);
  if (best !== "avx512") assert.equal(isa({ FAPO_ISA: "avx512" }), best);
});

test("without a native build the first call says what to do", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-"));
  try {
    cpSync(path.join(root, "dist"), path.join(folder, "dist"), { recursive: true });
    cpSync(path.join(root, "node_modules/node-gyp-build"), path.join(folder, "node_modules/node-gyp-build"), {
      recursive: true,
    });
    writeFileSync(path.join(folder, "package.json"), '{ "name": "fapo-kernels", "type": "module" }');
    // The second allocates a large output before it comes to the addon.
    for (const first of ["devices()", 'cast(zeros([2 ** 24], { dtype: "bfloat16" }), "float32")']) {
      const source = `import { cast, devices, zeros } from "./dist/index.js";
        try { ${first}; } catch (e) { console.log(e.name, e.code, e.message); }`;
      const { stdout } = spawnSync(process.execPath, ["--input-type=module", "--eval", source], {
        cwd: folder,
        encoding: "utf8",
      });
      assert.match(
        stdout,
        /^FapoError ERR_ADDON_NOT_FOUND fapo-kernels: no native build loads here \(\w+-\w+, Node v[\d.]+\); build it from source with `npx fapo-kernels build`/,
      );
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("the command prints devices as JSON, and refuses what it does not know", () => {
  const cli = path.join(root, "dist/cli.js");
  const run = (...args: string[]) => spawnSync(process.execPath, [cli, ...args], { encoding: "utf8" });
  assert.deepEqual(JSON.parse(run("devices").stdout), devices());
  assert.match(run("--help").stdout, /^Usage: fapo-kernels <command>/);
  const unknown = run("bulid");
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /^fapo-kernels: no command "bulid"/);
});
