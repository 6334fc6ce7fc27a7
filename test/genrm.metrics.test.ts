import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  correctedFlawedRatio,
  type Flags,
  flawedPositiveMetrics,
  genrmReward,
  judgedShiftPoint,
  judgeQuality,
  majorityVote,
  processMetrics,
  stepMetrics,
  summarizeLatency,
  wilsonInterval,
} from "fapo-kernels/genrm";

const near = (actual: number, expected: number, tolerance = 1e-12) =>
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} is not ${expected}`);

/** Labels and step counts of the FAPO authors' public sample of FAPO-Critic-85K (yyDing1/FAPO, Apache-2.0): no texts. */
const critic = readFileSync(new URL("../../test/fixtures/fapo-critic-labels.jsonl", import.meta.url), "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line));
const truth: number[] = critic.map((row) => row.reward_model.ground_truth);
const steps: number[] = critic.map((row) => row.extra_info.total_steps);

test("the judge's reward is that of the paper, and of the reference code", () => {
  const cases: [number | null, number, number, number][] = [
    [-1, -1, 7, 1],
    [3, -1, 7, -1],
    [-1, 3, 7, -1],
    [3, 3, 7, 1],
    [5, 3, 7, 0.7142857142857143],
    [3, 5, 7, 0.7142857142857143],
    [6, 0, 7, 0.1428571428571429],
    [7, 3, 7, -1],
    [-2, 3, 7, -1],
    [-2, -1, 7, -1],
    [null, -1, 7, -1],
    [Number.NaN, -1, 7, -1],
    [0.5, 0, 7, -1],
    [0, 0, 1, 1],
  ];
  const { rewards } = genrmReward({
    predicted: cases.map(([predicted]) => predicted),
    truth: cases.map(([, label]) => label),
    steps: cases.map(([, , n]) => n),
  });
  assert.deepEqual([rewards.dtype, rewards.shape], ["float32", [cases.length]]);
  assert.deepEqual(
    [...(rewards.data as Float32Array)],
    cases.map(([, , , reward]) => Math.fround(reward)),
  );
});

test("rewards are written into what an earlier call returned, and typed arrays are taken", () => {
  const out = genrmReward({ predicted: Int32Array.of(1, -2), truth: Int32Array.of(1, 0), steps: Int32Array.of(4, 4) });
  const again = genrmReward({ predicted: [-1, 2], truth: [-1, 0], steps: [4, 4], out });
  assert.equal(again, out);
  assert.deepEqual([...(out.rewards.data as Float32Array)], [1, 0.5]);
  assert.deepEqual(genrmReward({ predicted: out.rewards.shape, truth: [0], steps: [3] }).rewards.shape, [1]);
  assert.deepEqual(genrmReward({ predicted: [], truth: [], steps: [] }).rewards.shape, [0]);
});

test("genrmReward names the argument that is wrong", () => {
  const good = { predicted: [0, 0], truth: [0, 0], steps: [2, 2] };
  const wrong: [object, string][] = [
    [{ predict: [] }, "genrmReward: unknown option predict"],
    [{ truth: [0] }, "genrmReward: expected truth to be of 2 elements, like predicted, got [0]"],
    [{ truth: [0, 2] }, "genrmReward: expected truth[1] to be an integer from -1 to 1, got 2"],
    [{ steps: [2, 0] }, "genrmReward: expected steps[1] to be a positive integer, got 0"],
    [
      { steps: "22" },
      'genrmReward: expected steps to be an int32 tensor, an Int32Array or an array of numbers, got "22"',
    ],
    [{ out: {} }, "genrmReward: expected out to be what an earlier call returned, got an object (Object)"],
  ];
  for (const [change, message] of wrong) {
    assert.throws(() => genrmReward({ ...good, ...change } as never), { code: "ERR_INVALID_ARGUMENT", message });
  }
  const out = genrmReward({ predicted: [0], truth: [0], steps: [1] });
  assert.throws(() => genrmReward({ ...good, out }), {
    message: "genrmReward: expected out.rewards to be a float32 tensor [2], got a float32 tensor [1] on cpu",
  });
});

test("Wilson intervals are those of the literature", () => {
  // Newcombe (1998), table I, method 3.
  for (const [successes, count, low, high] of [
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ] as const) {
    const interval = wilsonInterval(successes, count);
    near(interval[0], low, 5e-5);
    near(interval[1], high, 5e-5);
  }
  assert.deepEqual(wilsonInterval(0, 0), [0, 1]);
  assert.equal(wilsonInterval(20, 20)[1], 1);
  assert.throws(() => wilsonInterval(3, 2), {
    message: "wilsonInterval: expected successes to be between 0 and 2, got 3",
  });
});

test("FlawedPositiveBench: right, wrong and missing verdicts, counted by hand", () => {
  const options = { predicted: [2, 0, -1, -1, 4, null, -2], truth: [2, 3, 1, -1, -1, 0, -1] };
  const { precision, recall, f1, unknown, count, ...rest } = flawedPositiveMetrics(options);
  assert.deepEqual([count, unknown, precision, recall, f1], [7, 2, 2 / 3, 2 / 4, 4 / 7]);
  assert.deepEqual([rest.truePositives, rest.falsePositives, rest.falseNegatives, rest.trueNegatives], [2, 1, 2, 2]);
  assert.ok(rest.f1Interval[0] < f1 && f1 < rest.f1Interval[1]);
  const flawed = flawedPositiveMetrics({ ...options, unknownVerdict: "flawed" });
  assert.deepEqual([flawed.precision, flawed.recall], [3 / 5, 3 / 4]);
  const excluded = flawedPositiveMetrics({ ...options, unknownVerdict: "exclude" });
  assert.deepEqual([excluded.count, excluded.precision, excluded.recall], [5, 2 / 3, 2 / 3]);
});

test("ProcessBench: the first error exactly, sound ones left alone, no verdict is wrong", () => {
  const metrics = processMetrics({ predicted: [2, 0, -1, -1, 4, null, -2], truth: [2, 3, 1, -1, -1, 0, -1] });
  assert.deepEqual([metrics.flawedCount, metrics.soundCount, metrics.unknown], [4, 3, 2]);
  assert.deepEqual([metrics.errorAccuracy, metrics.soundAccuracy], [1 / 4, 1 / 3]);
  near(metrics.f1, (2 * (1 / 4) * (1 / 3)) / (1 / 4 + 1 / 3));
});

test("empty classes give 0, never NaN", () => {
  for (const options of [
    { predicted: [], truth: [] },
    { predicted: [-1, -1], truth: [-1, -1] },
    { predicted: [0, 0], truth: [0, 0] },
    { predicted: [null], truth: [-1] },
  ]) {
    const all = [flawedPositiveMetrics(options), processMetrics(options), judgeQuality(options)];
    for (const value of all.flatMap((metrics) => Object.values(metrics).flat())) {
      assert.ok(typeof value === "boolean" || Number.isFinite(value));
    }
  }
  assert.equal(flawedPositiveMetrics({ predicted: [-1, -1], truth: [-1, -1] }).f1, 0);
  assert.throws(() => flawedPositiveMetrics({ predicted: [0], truth: [-2] }), {
    message: "flawedPositiveMetrics: expected truth[0] to be an integer from -1, got -2",
  });
  assert.throws(
    () => processMetrics({ predicted: [0], truth: [] }),
    /expected predicted to be of 0 elements, like truth/,
  );
});

test("the majority of the votes that are verdicts wins, the first among equals", () => {
  assert.equal(majorityVote([3, -1, 3]), 3);
  assert.equal(majorityVote([2, -1, -1, 2]), 2);
  assert.equal(majorityVote([null, -2, null, 4]), 4);
  assert.equal(majorityVote([null, -2]), null);
  assert.equal(majorityVote([]), null);
  assert.equal(majorityVote(Int32Array.of(-2, 1, 1)), 1);
});

test("on the 100 critic rows: the labels are perfect, planted errors are found to the last one", () => {
  assert.deepEqual([truth.length, truth.filter((label) => label === -1).length], [100, 50]);
  assert.deepEqual([Math.min(...steps), Math.max(...steps)], [1, 33]);

  const perfect = flawedPositiveMetrics({ predicted: truth, truth });
  assert.deepEqual([perfect.precision, perfect.recall, perfect.f1], [1, 1, 1]);
  const process = processMetrics({ predicted: truth, truth });
  assert.deepEqual([process.errorAccuracy, process.soundAccuracy, process.f1], [1, 1, 1]);
  assert.ok(
    (genrmReward({ predicted: truth, truth, steps }).rewards.data as Float32Array).every((reward) => reward === 1),
  );

  const planted: (number | null)[] = [...truth];
  const flawed = truth.flatMap((label, i) => (label === -1 ? [] : [i]));
  const sound = truth.flatMap((label, i) => (label === -1 ? [i] : []));
  for (const i of flawed.slice(0, 5)) planted[i] = -1; // missed
  const shifted = flawed
    .slice(5)
    .filter((i) => truth[i]! + 1 < steps[i]!)
    .slice(0, 10);
  for (const i of shifted) planted[i] = truth[i]! + 1; // found, one step late
  for (const i of sound.slice(0, 10)) planted[i] = 0; // false alarms
  for (const i of [sound[10]!, sound[11]!, flawed[49]!]) planted[i] = null; // no verdict
  const bench = flawedPositiveMetrics({ predicted: planted, truth });
  assert.deepEqual(
    [bench.truePositives, bench.falsePositives, bench.falseNegatives, bench.trueNegatives, bench.unknown],
    [44, 10, 6, 40, 3],
  );
  near(bench.precision, 44 / 54);
  near(bench.recall, 44 / 50);
  near(bench.f1, 88 / 104);
  const found = processMetrics({ predicted: planted, truth });
  near(found.errorAccuracy, 34 / 50);
  near(found.soundAccuracy, 38 / 50);
  const rewards = genrmReward({ predicted: planted, truth, steps }).rewards.data as Float32Array;
  const expected = 34 + 38 - (5 + 10 + 3) + shifted.reduce((sum, i) => sum + 1 - 1 / steps[i]!, 0);
  near(
    rewards.reduce((sum, reward) => sum + reward, 0),
    expected,
    1e-5,
  );
});

test("the judge's errors move the shift point as the formula says", () => {
  near(judgedShiftPoint(), 1);
  near(judgedShiftPoint({ flawedPenalty: 4 / 3 }), 0.5);
  near(judgedShiftPoint({ flawedPenalty: 2 / 3 }), 2);
  near(judgedShiftPoint({ recall: 0.95, falseAlarms: 0.05 }), 1.167, 5e-4);
  near(judgedShiftPoint({ recall: 0.914, falseAlarms: 0.1 }), 1.334, 5e-4);
  near(judgedShiftPoint({ recall: 0.979, falseAlarms: 0.4 }), 1.763, 5e-4);
  assert.equal(judgedShiftPoint({ recall: 0.3, falseAlarms: 0.3 }), Number.POSITIVE_INFINITY);
  assert.equal(judgedShiftPoint({ flawedPenalty: 0 }), Number.POSITIVE_INFINITY);

  // By definition: expected rewards of a group under the judge, and the sign of a flawed one's advantage.
  for (const [lambda, r, f] of [
    [1, 0.914, 0.1],
    [4 / 3, 0.979, 0.4],
    [0.5, 0.8, 0.2],
  ] as const) {
    const shift = judgedShiftPoint({ flawedPenalty: lambda, recall: r, falseAlarms: f });
    for (const [rho, sign] of [
      [shift * 0.999, 1],
      [shift * 1.001, -1],
    ] as const) {
      const gamma = 0.2;
      const beta = (1 - gamma) / (1 + rho);
      const mean = rho * beta * (1 - lambda * f) + gamma * (1 - lambda * r) - beta;
      assert.equal(Math.sign(1 - lambda * r - mean), sign);
    }
  }
  assert.throws(() => judgedShiftPoint({ recall: 1.1 }), /expected recall to be between 0 and 1, got 1.1/);
});

test("an over-critic judge is told from one that errs as often either way", () => {
  const labels = Array.from({ length: 100 }, (_, i) => (i % 2 ? -1 : 0));
  const judged = (misses: number, alarms: number) =>
    labels.map((label, i) => (label === 0 ? (i / 2 < misses ? -1 : 0) : (i - 1) / 2 < alarms ? 3 : -1));
  const fair = judgeQuality({ predicted: judged(5, 6), truth: labels });
  assert.deepEqual([fair.recall, fair.falseAlarms, fair.overCritic], [0.9, 0.12, false]);
  const critic = judgeQuality({ predicted: judged(1, 20), truth: labels });
  assert.deepEqual([critic.recall, critic.falseAlarms, critic.flagRate, critic.flawedRate], [0.98, 0.4, 0.69, 0.5]);
  assert.ok(critic.overCritic);
  near(critic.excess, 19 / Math.sqrt(21));
  near(correctedFlawedRatio(0.69, critic), 0.5);
  assert.equal(correctedFlawedRatio(0.1, critic), 0);
  assert.ok(Number.isNaN(correctedFlawedRatio(0.5, { recall: 0.4, falseAlarms: 0.4 })));
});

test("a step's metrics are a flat object of numbers, with warnings beside it", () => {
  const batch = {
    alpha: 0.5,
    beta: 0.25,
    gamma: 0.25,
    rho: 2,
    shiftPoint: 1,
    pastShift: true,
    pastShiftShare: 0.6,
    flawedPositiveRatio: 1 / 3,
    unknownRate: 0.1,
    zeroVarianceShare: 0.2,
  };
  const flags = (sound: number, flawed: number, unknown: number, ms: number[]): Flags => ({
    flawed: new Int8Array(),
    steps: new Int32Array(),
    ms: Float64Array.from([...ms, Number.NaN]),
    counts: { judged: sound + flawed + unknown, sound, flawed, unknown },
    codes: {},
  });
  const groups = [flags(4, 3, 1, [10, 20, 30]), flags(2, 1, 1, [40])];
  const { metrics, warnings } = stepMetrics({ progress: { batch }, flags: groups });
  assert.deepEqual(warnings, []);
  assert.equal(Object.keys(metrics).length, 17);
  near(metrics.judgeLatencyP99!, 39.7);
  assert.deepEqual(metrics, {
    ...metrics,
    alpha: 0.5,
    beta: 0.25,
    gamma: 0.25,
    rho: 2,
    shiftPoint: 1,
    pastShiftShare: 0.6,
    flawedPositiveRatio: 1 / 3,
    unknownRate: 0.1,
    zeroVarianceShare: 0.2,
    judged: 12,
    judgeUnknown: 2,
    judgeFlagRate: 0.4,
    judgeLatencyMean: 25,
    judgeLatencyP50: 25,
    judgeLatencyP90: 37,
    judgeLatencyMax: 40,
  });

  const labels = [...Array(50).fill(0), ...Array(50).fill(-1)];
  const critic = judgeQuality({ predicted: [...Array(70).fill(0), ...Array(30).fill(-1)], truth: labels });
  const warned = stepMetrics({ progress: { batch }, flags: flags(40, 60, 0, []), quality: critic });
  assert.deepEqual(warned.warnings, [
    "over-critic judge: it flags 70.0 % of 100 labelled answers, of which 50.0 % are flawed",
  ]);
  near(warned.metrics.judgedShiftPoint!, 1 / 0.6);
  near(warned.metrics.correctedFlawedPositiveRatio!, 0.2 / 0.6);
  const fair = judgeQuality({ predicted: [...Array(40).fill(0), ...Array(60).fill(-1)], truth: labels });
  const drifted = stepMetrics({ progress: { batch }, flags: flags(0, 400, 0, []), quality: fair });
  assert.match(
    drifted.warnings.join(),
    /^over-critic judge: it flags 100.0 % of this step, more than its recall 80.0 %/,
  );
});

test("latency summaries leave out what was not measured", () => {
  const { count, p50, max, mean } = summarizeLatency([3, Number.NaN, 1, 2]);
  assert.deepEqual([count, p50, max, mean], [3, 2, 3, 2]);
  assert.deepEqual(summarizeLatency([]), { count: 0, mean: 0, p50: 0, p90: 0, p99: 0, max: 0 });
});
