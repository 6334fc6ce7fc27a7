/** The benchmarks: fair inputs, baselines that compute the same as the ops, a run that leaves a full report. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import * as api from "fapo-kernels";
import { policyLoss, tokenLogprob } from "fapo-kernels";
import type { ActionEntry } from "#bench/action.js";
import { leastShare } from "#bench/bars.js";
import { expectClose, floatDTypes } from "#bench/case.js";
import { policyBatch, vocabBatch } from "#bench/data.js";
import { chartsOf, floorChart, peersChart } from "#bench/docs/charts.js";
import { section } from "#bench/docs/table.js";
import { floor } from "#bench/floor.js";
import { takeTurns } from "#bench/harness.js";
import { cudaExtraBytes, peakExtraBytes } from "#bench/memory.js";
import type { Report } from "#bench/report.js";
import { onCuda, onHost } from "#bench/sampler.js";
import { ops } from "#bench/suite.js";
import { forEachDevice } from "./support.ts";

const cli = fileURLToPath(new URL("../../dist/cli.js", import.meta.url));

function bench(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [cli, "bench", ...args], { encoding: "utf8", timeout: 120_000 });
}

forEachDevice("the memory floor runs on every device, whatever the number of bytes", ({ name }) => {
  for (const kind of ["read", "readWrite", "copy", "plainCopy"] as const) {
    for (const bytes of [100_012, 1 << 20, 16]) floor(kind, bytes, name)();
  }
  assert.equal(api.synchronize(name), undefined);
});

test("plain TypeScript and the op agree, for every benchmark that has both", () => {
  // More rows than the baseline gets, and as many; 1,003 columns are no multiple of any vector.
  const shapes = [
    [5, 1003],
    [2, 1003],
  ] as const;
  const cases = ops.flatMap((op) => op.cases({ shapes, dtypes: floatDTypes, quick: true, device: "cpu" }));
  const checked = new Set<string>();
  for (const one of cases) {
    const { peers } = one.prepare();
    for (const peer of peers) {
      peer.check();
      checked.add(one.op);
    }
  }
  assert.deepEqual([...checked].sort(), entryPoints());
});

/** Every function that the native ops have in the public API: what is exported by both of lib/ops/x.ts and lib/index.ts. */
function entryPoints(): string[] {
  const read = (file: string): string => readFileSync(new URL(`../../${file}`, import.meta.url), "utf8");
  const ops = read("CMakeLists.txt")
    .match(/set\(OPS ([a-z_ ]+)\)/)![1]!
    .split(" ");
  const names = ops.flatMap((op) => {
    const camel = op.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    return [...read(`lib/ops/${camel}.ts`).matchAll(/^export function (\w+)/gm)].map(([, name]) => name!);
  });
  return names.filter((name) => name in api).sort();
}

test("masked rows and rows without a gradient have benchmarks, and masked rows do not count as bytes", () => {
  const bytes = new Map<string, number>();
  for (const { cases } of ops) {
    for (const one of cases({ shapes: [[32, 1000]], dtypes: ["bfloat16"], quick: true, device: "cpu" })) {
      if (one.shape === "32x1000") bytes.set(`${one.op} ${one.variant}`, one.bytes);
    }
  }
  assert.equal(bytes.get("tokenLogprob half masked"), 16 * 1000 * 2);
  assert.equal(bytes.get("fusedPolicyLoss in place, half masked"), (16 + 32) * 1000 * 2);
  assert.equal(bytes.get("fusedPolicyLoss in place, zero advantages"), 2 * 32 * 1000 * 2);
});

test("a wrong result is not timed", () => {
  assert.throws(() => expectClose("x", [1, 2.1], [1, 2], { atol: 0, rtol: 0.01 }), /x\[1\]: the op says 2.1/);
  assert.throws(() => expectClose("x", [Number.NaN], [1], { atol: 1, rtol: 1 }), /x\[0\]/);
});

test("token ids are sampled from the softmax, and no row is clipped", () => {
  const batch = vocabBatch([2000, 400], "float32", "cpu");
  const { logits, tokenIds } = batch;
  const { logprobs, entropy } = tokenLogprob({ logits, tokenIds, entropy: true });
  const mean = (values: ArrayLike<number>): number => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
  const [surprise, expected] = [-mean(logprobs.data), mean(entropy!.data)];
  assert.ok(expected > 0.5, `mean entropy ${expected}`);
  assert.ok(Math.abs(surprise - expected) < 0.1 * expected, `mean surprise ${surprise}, mean entropy ${expected}`);

  const { metrics, gradLogprobs } = policyLoss({ logprobs, ...policyBatch(batch) });
  assert.equal(metrics.clipFractionHigh.item() + metrics.clipFractionLow.item(), 0);
  assert.ok(gradLogprobs.data.every((grad) => grad !== 0));
});

test("logits are restored to the bit", () => {
  for (const dtype of floatDTypes) {
    const { logits, restore } = vocabBatch([3, 100], dtype, "cpu");
    const before = logits.data.slice();
    logits.data.fill(0);
    restore();
    assert.deepEqual(logits.data, before);
  }
});

