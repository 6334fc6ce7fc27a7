import assert from "node:assert/strict";
import {
  type AdvantageScale,
  type Baseline,
  type GroupAdvantageResult,
  groupAdvantage,
  type Singleton,
} from "fapo-kernels";
import { type AdvantageCase, advantageReference } from "./reference/advantage.ts";
import {
  assertSameOutputs,
  close,
  type Grouping,
  inSomeForm,
  integer,
  pick,
  poisoned,
  someGrouping,
  times,
} from "./support/ops.ts";
import { assertRefusals, badArray, badCall, badChoice, badNumber, badOut } from "./support/refusals.ts";
import { assertSameBits, forEachDevice, normal, rng, type TestDevice } from "./support.ts";

const baselines: readonly Baseline[] = ["mean", "leave-one-out", "none"];
const scales: readonly AdvantageScale[] = ["group-std", "batch-std", "none"];
const singletons: readonly Singleton[] = ["zero", "raw"];

function numbers(device: TestDevice, result: GroupAdvantageResult): ReturnType<typeof advantageReference> {
  return {
    advantages: device.floats(result.advantages),
    groupMean: device.floats(result.groupMean),
    groupStd: device.floats(result.groupStd),
    zeroVariance: Array.from(device.read(result.zeroVariance)),
  };
}

type Rest = Omit<Parameters<typeof groupAdvantage>[0], "rewards">;

/** The op on rewards as float32, with the groups one after the other. */
function run(device: TestDevice, rewards: number[], options: Rest): ReturnType<typeof advantageReference> {
  return numbers(device, groupAdvantage({ rewards, ...options, device: device.name }));
}

function compare(
  device: TestDevice,
  grouping: Grouping,
  input: Omit<AdvantageCase, "ids" | "groups">,
  result: GroupAdvantageResult,
): void {
  const expected = advantageReference({ ...input, ids: grouping.ids, groups: grouping.groups });
  const actual = numbers(device, result);
  close("advantages", actual.advantages, expected.advantages);
  close("groupMean", actual.groupMean, expected.groupMean);
  close("groupStd", actual.groupStd, expected.groupStd);
  assert.deepEqual(actual.zeroVariance, expected.zeroVariance);
  // What the contract calls exactly 0 is.
  for (const [i, advantage] of expected.advantages.entries()) {
    if (advantage === 0 && input.valid?.[i] === 0) assert.equal(Math.abs(actual.advantages[i]!), 0);
  }
  assert.deepEqual(result.advantages.shape, [input.rewards.length]);
  for (const tensor of [result.groupMean, result.groupStd, result.zeroVariance]) {
    assert.deepEqual(tensor.shape, [grouping.groups]);
  }
}

forEachDevice("groupAdvantage is the definition, for every combination of options", (device) => {
  const random = rng(2);
  const gaussian = normal(random);
  for (const way of ["size", "offsets", "ids"] as const) {
    for (const baseline of baselines) {
      for (const scale of scales) {
        for (const singleton of singletons) {
          for (let repeat = 0; repeat < 24; repeat++) {
            const grouping = someGrouping(random, way);
            const size = grouping.ids.length;
            const kind = integer(random, 0, 2);
            const rewards = times(size, () =>
              Math.fround(kind === 0 ? pick(random, [1, 0, -1]) : kind === 1 ? gaussian() : 50 + 0.1 * gaussian()),
            );
            const emptied = integer(random, 0, 6);
            const valid =
              random() < 0.5
                ? times(size, (i) => (grouping.ids[i] === emptied ? 0 : pick(random, [0, 1, 255])))
                : undefined;
            const validCount = valid ? valid.filter((value) => value !== 0).length : size;
            // One reward has no deviation: nothing says what a batch of one is divided by.
            if (scale === "batch-std" && validCount < 2) continue;
            const varianceRewards = random() < 0.5 ? times(size, () => pick(random, [0, 0, 1])) : undefined;
            const convention = {
              baseline,
              scale,
              singleton,
              ddof: integer(random, 0, 1),
              epsilon: pick(random, [1e-6, 1e-4, 1e-9, 0.5, ...(baseline === "none" ? [] : [0])]),
            };
            const result = groupAdvantage({
              ...convention,
              ...grouping.options,
              rewards: random() < 0.2 ? rewards : inSomeForm(device, random, Float32Array.from(rewards)),
              ...(valid && { valid: inSomeForm(device, random, Uint8Array.from(valid)) }),
              ...(varianceRewards && {
                varianceRewards: inSomeForm(device, random, Float32Array.from(varianceRewards)),
              }),
              device: device.name,
            });
            compare(device, grouping, { rewards, valid, varianceRewards, ...convention }, result);
          }
        }
      }
    }
  }
});

