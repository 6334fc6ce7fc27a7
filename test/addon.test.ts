import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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

/** What the package says in a folder without a build, where `change` has been at work. */
function inFolder(calls: readonly string[], change: (folder: string) => void = () => {}): string[] {
  const folder = mkdtempSync(path.join(tmpdir(), "fapo-kernels-"));
  try {
    cpSync(path.join(root, "dist"), path.join(folder, "dist"), { recursive: true });
    cpSync(path.join(root, "node_modules/node-gyp-build"), path.join(folder, "node_modules/node-gyp-build"), {
      recursive: true,
    });
    writeFileSync(path.join(folder, "package.json"), '{ "name": "fapo-kernels", "type": "module" }');
    change(folder);
    return calls.map((call) => {
      const source = `import { cast, devices, zeros } from "./dist/index.js";
        try { ${call}; console.log("done"); } catch (e) { console.log(e.name, e.code, e.message); }`;
      const { stdout } = spawnSync(process.execPath, ["--input-type=module", "--eval", source], {
        cwd: folder,
        encoding: "utf8",
      });
      return stdout.trim();
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("without a native build the first call says what to do", () => {
  // The second allocates a large output before it comes to the addon.
  for (const said of inFolder(["devices()", 'cast(zeros([2 ** 24], { dtype: "bfloat16" }), "float32")'])) {
    assert.match(
      said,
      /^FapoError ERR_ADDON_NOT_FOUND fapo-kernels: no native build loads here \(\w+-\w+, Node v[\d.]+\); build it from source with `npx fapo-kernels build`/,
    );
  }
});

test("a native build that takes other values, or in another order, is refused when it is loaded", () => {
  const build: string = createRequire(import.meta.url)("node-gyp-build").path(root);
  const withBuild = (folder: string): void => {
    mkdirSync(path.join(folder, "build/Release"), { recursive: true });
    copyFileSync(build, path.join(folder, "build/Release/fapo_kernels.node"));
  };
  const edited = (from: string, to: string) => (folder: string) => {
    withBuild(folder);
    const file = path.join(folder, "dist/native.js");
    const source = readFileSync(file, "utf8");
    assert.ok(source.includes(from));
    writeFileSync(file, source.replace(from, to));
  };
  assert.deepEqual(inFolder(["devices()"], withBuild), ["done"]);
  const refused = /^FapoError ERR_ADDON_NOT_FOUND fapo-kernels: the native build is of another version .*: /;
  for (const [from, to, difference] of [
    ["batch.klCoef, ", "", "policyLoss takes .batch.klCoef where it is given .batch.lossAggMode"],
    [
      "batch.klEstimator, batch.klCoef",
      "batch.klCoef, batch.klEstimator",
      "takes .batch.klEstimator where it is given",
    ],
    ["args.columns, ", "args.columns, args.rows, ", "cast takes .result.data where it is given .rows"],
  ] as const) {
    const [said] = inFolder(["devices()"], edited(from, to));
    assert.match(said!, refused);
    assert.ok(said!.includes(difference), said);
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
