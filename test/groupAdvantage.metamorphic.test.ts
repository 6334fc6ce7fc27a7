/** Relations between calls of groupAdvantage, and FAPO's own claims about its advantages. */
import assert from "node:assert/strict";
import { type AdvantageScale, type Baseline, fapoAdvantage, groupAdvantage, type Singleton } from "fapo-kernels";
import fc from "fast-check";
import { assertSameOutputs, close, shuffled, times } from "./support/ops.ts";
import { assertSameBits, forEachDevice, rng, type TestDevice } from "./support.ts";

const baseline = fc.constantFrom<Baseline>("mean", "leave-one-out", "none");
const scale = fc.constantFrom<AdvantageScale>("group-std", "batch-std", "none");
const singleton = fc.constantFrom<Singleton>("zero", "raw");
const ddof = fc.constantFrom(0, 1);
const convention = fc.record({ baseline, scale, singleton, ddof });
/** Multiples of 1/64, so that shifts and scalings by powers of two are exact in float32. */
const reward = fc.integer({ min: -128, max: 128 }).map((value) => value / 64);
const group = fc.array(reward, { minLength: 1, maxLength: 10 });

function advantagesOf(device: TestDevice, options: Parameters<typeof groupAdvantage>[0]): Float32Array {
  return device.read(groupAdvantage({ ...options, device: device.name }).advantages) as Float32Array;
}

forEachDevice("rewards times 2^n plus b, epsilon times 2^n: the same advantages", (device) => {
  const shape = fc.record({
    rewards: group,
    power: fc.integer({ min: -8, max: 8 }),
    shift: fc.integer({ min: -9, max: 9 }),
  });
  const property = fc.property(
    shape,
    ddof,
    fc.constantFrom<Baseline>("mean", "leave-one-out"),
    (input, ddof, baseline) => {
      const { rewards, power, shift } = input;
      const a = 2 ** power;
      const options = { groupSize: rewards.length, baseline, ddof };
      const plain = advantagesOf(device, { rewards, ...options, epsilon: 1e-6 });
      const moved = advantagesOf(device, { rewards: rewards.map((r) => a * r + shift), ...options, epsilon: a * 1e-6 });
      close("affine", moved, plain, { atol: 1e-7, rtol: 1e-6 });
      const unscaled = { ...options, scale: "none" } as const;
      const [raw, scaled] = [rewards, rewards.map((r) => a * r)].map((r) =>
        advantagesOf(device, { rewards: r, ...unscaled }),
      );
      close(
        "affine, no scale",
        scaled!,
        raw!.map((value) => value * a),
        { atol: 1e-7 * a, rtol: 1e-6 },
      );
    },
  );
  fc.assert(property, { seed: 21, numRuns: device.runs(4000) });
});

forEachDevice("the advantages of a group sum to 0 and keep the order of the rewards", (device) => {
  const property = fc.property(group, fc.constantFrom<AdvantageScale>("group-std", "none"), (rewards, scale) => {
    const advantages = advantagesOf(device, { rewards, groupSize: rewards.length, scale });
    const largest = advantages.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const sum = advantages.reduce((total, value) => total + value, 0);
    assert.ok(Math.abs(sum) <= rewards.length * 2 ** -23 * largest, `sum ${sum}`);
    for (const [i, first] of rewards.entries()) {
      for (const [j, second] of rewards.entries()) {
        if (first < second) assert.ok(advantages[i]! < advantages[j]!);
        if (first === second) assert.ok(Object.is(advantages[i], advantages[j]));
      }
    }
  });
  fc.assert(property, { seed: 22, numRuns: device.runs(4000) });
});

forEachDevice("responses permuted inside their group: advantages permuted within rounding", (device) => {
  const property = fc.property(group, convention, fc.nat(), (rewards, options, seed) => {
    const order = shuffled(rng(seed), [...rewards.keys()]);
    const plain = advantagesOf(device, { rewards, groupSize: rewards.length, ...options });
    const permuted = advantagesOf(device, {
      rewards: order.map((i) => rewards[i]!),
      groupSize: rewards.length,
      ...options,
    });
    // These rewards add up exactly in float64, so that the order cannot show.
    close(
      "permuted",
      permuted,
      order.map((i) => plain[i]!),
      { atol: 0, rtol: 2 ** -23 },
    );
  });
  fc.assert(property, { seed: 23, numRuns: device.runs(4000) });
});