forEachDevice("the defaults are mean, group-std, ddof 1, epsilon 1e-6, singleton zero", (device) => {
  const rewards = [1, 0, -1, 1, 5, 2, 2, 7];
  const bare = groupAdvantage({ rewards, groupOffsets: [0, 4, 5, 8], device: device.name });
  const explicit = groupAdvantage({
    rewards,
    groupOffsets: [0, 4, 5, 8],
    baseline: "mean",
    scale: "group-std",
    ddof: 1,
    epsilon: 1e-6,
    singleton: "zero",
    valid: times(8, () => 1),
    varianceRewards: rewards,
    device: device.name,
  });
  assertSameOutputs(device, bare, explicit);
});

forEachDevice("a constant group gets exactly 0 for any baseline but none", (device) => {
  for (const reward of [0.1, 0.35, 1 / 3, 1e-38, 1e-45, -7.3, 3e38, 1e4 + 0.01]) {
    for (const size of [2, 3, 7, 8, 63, 64, 65, 1000]) {
      for (const baseline of baselines) {
        for (const scale of scales) {
          // A second group, so that the deviation of the batch is not 0.
          const rewards = [...times(size, () => reward), 1, 2];
          const options = { groupOffsets: [0, size, size + 2], baseline, scale, epsilon: 1e-8 };
          const { advantages, groupStd, zeroVariance } = run(device, rewards, options);
          if (baseline !== "none") for (const value of advantages.slice(0, size)) assert.equal(Math.abs(value), 0);
          assert.equal(groupStd[0], 0);
          assert.deepEqual(zeroVariance, [1, 0]);
        }
      }
    }
  }
});

forEachDevice("seven rewards of 0.1 leave no residue behind, whatever epsilon", (device) => {
  for (const epsilon of [0, 1e-300, 1e-8, 1e-6]) {
    const { advantages } = run(
      device,
      times(7, () => 0.1),
      { groupSize: 7, epsilon },
    );
    assert.ok(advantages.every((value) => value === 0));
  }
});

forEachDevice("seven rewards of 0.35 and one of 0.75 keep their leave-one-out baselines", (device) => {
  const rewards = [...times(7, () => Math.fround(0.35)), Math.fround(0.75)];
  for (const scale of ["none", "group-std"] as const) {
    const options = { baseline: "leave-one-out", scale } as const;
    const { advantages } = run(device, rewards, { groupSize: 8, ...options });
    const grouping = { ids: times(8, () => 0), groups: 1 };
    const expected = advantageReference({ rewards, ...grouping, ...options });
    close("leave-one-out", advantages, expected.advantages, { atol: 0, rtol: 1e-6 });
    // The baseline of the last is the mean of seven equal rewards: that reward.
    const divisor = scale === "none" ? 1 : expected.groupStd[0]! + 1e-6;
    const gap = (Math.fround(0.75) - Math.fround(0.35)) / divisor;
    assert.ok(Math.abs(advantages[7]! - gap) < 1e-7 * gap + 1e-12);
  }
});

forEachDevice("a tiny variance on a large mean is not lost: 1e4 +- 1e-2", (device) => {
  const rewards = [1e4 - 1e-2, 1e4 + 1e-2, 1e4, 1e4 + 1e-2, 1e4 - 1e-2].map(Math.fround);
  for (const ddof of [0, 1]) {
    const { advantages, groupStd } = run(device, rewards, { groupSize: 5, ddof });
    const expected = advantageReference({ rewards, ids: times(5, () => 0), groups: 1, ddof });
    close("tiny variance", advantages, expected.advantages, { atol: 0, rtol: 1e-6 });
    close("tiny variance: std", groupStd, expected.groupStd, { atol: 0, rtol: 1e-6 });
    assert.ok(groupStd[0]! > 5e-3);
  }
});

forEachDevice("rewards near the ends of float32 are no problem in float64", (device) => {
  const grouping: Grouping = { options: { groupSize: 4 }, ids: [0, 0, 0, 0, 1, 1, 1, 1], groups: 2 };
  const rewards = [3e38, -3e38, 3.4e38, 1, 1e-45, 3e-45, 0, 1e-44].map(Math.fround);
  const convention = { epsilon: 0 };
  const result = groupAdvantage({ rewards, groupSize: 4, ...convention, device: device.name });
  const expected = advantageReference({ rewards, ...grouping, ...convention });
  close("ends of float32", device.floats(result.advantages), expected.advantages);
});

