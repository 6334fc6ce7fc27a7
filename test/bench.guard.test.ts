/** The guard of the benchmarks: an op that became slower fails it by name, and nothing else does. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type { BenchCase } from "#bench/case.js";
import { type Baseline, baselineOf, guardedCases, lossesOf, sentence, timesSlower } from "#bench/guard.js";
import { title } from "#bench/report.js";
import { ops } from "#bench/suite.js";

/** The op, called twice as often as it should be. */
function slowed(one: BenchCase): BenchCase {
  return {
    ...one,
    prepare() {
      const prepared = one.prepare();
      return {
        ...prepared,
        call() {
          prepared.call();
          prepared.call();
        },
      };
    },
  };
}

test("a planted slowdown fails, named; the ops beside it do not", async () => {
  const names = ["tokenLogprob 64x20000 bfloat16", "fusedPolicyLoss (in place) 64x20000 bfloat16"];
  const options = { shapes: [[64, 20000]], dtypes: ["bfloat16"], quick: true, device: "cpu" } as const;
  const cases = ops.flatMap((op) => op.cases(options)).filter((one) => names.includes(title(one)));
  assert.equal(cases.length, 2);
  const baseline = await baselineOf(cases);
  const losses = await lossesOf(
    cases.map((one) => (one.op === "tokenLogprob" ? slowed(one) : one)),
    baseline,
  );
  assert.deepEqual(
    losses.map(({ name }) => name),
    names.slice(0, 1),
  );
  assert.ok(losses[0]!.times > 1.5 && losses[0]!.times < 2.7, `${losses[0]!.times}`);
  assert.match(sentence(losses[0]!), /^tokenLogprob 64x20000 bfloat16: [12]\.\d\d times slower \(floor .+ -> .+\)$/);
});

test("a loss counts as far as every yardstick shows it", () => {
  assert.equal(timesSlower({ floor: 1, plain: 0.01 }, { floor: 3, plain: 0.02 }), 2);
  assert.equal(timesSlower({ floor: 1, plain: 0.01 }, { floor: 3, plain: 0.01 }), 1);
  assert.equal(timesSlower({ floor: 1 }, { floor: 1.5, plain: 0.01 }), 1.5);
});

test("every op is guarded, and has a baseline in each class of machines", () => {
  const cases = guardedCases();
  assert.deepEqual(new Set(cases.map(({ op }) => op)), new Set([...ops.map(({ op }) => op), "tokenLogprobBackward"]));
  const committed = readFileSync(new URL("../../bench/guard.json", import.meta.url), "utf8");
  for (const [machine, baseline] of Object.entries(JSON.parse(committed) as Record<string, Baseline>)) {
    assert.deepEqual(Object.keys(baseline).sort(), cases.map(title).sort(), machine);
  }
});

test("the command writes a baseline, passes against it, and fails against a faster one", () => {
  const script = fileURLToPath(new URL("../../scripts/bench-guard.mjs", import.meta.url));
  const folder = mkdtempSync(join(tmpdir(), "fapo-guard-"));
  const file = join(folder, "guard.json");
  const name = "fapoPenalty 8192 float32";
  const guard = (...args: string[]): { status: number | null; stdout: string } =>
    spawnSync(process.execPath, [script, "--file", file, "--filter", name, ...args], { encoding: "utf8" });
  try {
    writeFileSync(file, "{}");
    const unknown = guard();
    assert.match(unknown.stdout, /no baseline for this class of machines, nothing compared; --update writes one\n$/);
    assert.equal(unknown.status, 0);

    assert.match(guard("--update").stdout, /: 1 baselines written\n$/);
    const pass = guard();
    assert.match(pass.stdout, /: 0 of 1 cases became slower than allowed/);
    assert.equal(pass.status, 0);

    const classes = JSON.parse(readFileSync(file, "utf8")) as Record<string, Baseline>;
    const [machine] = Object.keys(classes);
    const { plain } = classes[machine!]![name]!;
    writeFileSync(file, JSON.stringify({ [machine!]: { [name]: { plain: plain! / 4 } } }));
    const fail = guard();
    assert.match(fail.stdout, /^fapoPenalty 8192 float32: \d\.\d\d times slower/);
    assert.equal(fail.status, 1);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