test("contenders take turns, and are restored before every call that is timed", async () => {
  const log: string[] = [];
  const contenders = ["a", "b"].map((name) => ({
    name,
    sample: onHost(() => void log.push(name)),
    restore: () => void log.push(`restore ${name}`),
  }));
  const times = await takeTurns(contenders, { rounds: 7, maxSeconds: 60, minSampleMs: 0, warmupMs: 0 });
  const round = ["restore a", "a", "restore b", "b"];
  assert.deepEqual(log.slice(-7 * round.length), Array(7).fill(round).flat());
  for (const { wall, cpu } of times.values()) assert.deepEqual([wall.length, cpu.length], [7, 7]);
});

test("a quick run prints every op and writes a report with every field", () => {
  const folder = mkdtempSync(join(tmpdir(), "fapo-bench-"));
  try {
    const file = join(folder, "report.json");
    const action = join(folder, "action.json");
    const flags = ["--quick", "--shapes", "8x2000", "--threads", "1"];
    const { status, stdout, stderr } = bench(...flags, "--json", file, "--github-action-benchmark", action);
    assert.equal(status, 0, stderr);
    for (const { op } of ops) assert.match(stdout, new RegExp(`^${op}`, "m"));

    const report = JSON.parse(readFileSync(file, "utf8")) as Report;
    assert.equal(report.schema, 1);
    assert.equal(report.quick, true);
    assert.match(report.date, /^\d{4}-\d\d-\d\dT/);
    assert.match(report.command, /^npx fapo-kernels bench --quick/);
    assert.match(report.machine.isa, /^(baseline|avx2|avx512)$/);
    assert.ok(report.machine.cores >= 1 && report.machine.cpu !== "" && report.machine.os !== "");
    assert.equal(report.versions.node, process.versions.node);
    assert.notEqual(report.versions.tinybench, "unknown");
    for (const result of report.results) {
      const what = `${result.op} ${result.variant} ${result.shape} ${result.dtype}`;
      assert.equal(result.clock, result.overhead ? "wall" : "cpu", what);
      assert.ok(result.rounds >= 3 && result.bytes > 0 && result.gbPerSecond >= 0, what);
      assert.ok(result.wallMs.min <= result.wallMs.median && result.wallMs.median > 0, what);
      assert.ok(result.cpuMs.median >= 0, what);
      if (result.floor) assert.ok(result.floor.share >= 0 && result.floor.ms >= 0, what);
      if (process.platform === "linux") assert.ok(result.peakExtraBytes! >= 0, what);
      for (const peer of result.peers) assert.ok(peer.ms >= 0 && peer.scale >= 1, what);
    }
    const fused = report.results.find(({ op, variant }) => op === "fusedPolicyLoss" && variant === "in place")!;
    assert.equal(fused.floor?.kind, "readWrite");
    assert.equal(fused.bytes, 2 * 8 * 2000 * 4);
    assert.equal(fused.peers[0]?.name, "plain TypeScript");

    const entries = JSON.parse(readFileSync(action, "utf8")) as ActionEntry[];
    assert.equal(new Set(entries.map(({ name }) => name)).size, entries.length, "names are unique");
    const floored = report.results.filter(({ floor }) => floor);
    assert.equal(entries.length, report.results.length + floored.length);
    for (const { name, unit, value, range, extra } of entries) {
      assert.ok(name !== "" && unit !== "" && value >= 0 && typeof range === "string" && extra !== "", name);
    }
    const times = entries.find(({ name }) => name === "tokenLogprob 8x2000 float32, 1 thread")!;
    assert.equal(times.value, report.results[0]!.cpuMs.median);

    const table = section(report, "report.json");
    assert.match(table, /\| `fusedPolicyLoss`, in place \| 8x2000 \| float32 \| 1 \|/);
    assert.match(table, /Overhead of a call/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("bars are for one thread and buffers beyond the caches", () => {
  const result = { op: "tokenLogprob", variant: "", dtype: "float32", threads: 1, bytes: 3e8 };
  const share = (change: object, isa = "avx512"): number | undefined =>
    leastShare({ ...result, ...change } as Report["results"][number], isa);
  assert.equal(share({}), 1 / 1.1);
  assert.equal(share({}, "avx2"), 1 / 1.7);
  assert.equal(share({}, "baseline"), undefined);
  assert.equal(share({ threads: 2 }), undefined);
  assert.equal(share({ bytes: 1e6 }), undefined);
});

test("memory that a call takes and gives back is seen at its peak", { skip: process.platform !== "linux" }, () => {
  const bytes = peakExtraBytes(() => {
    assert.equal(new Uint8Array(64e6).fill(1)[5], 1);
  });
  assert.ok(bytes! > 60e6 && bytes! < 90e6, `${bytes}`);
});

test("charts show every peer and every op, and hold no text that could be taken for markup", () => {
  const summary = { median: 10, min: 9, p25: 9.5, p75: 11 };
  const result = {
    op: "tokenLogprob",
    variant: "",
    device: "cpu",
    shape: "512x151936",
    dtype: "float32",
    threads: 2,
    clock: "wall",
    rounds: 9,
    wallMs: summary,
    cpuMs: summary,
    bytes: 3e8,
    gbPerSecond: 30,
    overhead: false,
    floor: { kind: "read", ms: 9, minMs: 9, gbPerSecond: 33, share: 0.875 },
    peers: [
      { name: "plain TypeScript", ms: 900, minMs: 900, scale: 1, ratio: 90 },
      { name: "PyTorch 2: a < b & c", ms: 150, minMs: 150, scale: 1, ratio: 15 },
    ],
  } as const;
  const report: Report = {
    schema: 1,
    date: "2026-01-01T00:00:00Z",
    command: "npm run bench:peers",
    quick: false,
    machine: { cpu: "A CPU", cores: 2, memoryGiB: 8, os: "Linux", arch: "x64", isa: "avx2" },
    versions: { "fapo-kernels": "1.0.0", node: "20", v8: "11", tinybench: "6" },
    commit: "0123456789abcdef",
    dirty: false,
    notes: [],
    results: [{ ...result, peers: [...result.peers] }],
  };
  assert.deepEqual(chartsOf(report), ["floor", "peers"]);
  const peers = peersChart(report, "r.json");
  assert.match(peers, />PyTorch: a &lt; b &amp; c<.*\n.*\n.*>15\.0x</);
  assert.match(peers, />90\.0x</);
  const floor = floorChart(report, "r.json");
  assert.match(floor, /<title>tokenLogprob, 512x151936, float32, 2 threads: 88 %<\/title>/);
  for (const chart of [peers, floor]) {
    for (const words of ["A CPU, avx2", "2026-01-01, commit 0123456789; bench/results/r.json", "npm run bench:peers"]) {
      assert.ok(chart.includes(words), words);
    }
  }
});

test("the tables and charts in the docs are those of the committed results", () => {
  const script = fileURLToPath(new URL("../../scripts/bench-docs.mjs", import.meta.url));
  const { status, stdout } = spawnSync(process.execPath, [script, "--check"], { encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("other implementations take part where they are, and are left out in a line where they are not", () => {
  const { status, stdout, stderr } = bench(
    "--quick",
    "--peers",
    "--filter",
    "tokenLogprob 8x2000 float32",
    ...[["--shapes", "8x2000", "--threads", "1"]].flat(),
  );
  assert.equal(status, 0, stderr);
  for (const [script, name] of [
    ["torch_cpu.py", "PyTorch"],
    ["onnxruntime.mjs", "onnxruntime-node"],
    ["tfjs.mjs", "TensorFlow.js"],
  ] as const) {
    const present = new RegExp(`^ {4}${name} .*: .+, [\\d.e+]+ times the op's`, "m").test(stdout);
    const absent = stdout.match(new RegExp(`^${script} is left out: .+$`, "m"));
    assert.ok(present !== (absent !== null), `${name}: ${stdout}`);
  }
});

const { cuda } = api.devices();

test("an emulated GPU is compared and never timed", { skip: !(cuda.available && cuda.emulated) }, () => {
  const folder = mkdtempSync(join(tmpdir(), "fapo-bench-"));
  try {
    const file = join(folder, "report.json");
    const { status, stdout, stderr } = bench("--devices", "cuda:0", "--json", file);
    assert.equal(status, 0, stderr);
    for (const op of entryPoints()) {
      assert.match(stdout, new RegExp(`^${op} .*, cuda:0, emulated: agrees with plain TypeScript; not timed$`, "m"));
    }
    assert.deepEqual((JSON.parse(readFileSync(file, "utf8")) as Report).results, []);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("what a GPU takes is told by its events", { skip: !cuda.available }, async () => {
  const device = "cuda:0";
  const [source, out] = [api.zeros([64, 1000], { device }), api.zeros([64, 1000], { device, dtype: "bfloat16" })];
  const sample = onCuda(() => void api.cast(source, "bfloat16", { out }), device);
  const [one, two] = [await sample(1), await sample(2)];
  assert.ok(one.wall > 0 && two.wall > 0 && one.cpu >= 0);
  const keep: unknown[] = [];
  assert.equal(
    cudaExtraBytes(() => void api.cast(source, "bfloat16", { out }), device),
    0,
  );
  assert.ok(cudaExtraBytes(() => void keep.push(api.cast(source, "bfloat16")), device) >= 128_000);
});

test("flags are checked", () => {
  for (const [args, message] of [
    [["--ops", "nope"], /--ops: "nope" is none/],
    [["--shapes", "8"], /--shapes: "8" is none/],
    [["--devices", "gpu"], /--devices: "gpu" is none/],
    [["--threads", "0"], /--threads: "0" is none/],
    [["--filter", "nothing like this"], /no benchmark matches/],
    [["--bogus"], /bogus/],
  ] as const) {
    const { status, stderr } = bench(...args);
    assert.equal(status, 1);
    assert.match(stderr, message);
  }
  const help = bench("--help");
  assert.equal(help.status, 0);
  assert.match(help.stdout, /--quick/);
});
