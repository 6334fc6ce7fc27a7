import assert from "node:assert/strict";
import {
  type AdvantageScale,
  type Baseline,
  type FapoAdvantageResult,
  fapoAdvantage,
  fapoPenalty,
  groupAdvantage,
  type UnknownVerdict,
} from "fapo-kernels";
import { fapoAdvantageReference } from "./reference/advantage.ts";
import { assertSameOutputs, close, inSomeForm, integer, pick, poisoned, someGrouping, times } from "./support/ops.ts";
import { assertRefusals, badArray, badCall, badChoice, badNumber, badOut } from "./support/refusals.ts";
import { forEachDevice, rng, type TestDevice } from "./support.ts";

const baselines: readonly Baseline[] = ["mean", "leave-one-out", "none"];
const scales: readonly AdvantageScale[] = ["group-std", "batch-std", "none"];
const unknownVerdicts: readonly UnknownVerdict[] = ["sound", "flawed", "exclude"];

function compare(
  device: TestDevice,
  result: FapoAdvantageResult,
  expected: ReturnType<typeof fapoAdvantageReference>,
): void {
  close("advantages", device.floats(result.advantages), expected.advantages);
  close("groupMean", device.floats(result.groupMean), expected.groupMean);
  close("groupStd", device.floats(result.groupStd), expected.groupStd);
  close("rewards", device.floats(result.rewards), expected.rewards);
  close("fapoRewards", device.floats(result.fapoRewards), expected.fapoRewards);
  assert.deepEqual(Array.from(device.read(result.valid)), expected.valid);
  assert.deepEqual(Array.from(device.read(result.zeroVariance)), expected.zeroVariance);
}

forEachDevice("fapoAdvantage is the definition, and bitwise fapoPenalty followed by groupAdvantage", (device) => {
  const random = rng(12);
  for (const way of ["size", "offsets", "ids"] as const) {
    for (const unknownVerdict of unknownVerdicts) {
      for (const baseline of baselines) {
        for (const scale of scales) {
          for (let repeat = 0; repeat < 14; repeat++) {
            const grouping = someGrouping(random, way);
            const size = grouping.ids.length;
            const correct = times(size, () => integer(random, 0, 1));
            const flawed = times(size, () => integer(random, -1, 1));
            const withLengths = random() < 0.5;
            const responseLengths = times(size, () => integer(random, 10, 40));
            const verdicts = {
              unknownVerdict,
              flawedPenalty: pick(random, [0, 2 / 3, 1, 4 / 3, 2]),
              ...(withLengths && { overlong: { maxLength: 40, buffer: 20, factor: pick(random, [1, 0.3]) } }),
              ...(random() < 0.3 && { rewardCorrect: 2.5, rewardWrong: 0.25 }),
            };
            const singleton = pick(random, ["zero", "raw"] as const);
            const conventionOptions = { baseline, scale, ddof: integer(random, 0, 1), epsilon: 1e-6, singleton };
            const inputs = {
              correct: random() < 0.2 ? correct : inSomeForm(device, random, Uint8Array.from(correct)),
              flawed: random() < 0.2 ? flawed : inSomeForm(device, random, Int8Array.from(flawed)),
              ...(withLengths && { responseLengths: inSomeForm(device, random, Int32Array.from(responseLengths)) }),
            };
            const shared = { ...grouping.options, ...conventionOptions, device: device.name };
            const result = fapoAdvantage({ ...verdicts, ...inputs, ...shared });
            const penalty = fapoPenalty({ ...verdicts, ...inputs, device: device.name });
            const { rewards, valid, fapoRewards } = penalty;
            const advantage = groupAdvantage({ rewards, valid, varianceRewards: fapoRewards, ...shared });
            assertSameOutputs(device, result, { ...penalty, ...advantage });

            const counted = Array.from(device.read(valid)).filter(Boolean).length;
            if (scale === "batch-std" && counted < 2) continue;
            const plain = { correct, flawed, ...verdicts, ...(withLengths && { responseLengths }) };
            compare(device, result, fapoAdvantageReference(plain, grouping, conventionOptions));
          }
        }
      }
    }
  }
});

forEachDevice("a group that differs in length alone has zero variance, and still its advantages", (device) => {
  const result = fapoAdvantage({
    correct: [0, 0, 0, 0, 1, 1, 1, 1],
    flawed: [0, 0, 0, 0, 0, 0, 0, 1],
    responseLengths: [10, 20, 30, 40, 10, 10, 10, 10],
    overlong: { maxLength: 40, buffer: 20 },
    groupSize: 4,
    device: device.name,
  });
  assert.deepEqual(Array.from(device.read(result.zeroVariance)), [1, 0]);
  const advantages = device.floats(result.advantages);
  assert.ok(advantages[0]! > 0 && advantages[3]! < 0);
  // No answer of the second group is wrong: GRPO learns nothing from it, FAPO does.
  close("no wrong answer", advantages.slice(4), [...times(3, () => 0.25 / (0.5 + 1e-6)), -0.75 / (0.5 + 1e-6)]);
});

forEachDevice("an excluded response has valid 0, advantage 0, and is outside its group", (device) => {
  const options = { groupSize: 4, device: device.name };
  const excluded = fapoAdvantage({
    correct: [1, 1, 0, 1],
    flawed: [0, 1, 0, -1],
    unknownVerdict: "exclude",
    ...options,
  });
  const without = fapoAdvantage({ correct: [1, 1, 0], flawed: [0, 1, 0], ...options, groupSize: 3 });
  assert.deepEqual(device.floats(excluded.advantages), [...device.floats(without.advantages), 0]);
  assert.deepEqual(Array.from(device.read(excluded.valid)), [1, 1, 1, 0]);
  const all = fapoAdvantage({ correct: [1, 1], flawed: [-1, -1], unknownVerdict: "exclude", ...options, groupSize: 2 });
  assert.deepEqual(device.floats(all.advantages), [0, 0]);
  assert.deepEqual(Array.from(device.read(all.zeroVariance)), [1]);
});

