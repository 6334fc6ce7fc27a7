// `npm run test:package`: what users get. Builds the prebuilt file, packs, installs the tarball in an empty folder with
// scripts off, and computes from ESM, from CommonJS and in a worker, with no compiler on PATH.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const work = mkdtempSync(path.join(tmpdir(), "fapo-kernels-package-"));
let passed = 0;

function step(name, body) {
  const started = performance.now();
  body();
  passed++;
  console.log(`ok   ${name} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
}

function run(program, args, options = {}) {
  try {
    return execFileSync(program, args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], ...options });
  } catch (error) {
    throw new Error(`${program} ${args.join(" ")} failed:\n${error.stdout ?? ""}${error.stderr ?? ""}`);
  }
}

const folder = path.join("prebuilds", `${process.platform}-${process.arch}`);
let tarball = "";

try {
  step("prebuildify builds over cmake-js", () => {
    rmSync(path.join(root, "prebuilds"), { recursive: true, force: true });
    run("npm", ["run", "prebuildify"]);
    const found = readdirSync(path.join(root, folder));
    const allowed = /^(fapo-kernels(\.(glibc|musl))?\.node|fapo_kernels_cuda\.so)$/;
    assert.ok(found.some((file) => file.endsWith(".node")) && found.every((file) => allowed.test(file)), `${found}`);
    console.log(`     ${found.join(", ")}`);
  });

  step("the prebuilt file needs no newer glibc than 2.27, and the CUDA kernels none newer than 2.34", () => {
    if (process.platform !== "linux") return;
    for (const file of readdirSync(path.join(root, folder))) {
      const table = run("objdump", ["-T", path.join(folder, file)]);
      const versions = [...table.matchAll(/\bGLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
      const newest = Math.max(...versions);
      assert.ok(versions.length > 0 && newest <= (file.endsWith(".node") ? 27 : 34), `${file}: GLIBC_2.${newest}`);
    }
  });

  step("npm pack takes what is published, and nothing else", () => {
    const [packed] = JSON.parse(run("npm", ["pack", "--ignore-scripts", "--json", "--pack-destination", work]));
    tarball = path.join(work, packed.filename);
    const allowed =
      /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|CMakeLists\.txt|dist\/.+\.(js|d\.ts)|docs\/.+\.(md|svg)|native\/.+\.(h|cpp|map)|cuda\/.+\.(h|cuh|cpp|cu|map)|scripts\/build-native\.mjs|prebuilds\/[\w-]+\/(fapo-kernels(\.(glibc|musl))?\.node|fapo_kernels_cuda\.so))$/;
    const names = packed.files.map((file) => file.path);
    assert.deepEqual(
      names.filter((name) => !allowed.test(name)),
      [],
    );
    for (const needed of ["dist/index.js", "dist/index.d.ts", "dist/cli.js", "README.md", "LICENSE"]) {
      assert.ok(names.includes(needed), `${needed} is packed`);
    }
    assert.ok(
      names.some((name) => name.endsWith(".node")),
      "a prebuilt file is packed",
    );
    console.log(`     ${names.length} files, ${(packed.size / 1e3).toFixed(0)} kB packed`);
  });

  step("publint and attw have nothing to say", () => {
    run(path.join("node_modules", ".bin", "publint"), ["run", tarball, "--strict"]);
    // ESM alone: require() of it works on every Node that `engines` allows, which attw cannot know.
    run(path.join("node_modules", ".bin", "attw"), [
      tarball,
      "--ignore-rules",
      "cjs-resolves-to-esm",
      "--profile",
      "node16",
    ]);
  });

  const app = path.join(work, "app");
  step("the tarball installs in an empty folder with scripts off", () => {
    run("mkdir", ["-p", app]);
    writeFileSync(path.join(app, "package.json"), '{ "name": "app", "private": true }');
    run("npm", ["install", "--ignore-scripts", "--prefer-offline", tarball], { cwd: app });
  });

  const bare = { cwd: app, env: { PATH: "/nonexistent" } };
  const body = `
    const logits = tensor(new Float32Array([2, -1, 0.5, 0, 3]), { shape: [1, 5] });
    const { logprobs } = tokenLogprob({ logits, tokenIds: new Int32Array([4]) });
    if (Math.abs(logprobs.data[0] + 0.417437911889706) > 1e-6) throw new Error("wrong number " + logprobs.data[0]);`;
  const evaluate = (type, source) => run(process.execPath, [`--input-type=${type}`, "--eval", source], bare);
  step("it computes a right number from ESM", () => {
    evaluate("module", `import { tensor, tokenLogprob } from "fapo-kernels"; ${body}`);
  });
  step("it computes a right number from CommonJS", () => {
    evaluate("commonjs", `const { tensor, tokenLogprob } = require("fapo-kernels"); ${body}`);
  });
  step("it computes a right number in a worker", () => {
    const source = `const { tensor, tokenLogprob } = require("fapo-kernels"); ${body}`;
    evaluate(
      "commonjs",
      `new (require("node:worker_threads").Worker)(${JSON.stringify(source)}, { eval: true }).on("error", (e) => { throw e; });`,
    );
  });
  step("the judge client loads by itself", () => {
    evaluate(
      "module",
      'import { GenRM } from "fapo-kernels/genrm"; if (typeof GenRM !== "function") throw new Error("no GenRM");',
    );
  });
  step("the benchmarks run, as in the CI of another project", () => {
    const cli = path.join(app, "node_modules/fapo-kernels/dist/cli.js");
    const bench = (...args) => run(process.execPath, [cli, "bench", ...args], bare);
    assert.match(bench("--help"), /--github-action-benchmark/);
    const output = ["--json", "report.json", "--github-action-benchmark", "action.json"];
    bench("--quick", "--ops", "tokenLogprob,fapoAdvantage", "--shapes", "8x2000", "--threads", "1", ...output);
    const load = (name) => JSON.parse(readFileSync(path.join(app, name), "utf8"));
    const { results, commit, versions } = load("report.json");
    assert.ok(results.length > 10 && commit === null && versions.tinybench !== "unknown");
    assert.ok(load("action.json").every(({ name, unit, value }) => name && unit && Number.isFinite(value)));
  });
  step("types resolve for ESM and for CommonJS", () => {
    writeFileSync(
      path.join(app, "esm.mts"),
      'import { tokenLogprob, type Tensor } from "fapo-kernels";\nexport const f: (t: Tensor) => Tensor = (t) => tokenLogprob({ logits: t, tokenIds: new Int32Array(1) }).logprobs;\n',
    );
    writeFileSync(
      path.join(app, "cjs.cts"),
      'import kernels = require("fapo-kernels");\nexport const d: string = kernels.devices().cpu.isa;\n',
    );
    run(
      process.execPath,
      [
        path.join(root, "node_modules/typescript/bin/tsc"),
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--skipLibCheck",
        "false",
        "--types",
        "",
        "esm.mts",
        "cjs.cts",
      ],
      { cwd: app },
    );
  });
  step("without a driver devices() says why there is no CUDA", () => {
    const said = evaluate(
      "module",
      'import { devices } from "fapo-kernels"; console.log(JSON.stringify(devices().cuda));',
    );
    const { available, reason, devices } = JSON.parse(said);
    assert.ok(available ? devices.length > 0 : reason.length > 0, said);
    console.log(`     ${available ? devices.map(({ name }) => name).join(", ") : reason}`);
  });
  step("no published file has a symbol of the emulated GPU", () => {
    for (const file of readdirSync(path.join(root, folder))) {
      const symbols = run("nm", ["-C", "-D", path.join(folder, file)]) + run("strings", [path.join(folder, file)]);
      assert.ok(!/cuda_emu/.test(symbols), file);
    }
  });
  step("without a prebuilt file it says so", () => {
    rmSync(path.join(app, "node_modules/fapo-kernels/prebuilds"), { recursive: true });
    const said = evaluate(
      "module",
      'import { devices } from "fapo-kernels"; try { devices(); } catch (e) { console.log(e.code); }',
    );
    assert.equal(said.trim(), "ERR_ADDON_NOT_FOUND");
  });
  console.log(`${passed} passed, 0 failed`);
} catch (error) {
  console.error(`FAIL ${error.message}`);
  console.log(`${passed} passed, 1 failed`);
  process.exitCode = 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}