forEachDevice("groups relabelled and interleaved: the same bits", (device) => {
  const groups = fc.array(fc.array(reward, { maxLength: 6 }), { minLength: 1, maxLength: 6 });
  const property = fc.property(groups, convention, fc.nat(), (groups, options, seed) => {
    // The deviation of the batch is one sum over all groups, whose order is theirs.
    const scale = options.scale === "batch-std" ? "group-std" : options.scale;
    const random = rng(seed);
    const rewards = groups.flat();
    const ids = groups.flatMap((group, k) => group.map(() => k));
    const names = shuffled(random, [...groups.keys()]);
    // Interleave the groups, and keep the order within each.
    const queues = groups.map((_, k) => [...ids.keys()].filter((i) => ids[i] === k));
    const order = shuffled(random, ids).map((k) => queues[k]!.shift()!);
    const shared = { groups: groups.length, ...options, scale, device: device.name };
    const plain = groupAdvantage({ rewards, groupIds: ids, ...shared });
    const moved = groupAdvantage({
      rewards: order.map((i) => rewards[i]!),
      groupIds: order.map((i) => names[ids[i]!]!),
      ...shared,
    });
    const [before, after] = [device.read(plain.advantages), device.read(moved.advantages)];
    assertSameBits(
      after,
      Float32Array.from(order, (i) => before[i]!),
    );
    for (const name of ["groupMean", "groupStd", "zeroVariance"] as const) {
      const [was, is] = [device.read(plain[name]), device.read(moved[name])];
      for (const [k, label] of names.entries()) assert.ok(Object.is(was[k], is[label]));
    }
  });
  fc.assert(property, { seed: 24, numRuns: device.runs(3000) });
});

forEachDevice("one call is the same as a call per group", (device) => {
  const property = fc.property(fc.array(group, { minLength: 1, maxLength: 5 }), convention, (groups, options) => {
    const { scale, ...rest } = options;
    const own = { ...rest, scale: scale === "batch-std" ? "none" : scale } as const;
    const groupOffsets = [0];
    for (const group of groups) groupOffsets.push(groupOffsets.at(-1)! + group.length);
    const whole = advantagesOf(device, { rewards: groups.flat(), groupOffsets, ...own });
    const parts = groups.flatMap((rewards) => [
      ...advantagesOf(device, { rewards, groupSize: rewards.length, ...own }),
    ]);
    assertSameBits(whole, Float32Array.from(parts));
  });
  fc.assert(property, { seed: 25, numRuns: device.runs(2000) });
});

forEachDevice("taking a response out is the same as marking it invalid", (device) => {
  const marked = fc.array(fc.record({ reward, valid: fc.nat(1) }), { minLength: 1, maxLength: 12 });
  const property = fc.property(marked, convention, (responses, options) => {
    const kept = responses.filter((response) => response.valid);
    const valid = responses.map((response) => response.valid);
    const all = advantagesOf(device, {
      rewards: responses.map(({ reward, valid }) => (valid ? reward : Number.NaN)),
      valid,
      groupSize: responses.length,
      ...options,
    });
    const rewards = kept.map((response) => response.reward);
    const alone = advantagesOf(device, { rewards, groupOffsets: [0, rewards.length], ...options });
    assertSameBits(
      all.filter((_, i) => valid[i]),
      alone,
    );
  });
  fc.assert(property, { seed: 26, numRuns: device.runs(3000) });
});

// ---- the paper

/** How many responses of a group are fully correct, flawed and wrong. */
const counts = fc
  .record({ c: fc.nat(8), f: fc.integer({ min: 1, max: 8 }), w: fc.nat(8) })
  .filter(({ c, w }) => c + w > 0);
const lambdas = fc.integer({ min: 1, max: 128 }).map((value) => value / 32);

function classAdvantages(
  device: TestDevice,
  { c, f, w }: { c: number; f: number; w: number },
  flawedPenalty: number,
  conventionOptions: { ddof: number; epsilon: number },
): { correct: number; flawed: number; wrong: number; mean: number; std: number } {
  const size = c + f + w;
  const result = fapoAdvantage({
    correct: times(size, (i) => Number(i < c + f)),
    flawed: times(size, (i) => Number(i >= c && i < c + f)),
    flawedPenalty,
    groupSize: size,
    ...conventionOptions,
    device: device.name,
  });
  const advantages = device.floats(result.advantages);
  return {
    correct: advantages[0]!,
    flawed: advantages[c]!,
    wrong: advantages[size - 1]!,
    mean: device.floats(result.groupMean)[0]!,
    std: device.floats(result.groupStd)[0]!,
  };
}