forEachDevice("a NaN or infinite reward makes its own group NaN and changes no bit of another", (device) => {
  const random = rng(6);
  const rewards = Float32Array.from(times(60, () => normal(random)()));
  for (const [at, poison] of [
    [0, Number.NaN],
    [7, Number.POSITIVE_INFINITY],
    [31, Number.NEGATIVE_INFINITY],
    [59, Number.NaN],
  ] as const) {
    for (const baseline of baselines) {
      for (const scale of ["group-std", "none"] as const) {
        const options = { groupSize: 6, baseline, scale, device: device.name };
        const clean = groupAdvantage({ ...options, rewards });
        const dirty = groupAdvantage({ ...options, rewards: rewards.with(at, poison) });
        const group = Math.floor(at / 6);
        const [before, after] = [device.read(clean.advantages), device.read(dirty.advantages)];
        assert.ok(after.subarray(group * 6, group * 6 + 6).every(Number.isNaN));
        assertSameBits(after.slice(0, group * 6), before.slice(0, group * 6));
        assertSameBits(after.slice(group * 6 + 6), before.slice(group * 6 + 6));
        assert.ok(Number.isNaN(device.floats(dirty.groupMean)[group]));
        assert.ok(Number.isNaN(device.floats(dirty.groupStd)[group]));
      }
    }
  }
});

forEachDevice("all of a group infinite, or a singleton that is NaN, is NaN, not 0", (device) => {
  const infinite = run(device, [Infinity, Infinity, 1, 2, Number.NaN], { groupOffsets: [0, 2, 4, 5] });
  assert.deepEqual(infinite.advantages.map(Number.isNaN), [true, true, false, false, true]);
  const raw = run(device, [Number.NaN, 3], { groupSize: 1, singleton: "raw" });
  assert.ok(Number.isNaN(raw.advantages[0]));
  close("raw", raw.advantages.slice(1), [3 / (1 + 1e-6)]);
});

forEachDevice("the deviation of the batch leaves NaN groups out", (device) => {
  const rewards = [1, 2, 4, Number.NaN, 8, 16, -3, Infinity];
  const options = { groupSize: 2, scale: "batch-std", device: device.name } as const;
  const dirty = groupAdvantage({ rewards, ...options });
  const without = groupAdvantage({ rewards, valid: [1, 1, 0, 0, 1, 1, 0, 0], ...options });
  const [got, want] = [device.floats(dirty.advantages), device.floats(without.advantages)];
  assert.deepEqual([got[0], got[1], got[4], got[5]], [want[0], want[1], want[4], want[5]]);
  assert.ok([2, 3, 6, 7].every((i) => Number.isNaN(got[i])));
});

forEachDevice("an invalid response gets 0 and is outside the statistics, whatever its reward", (device) => {
  const valid = [1, 0, 1, 1, 0, 0, 0, 7];
  const clean = groupAdvantage({ rewards: [1, 0, 2, 4, 0, 0, 0, 5], groupSize: 4, valid, device: device.name });
  for (const garbage of [Number.NaN, Infinity, -Infinity, 3e38]) {
    const rewards = [1, garbage, 2, 4, garbage, garbage, garbage, 5];
    const varianceRewards = [3, garbage, 3, 3, garbage, garbage, garbage, 5];
    const dirty = groupAdvantage({ rewards, groupSize: 4, valid, device: device.name });
    assertSameOutputs(device, dirty, clean);
    const judged = groupAdvantage({ rewards, groupSize: 4, valid, varianceRewards, device: device.name });
    assert.deepEqual(Array.from(device.read(judged.zeroVariance)), [1, 1]);
    assert.deepEqual(device.floats(judged.advantages), device.floats(clean.advantages));
  }
  const { advantages } = numbers(device, clean);
  assert.deepEqual(
    [1, 4, 5, 6, 7].map((i) => advantages[i]),
    [0, 0, 0, 0, 0],
  );
});

forEachDevice("a group without any valid response has mean 0, deviation 0 and no variance", (device) => {
  for (const singleton of singletons) {
    const result = run(device, [Number.NaN, 5, 1, 2], { groupSize: 2, valid: [0, 0, 1, 1], singleton });
    assert.deepEqual(result.advantages.slice(0, 2), [0, 0]);
    assert.deepEqual([result.groupMean[0], result.groupStd[0], result.zeroVariance[0]], [0, 0, 1]);
  }
});