forEachDevice("no response at all", (device) => {
  const none = fapoAdvantage({ correct: [], flawed: [], groupOffsets: [0, 0], device: device.name });
  assert.deepEqual(device.floats(none.advantages), []);
  assert.deepEqual(device.floats(none.groupMean), [0]);
  assert.deepEqual(device.floats(none.rewards), []);
});

forEachDevice("out is returned, fully written, and its tensors are kept", (device) => {
  const random = rng(13);
  for (const way of ["size", "offsets", "ids"] as const) {
    const { ids, options: grouping } = someGrouping(random, way);
    const options = {
      correct: ids.map(() => integer(random, 0, 1)),
      flawed: ids.map(() => integer(random, -1, 1)),
      unknownVerdict: "exclude" as const,
      ...grouping,
      device: device.name,
    };
    const expected = fapoAdvantage(options);
    const out = poisoned(device, expected);
    const tensors = { ...out };
    assert.equal(fapoAdvantage({ ...options, out }), out);
    for (const [name, tensor] of Object.entries(tensors)) assert.equal(out[name as keyof typeof out], tensor);
    assert.deepEqual(Object.keys(out), Object.keys(tensors));
    assertSameOutputs(device, out, expected);
  }
});

forEachDevice("fapoAdvantage refuses bad input, writes nothing, and says what is wrong", (device) => {
  const op = "fapoAdvantage";
  const good = (): Record<string, unknown> => ({
    correct: Uint8Array.of(1, 0, 1, 1),
    flawed: Int8Array.of(1, 0, -1, 0),
    responseLengths: Int32Array.of(10, 20, 30, 40),
    overlong: { maxLength: 40, buffer: 20 },
    groupOffsets: Int32Array.of(0, 2, 4),
    device: device.name,
  });
  const of4 = { length: 4, plain: true } as const;
  const withIds = { groupOffsets: undefined, groups: 2 };
  const result = fapoAdvantage(good() as never);
  const shared = new Float32Array(4);
  assertRefusals(device, fapoAdvantage, good, [
    ...badArray(op, { name: "correct", dtype: "uint8", anyLength: true, ...of4 }),
    ...badArray(op, { name: "flawed", dtype: "int8", ...of4 }),
    ...badArray(op, { name: "responseLengths", dtype: "int32", optional: true, ...of4 }),
    ...badArray(op, { name: "groupOffsets", dtype: "int32", length: 3, anyLength: true, optional: true, plain: true }),
    ...badArray(op, { name: "groupIds", dtype: "int32", optional: true, beside: withIds, ...of4 }),
    ...badNumber(op, "groups", "a number of groups", [-1, 1.5, 2 ** 53, Infinity], {
      groupOffsets: undefined,
      groupIds: [0, 1, 0, 1],
    }),
    ...badNumber(op, "groupSize", "a number of responses", [0, -1, 1.5, Infinity], { groupOffsets: undefined }),
    ...badNumber(op, "flawedPenalty", "a number of at least 0", [-1, Infinity]),
    ...badNumber(op, "rewardCorrect", "a finite number", [Infinity, -Infinity]),
    ...badNumber(op, "rewardWrong", "a finite number", [Infinity, -Infinity]),
    ...badNumber(op, "ddof", "0 or 1", [-1, 2, 0.5, Infinity]),
    ...badNumber(op, "epsilon", "a number of at least 0", [-1, Infinity]),
    ...badChoice(op, "unknownVerdict", unknownVerdicts),
    ...badChoice(op, "baseline", baselines),
    ...badChoice(op, "scale", scales),
    ...badChoice(op, "singleton", ["zero", "raw"]),
    ...badCall(op),
    ...badOut(op, device, result),
    ...["rewards", "valid", "varianceRewards"].map((name) => ({
      what: `${name}, which the op makes itself`,
      change: { [name]: [1, 1, 1, 1] },
      message: `${op}: unknown option ${name}`,
    })),
    {
      what: "a verdict out of range",
      change: { flawed: [0, 0, 0, -2] },
      message: `${op}: expected flawed[3] to be 1 (flawed), 0 (sound) or -1 (unknown), got -2`,
    },
    {
      what: "a negative length",
      change: { responseLengths: [1, 2, -3, 4] },
      message: `${op}: expected responseLengths[2] to be a number of tokens, got -3`,
    },
    {
      what: "an id out of range",
      change: { ...withIds, groupIds: [0, 1, 2, 0] },
      message: `${op}: expected groupIds[2] to be in 0..1, got 2`,
    },
    {
      what: "offsets that fall",
      change: { groupOffsets: [0, 3, 1, 4], out: undefined },
      message: `${op}: expected groupOffsets[2] to be at least 3 and at most 4, got 1`,
    },
    {
      what: "offsets that end early",
      change: { groupOffsets: [0, 3], out: undefined },
      message: `${op}: expected groupOffsets[1] to be 4, the number of responses, got 3`,
    },
    {
      what: "no grouping",
      change: { groupOffsets: undefined },
      message: `${op}: expected one of groupSize, groupOffsets, and groupIds with groups, got none of them`,
    },
    {
      what: "overlong without lengths",
      change: { responseLengths: undefined },
      message: `${op}: overlong needs responseLengths`,
    },
    {
      what: "outputs that share memory",
      change: { out: { ...result, rewards: device.overlapping(shared), advantages: device.overlapping(shared) } },
      message: /^fapoAdvantage: expected out\.\w+ to be memory of its own, got memory that overlaps /,
    },
  ]);
});