forEachDevice(
  "a flawed positive is pushed down exactly when rho > 2 / lambda - 1, i.e. 1 - lambda < mean",
  (device) => {
    const property = fc.property(counts, lambdas, ddof, (group, lambda, ddof) => {
      const { flawed, mean } = classAdvantages(device, group, lambda, { ddof, epsilon: 1e-6 });
      // In whole numbers: lambda = n / 32.
      const n = lambda * 32;
      const gap = n * (group.c + group.w) - 64 * group.w;
      assert.equal(Math.sign(flawed) + 0, -Math.sign(gap) + 0, `flawed ${flawed}`);
      if (group.w > 0) assert.equal(gap > 0, group.c / group.w > 2 / lambda - 1 + 1e-12);
      const distance = mean - (1 - lambda);
      if (Math.abs(distance) > 1e-6) assert.equal(distance > 0, gap > 0);
    });
    fc.assert(property, { seed: 31, numRuns: device.runs(6000) });
  },
);

forEachDevice("against GRPO, fully correct responses gain and wrong ones never weigh more", (device) => {
  const mixed = counts.filter(({ c, w }) => c > 0 && w > 0);
  const paper = { ddof: 0, epsilon: 0 };
  const property = fc.property(mixed, lambdas, (group, lambda) => {
    const grpo = classAdvantages(device, group, 0, paper);
    const fapo = classAdvantages(device, group, lambda, paper);
    assert.ok(fapo.correct > grpo.correct, `${fapo.correct} > ${grpo.correct}`);
    assert.ok(Math.abs(fapo.wrong) <= Math.abs(grpo.wrong) * (1 + 2 ** -23));
    // Above 4 / lambda - 1 the flawed ones weigh more than before, against what the paper says.
    const rho = group.c / group.w;
    if (rho > 4 / lambda - 1 + 1e-9) assert.ok(Math.abs(fapo.flawed) > Math.abs(grpo.flawed));
  });
  fc.assert(property, { seed: 32, numRuns: device.runs(6000) });
});

forEachDevice("a group without a wrong answer gets advantages that do not depend on lambda", (device) => {
  const property = fc.property(
    fc.integer({ min: 1, max: 15 }),
    fc.integer({ min: 1, max: 15 }),
    lambdas,
    (c, f, lambda) => {
      const { correct, flawed } = classAdvantages(device, { c, f, w: 0 }, lambda, { ddof: 0, epsilon: 0 });
      close("no wrong answer", [correct, flawed], [Math.sqrt(f / c), -Math.sqrt(c / f)]);
    },
  );
  fc.assert(property, { seed: 33, numRuns: device.runs(2000) });
});

forEachDevice(
  "the deviation is 4 beta (1 - beta) + lambda gamma (1 - gamma) (lambda - 4 / (rho + 1)), rooted",
  (device) => {
    const property = fc.property(
      counts.filter(({ w }) => w > 0),
      lambdas,
      (group, lambda) => {
        const size = group.c + group.f + group.w;
        const [beta, gamma, rho] = [group.w / size, group.f / size, group.c / group.w];
        const variance = 4 * beta * (1 - beta) + lambda * gamma * (1 - gamma) * (lambda - 4 / (rho + 1));
        const { std } = classAdvantages(device, group, lambda, { ddof: 0, epsilon: 0 });
        close("variance", [std ** 2], [variance], { atol: 1e-6, rtol: 1e-6 });
      },
    );
    fc.assert(property, { seed: 34, numRuns: device.runs(2000) });
  },
);

forEachDevice(
  "lambda 2 makes a flawed positive as bad as a wrong answer, lambda 0 as good as a right one",
  (device) => {
    const verdicts = { correct: [1, 1, 1, 0, 0, 1], flawed: [0, 1, 1, 0, 1, 0], groupSize: 6, device: device.name };
    const harsh = fapoAdvantage({ ...verdicts, flawedPenalty: 2 });
    const mild = fapoAdvantage({ ...verdicts, flawedPenalty: 0 });
    const wrong = { ...verdicts, flawed: times(6, () => 0) };
    assertSameOutputs(device, harsh, fapoAdvantage({ ...wrong, correct: [1, 0, 0, 0, 0, 1] }));
    assertSameOutputs(device, mild, fapoAdvantage(wrong));
  },
);