forEachDevice("a singleton gets 0, or its reward as in verl", (device) => {
  const valid = [1, 0, 0, 1];
  for (const baseline of baselines) {
    for (const scale of scales) {
      const options = { groupOffsets: [0, 3, 4], valid, baseline, scale };
      const zero = run(device, [5, 1, 2, -3], options);
      assert.deepEqual(zero.advantages.map(Math.abs), [0, 0, 0, 0]);
      const raw = run(device, [5, 1, 2, -3], { ...options, singleton: "raw" });
      const divisor = { "group-std": 1 + 1e-6, "batch-std": Math.sqrt(32) + 1e-6, none: 1 }[scale];
      close("raw singletons", raw.advantages, [5 / divisor, 0, 0, -3 / divisor]);
    }
  }
});

forEachDevice("zeroVariance is judged on varianceRewards and changes no advantage", (device) => {
  const rewards = [1, 2, 3, 4, 5, 5];
  const plain = groupAdvantage({ rewards, groupSize: 2, device: device.name });
  const varianceRewards = [0, 0, 0, 1, 1, 2];
  const judged = groupAdvantage({ rewards, groupSize: 2, varianceRewards, device: device.name });
  assert.deepEqual(Array.from(device.read(plain.zeroVariance)), [0, 0, 1]);
  assert.deepEqual(Array.from(device.read(judged.zeroVariance)), [1, 0, 0]);
  assertSameBits(device.read(judged.advantages), device.read(plain.advantages));
});

forEachDevice("groups by size, by offsets and by ids are the same groups", (device) => {
  const random = rng(8);
  const rewards = times(48, () => normal(random)());
  const bySize = groupAdvantage({ rewards, groupSize: 8, device: device.name });
  const groupOffsets = times(7, (k) => 8 * k);
  const groupIds = times(48, (i) => Math.floor(i / 8));
  assertSameOutputs(device, groupAdvantage({ rewards, groupOffsets, device: device.name }), bySize, "offsets");
  assertSameOutputs(device, groupAdvantage({ rewards, groupIds, groups: 6, device: device.name }), bySize, "ids");
});

forEachDevice("no response, no group, groups without responses", (device) => {
  const none = { advantages: [], groupMean: [], groupStd: [], zeroVariance: [] };
  const twoEmpty = { advantages: [], groupMean: [0, 0], groupStd: [0, 0], zeroVariance: [1, 1] };
  assert.deepEqual(run(device, [], { groupSize: 3 }), none);
  assert.deepEqual(run(device, [], { groupOffsets: [0] }), none);
  assert.deepEqual(run(device, [], { groupIds: [], groups: 0 }), none);
  assert.deepEqual(run(device, [], { groupOffsets: [0, 0, 0] }), twoEmpty);
  assert.deepEqual(run(device, [], { groupIds: [], groups: 2 }), twoEmpty);
  for (const scale of scales) assert.deepEqual(run(device, [], { groupSize: 1, scale }), none);
});

forEachDevice("out is returned, fully written, and its tensors are kept", (device) => {
  const random = rng(9);
  for (const way of ["size", "offsets", "ids"] as const) {
    for (const scale of scales) {
      const grouping = someGrouping(random, way);
      const rewards = grouping.ids.map(() => normal(random)());
      const valid = grouping.ids.map((id) => (id === 0 ? 0 : integer(random, 0, 3)));
      const options = { rewards, valid, ...grouping.options, scale, device: device.name };
      const expected = groupAdvantage(options);
      const out = poisoned(device, expected);
      const tensors = { ...out };
      assert.equal(groupAdvantage({ ...options, out }), out);
      for (const [name, tensor] of Object.entries(tensors)) assert.equal(out[name as keyof typeof out], tensor);
      assert.deepEqual(Object.keys(out), Object.keys(tensors));
      assertSameOutputs(device, out, expected);
    }
  }
});

