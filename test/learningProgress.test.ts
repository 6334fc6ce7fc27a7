import assert from "node:assert/strict";
import { test } from "node:test";
import { fapoAdvantage, learningProgress, tensor, type UnknownVerdict } from "fapo-kernels";
import fc from "fast-check";
import { progressReference } from "./reference/advantage.ts";
import { integer, pick, someGrouping, times } from "./support/ops.ts";
import { assertRefusals, badArray, badCall, badChoice, badNumber } from "./support/refusals.ts";
import { rng, TestDevice } from "./support.ts";

const unknownVerdicts: readonly UnknownVerdict[] = ["sound", "flawed", "exclude"];
const lambdas = [0, 0.25, 2 / 3, 1, 4 / 3, 2, 3];

test("learningProgress is the definition, for every combination of options", () => {
  const random = rng(60);
  for (const way of ["size", "offsets", "ids"] as const) {
    for (const unknownVerdict of unknownVerdicts) {
      for (const lambda of lambdas) {
        for (let repeat = 0; repeat < 20; repeat++) {
          const { options: grouping, ids, groups } = someGrouping(random, way);
          const correct = ids.map(() => pick(random, [0, 1, 1, 255]));
          const flawed = ids.map(() => integer(random, -1, 1));
          const result = learningProgress({
            correct: random() < 0.5 ? correct : Uint8Array.from(correct),
            flawed: random() < 0.5 ? flawed : tensor(Int8Array.from(flawed)),
            unknownVerdict,
            flawedPenalty: lambda,
            ...grouping,
          });
          const of = (chosen: (i: number) => boolean) =>
            progressReference(
              correct.filter((_, i) => chosen(i)),
              flawed.filter((_, i) => chosen(i)),
              unknownVerdict,
              lambda,
            );
          const expected = times(groups, (group) => of((i) => ids[i] === group));
          assert.deepEqual(result.groups, expected);
          const { zeroVariance: _, ...batch } = of(() => true);
          const share = (name: "pastShift" | "zeroVariance"): number =>
            groups === 0 ? 0 : expected.filter((group) => group[name]).length / groups;
          assert.deepEqual(result.batch, {
            ...batch,
            pastShiftShare: share("pastShift"),
            zeroVarianceShare: share("zeroVariance"),
          });
        }
      }
    }
  }
});

test("warm-up, the shift point and refinement", () => {
  const group = (c: number, f: number, w: number) => {
    const size = c + f + w;
    return learningProgress({
      correct: times(size, (i) => Number(i < c + f)),
      flawed: times(size, (i) => Number(i >= c && i < c + f)),
      groupSize: size,
    }).groups[0]!;
  };
  assert.deepEqual(group(2, 2, 4), {
    alpha: 0.25,
    beta: 0.5,
    gamma: 0.25,
    rho: 0.5,
    shiftPoint: 1,
    pastShift: false,
    flawedPositiveRatio: 0.5,
    unknownRate: 0,
    zeroVariance: false,
  });
  // At the shift point a flawed positive has advantage 0: not past it.
  assert.equal(group(3, 2, 3).rho, 1);
  assert.equal(group(3, 2, 3).pastShift, false);
  assert.equal(group(5, 2, 1).pastShift, true);
  assert.deepEqual([group(6, 2, 0).rho, group(6, 2, 0).pastShift], [Number.POSITIVE_INFINITY, true]);
  assert.deepEqual([group(0, 2, 0).rho, group(0, 2, 0).pastShift], [0, false]);
});

test("empty ratios are 0", () => {
  const { groups, batch } = learningProgress({ correct: [], flawed: [], groupOffsets: [0, 0] });
  const empty = {
    alpha: 0,
    beta: 0,
    gamma: 0,
    rho: 0,
    shiftPoint: 1,
    pastShift: false,
    flawedPositiveRatio: 0,
    unknownRate: 0,
  };
  assert.deepEqual(groups, [{ ...empty, zeroVariance: true }]);
  assert.deepEqual(batch, { ...empty, pastShiftShare: 0, zeroVarianceShare: 1 });
  const none = learningProgress({ correct: [], flawed: [], groupOffsets: [0] });
  assert.deepEqual(none, { groups: [], batch: { ...empty, pastShiftShare: 0, zeroVarianceShare: 0 } });
});

test("lambda 0 never shifts", () => {
  const { groups } = learningProgress({ correct: [1, 1, 0], flawed: [0, 1, 0], groupSize: 3, flawedPenalty: 0 });
  assert.deepEqual([groups[0]!.shiftPoint, groups[0]!.pastShift], [Number.POSITIVE_INFINITY, false]);
});