forEachDevice("groupAdvantage refuses bad input, writes nothing, and says what is wrong", (device) => {
  const op = "groupAdvantage";
  const good = (): Record<string, unknown> => ({
    rewards: Float32Array.of(1, 2, 3, 4),
    valid: Uint8Array.of(1, 1, 1, 0),
    varianceRewards: Float32Array.of(1, 1, 2, 2),
    groupIds: Int32Array.of(0, 1, 0, 1),
    groups: 2,
    device: device.name,
  });
  const of4 = { length: 4, plain: true } as const;
  const noIds = { groupIds: undefined, groups: undefined };
  const result = groupAdvantage(good() as never);
  const shared = new Float32Array(4);
  const overlapping = Float32Array.of(1, 2, 3, 4);
  assertRefusals(device, groupAdvantage, good, [
    ...badArray(op, { name: "rewards", dtype: "float32", anyLength: true, ...of4 }),
    ...badArray(op, { name: "valid", dtype: "uint8", optional: true, ...of4 }),
    ...badArray(op, { name: "varianceRewards", dtype: "float32", optional: true, ...of4 }),
    ...badArray(op, { name: "groupIds", dtype: "int32", optional: true, ...of4 }),
    ...badArray(op, {
      name: "groupOffsets",
      dtype: "int32",
      length: 3,
      anyLength: true,
      optional: true,
      plain: true,
      beside: noIds,
    }),
    ...badNumber(op, "groups", "a number of groups", [-1, 1.5, 2 ** 53, Infinity]),
    ...badNumber(op, "groupSize", "a number of responses", [0, -1, 1.5, 2 ** 53, Infinity], noIds),
    ...badNumber(op, "ddof", "0 or 1", [-1, 2, 0.5, Infinity]),
    ...badNumber(op, "epsilon", "a number of at least 0", [-1, -1e-300, Infinity]),
    ...badChoice(op, "baseline", baselines),
    ...badChoice(op, "scale", scales),
    ...badChoice(op, "singleton", singletons),
    ...badCall(op),
    ...badOut(op, device, result),
    {
      what: "no grouping",
      change: noIds,
      message: `${op}: expected one of groupSize, groupOffsets, and groupIds with groups, got none of them`,
    },
    {
      what: "two groupings",
      change: { groupSize: 2 },
      message: `${op}: expected one of groupSize, groupOffsets, and groupIds with groups, got 2 of them`,
    },
    {
      what: "three groupings",
      change: { groupSize: 2, groupOffsets: [0, 4] },
      message: `${op}: expected one of groupSize, groupOffsets, and groupIds with groups, got 3 of them`,
    },
    {
      what: "groups without ids",
      change: { groupIds: undefined, groupSize: 2 },
      message: `${op}: groups goes with groupIds alone`,
    },
    {
      what: "ids without groups",
      change: { groups: undefined },
      message: `${op}: groupIds needs groups, the number of groups`,
    },
    {
      what: "a size that does not divide",
      change: { ...noIds, groupSize: 3 },
      message: `${op}: expected groupSize to be a divisor of the 4 responses, got 3`,
    },
    ...[-1, 2, 2 ** 31 - 1, -(2 ** 31)].map((id) => ({
      what: `an id of ${id}`,
      change: { groupIds: [0, 1, id, 0] },
      message: `${op}: expected groupIds[2] to be in 0..1, got ${id}`,
    })),
    {
      what: "no offsets at all",
      change: { ...noIds, groupOffsets: [] },
      message: `${op}: expected groupOffsets to be of at least one element, got Int32Array(0)`,
    },
    ...(
      [
        [[1, 2, 4], 0, "0", 1],
        [[-1, 2, 4], 0, "0", -1],
        [[0, 2, 3], 2, "4, the number of responses", 3],
        [[0, 2, 5], 2, "4, the number of responses", 5],
        [[0, 3, 2, 4], 2, "at least 3 and at most 4", 2],
        [[0, 9, 4], 1, "at least 0 and at most 4", 9],
        [[0, -1, 4], 1, "at least 0 and at most 4", -1],
      ] as const
    ).map(([groupOffsets, at, expected, got]) => ({
      what: `offsets ${groupOffsets}`,
      change: { ...noIds, groupOffsets, out: undefined },
      message: `${op}: expected groupOffsets[${at}] to be ${expected}, got ${got}`,
    })),
    {
      what: "outputs that share memory",
      change: {
        out: {
          ...result,
          groupMean: device.overlapping(shared.subarray(0, 2)),
          groupStd: device.overlapping(shared.subarray(1, 3)),
        },
      },
      message: /^groupAdvantage: expected out\.group(Std|Mean) to be memory of its own, got memory that overlaps /,
    },
    {
      what: "an output over an input",
      change: {
        rewards: device.overlapping(overlapping),
        out: { ...result, advantages: device.overlapping(overlapping) },
      },
      message: `${op}: expected out.advantages to be memory of its own, got memory that overlaps rewards`,
    },
  ]);
});