test("excluded responses count in unknownRate alone", () => {
  const verdicts = { correct: [1, 1, 1, 0], flawed: [-1, 1, 0, -1], groupSize: 4 };
  const sound = learningProgress(verdicts).groups[0]!;
  assert.deepEqual([sound.alpha, sound.gamma, sound.beta, sound.unknownRate], [0.5, 0.25, 0.25, 1 / 3]);
  const excluded = learningProgress({ ...verdicts, unknownVerdict: "exclude" }).groups[0]!;
  assert.deepEqual([excluded.alpha, excluded.gamma, excluded.beta], [1 / 3, 1 / 3, 1 / 3]);
  assert.equal(excluded.unknownRate, 1 / 3);
});

test("past the shift is where fapoAdvantage turns flawed positives down, and zero variance is its flag", () => {
  const verdict = fc.record({ correct: fc.nat(1), flawed: fc.integer({ min: -1, max: 1 }) });
  const responses = fc.array(verdict, { minLength: 1, maxLength: 24 });
  const property = fc.property(
    responses,
    fc.constantFrom(...unknownVerdicts),
    fc.constantFrom(0.25, 0.5, 1, 1.5, 2, 3),
    fc.boolean(),
    (responses, unknownVerdict, flawedPenalty, whole) => {
      const correct = responses.map((response) => response.correct);
      const flawed = responses.map((response) => response.flawed);
      const ids = responses.map((_, i) => (whole ? 0 : i % 3));
      const options = { correct, flawed, unknownVerdict, flawedPenalty, groupIds: ids, groups: 3 };
      const { groups } = learningProgress(options);
      const result = fapoAdvantage(options);
      assert.deepEqual(
        groups.map((group) => group.zeroVariance),
        Array.from(result.zeroVariance.data, Boolean),
      );
      for (const [i, advantage] of result.advantages.data.entries()) {
        const isFlawed = correct[i] && (flawed[i] === 1 || (flawed[i] === -1 && unknownVerdict === "flawed"));
        if (!isFlawed) continue;
        const group = groups[ids[i]!]!;
        if (!group.zeroVariance) assert.equal(advantage < 0, group.pastShift);
        // The same as rho > 2 / lambda - 1, away from it.
        if (Math.abs(group.rho - group.shiftPoint) > 1e-9) {
          assert.equal(group.pastShift, group.rho > group.shiftPoint && group.alpha + group.beta > 0);
        }
      }
    },
  );
  fc.assert(property, { seed: 61, numRuns: 3000 });
});

test("learningProgress refuses bad input and says what is wrong", () => {
  const op = "learningProgress";
  const good = (): Record<string, unknown> => ({
    correct: Uint8Array.of(1, 0, 1, 1),
    flawed: Int8Array.of(1, 0, -1, 0),
    groupIds: Int32Array.of(0, 1, 0, 1),
    groups: 2,
  });
  const of4 = { length: 4, plain: true } as const;
  const noIds = { groupIds: undefined, groups: undefined };
  // The op has no outputs to be written to: its result is plain numbers.
  const numbers = (options: { out?: unknown }): object => {
    const { out: _, ...rest } = options;
    learningProgress(rest as never);
    return {};
  };
  assertRefusals(new TestDevice("cpu"), numbers, good, [
    ...badArray(op, { name: "correct", dtype: "uint8", anyLength: true, ...of4 }),
    ...badArray(op, { name: "flawed", dtype: "int8", ...of4 }),
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
    ...badNumber(op, "flawedPenalty", "a number of at least 0", [-1, Infinity]),
    ...badChoice(op, "unknownVerdict", unknownVerdicts),
    ...badCall(op, false),
    {
      what: "a verdict out of range",
      change: { flawed: [0, 3, 0, 2] },
      message: `${op}: expected flawed[3] to be 1 (flawed), 0 (sound) or -1 (unknown), got 2`,
    },
    ...[-1, 2].map((id) => ({
      what: `an id of ${id}`,
      change: { groupIds: [0, 1, id, 0] },
      message: `${op}: expected groupIds[2] to be in 0..1, got ${id}`,
    })),
    ...[
      [[1, 2, 4], /^learningProgress: expected groupOffsets\[0\] to be 0, got 1$/],
      [[0, 2, 3], /^learningProgress: expected groupOffsets\[2\] to be 4, the number of responses, got 3$/],
      [[0, 3, 2, 4], /^learningProgress: expected groupOffsets\[2\] to be .*3.*4, got 2$/],
      [[0, 9, 4], /^learningProgress: expected groupOffsets\[1\] to be .*0.*4, got 9$/],
    ].map(([groupOffsets, message]) => ({
      what: `offsets ${groupOffsets}`,
      change: { ...noIds, groupOffsets },
      message: message as RegExp,
    })),
    {
      what: "no grouping",
      change: noIds,
      message: `${op}: expected one of groupSize, groupOffsets, and groupIds with groups, got none of them`,
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
  ]);
});
