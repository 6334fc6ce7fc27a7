import assert from "node:assert/strict";
import { type FapoPenaltyResult, fapoPenalty, type UnknownVerdict } from "fapo-kernels";
import fc from "fast-check";
import { type PenaltyCase, penaltyReference } from "./reference/advantage.ts";
import { assertSameOutputs, close, inSomeForm, integer, pick, poisoned, type Random, times } from "./support/ops.ts";
import { assertRefusals, badArray, badCall, badChoice, badNumber, badOut } from "./support/refusals.ts";
import { assertFails, assertSameBits, forEachDevice, rng, type TestDevice } from "./support.ts";

const unknownVerdicts: readonly UnknownVerdict[] = ["sound", "flawed", "exclude"];
const overlong = { maxLength: 8192, buffer: 4096 };

function randomVerdicts(random: Random, size: number): { correct: number[]; flawed: number[] } {
  return {
    correct: times(size, () => (random() < 0.6 ? pick(random, [1, 1, 2, 255]) : 0)),
    flawed: times(size, () => integer(random, -1, 1)),
  };
}

function run(device: TestDevice, options: PenaltyCase): { rewards: number[]; fapoRewards: number[]; valid: number[] } {
  return numbers(device, fapoPenalty({ ...options, device: device.name }));
}

function numbers(device: TestDevice, result: FapoPenaltyResult): ReturnType<typeof penaltyReference> {
  return {
    rewards: device.floats(result.rewards),
    fapoRewards: device.floats(result.fapoRewards),
    valid: Array.from(device.read(result.valid)),
  };
}

forEachDevice("fapoPenalty is the definition, for every combination of options", (device) => {
  const random = rng(1);
  for (const unknownVerdict of unknownVerdicts) {
    for (const withOverlong of [false, true]) {
      for (const custom of [false, true]) {
        for (let repeat = 0; repeat < 40; repeat++) {
          const size = integer(random, 0, 70);
          const { correct, flawed } = randomVerdicts(random, size);
          const responseLengths = times(size, () => integer(random, 0, 10_000));
          const options: PenaltyCase = {
            correct,
            flawed,
            unknownVerdict,
            flawedPenalty: pick(random, [0, 1, 2 / 3, 4 / 3, 2, random() * 5]),
            ...(withOverlong && {
              responseLengths,
              overlong: pick(random, [overlong, { ...overlong, factor: random() * 3 }, { maxLength: 9, buffer: 9 }]),
            }),
            ...(custom && { rewardCorrect: random() * 4 - 2, rewardWrong: random() * 4 - 2 }),
          };
          const expected = penaltyReference(options);
          const result = fapoPenalty({
            ...options,
            correct: inSomeForm(device, random, Uint8Array.from(correct)),
            flawed: random() < 0.2 ? flawed : inSomeForm(device, random, Int8Array.from(flawed)),
            ...(withOverlong && { responseLengths: inSomeForm(device, random, Int32Array.from(responseLengths)) }),
            device: device.name,
          });
          const actual = numbers(device, result);
          close("rewards", actual.rewards, expected.rewards);
          close("fapoRewards", actual.fapoRewards, expected.fapoRewards);
          assert.deepEqual(actual.valid, expected.valid);
          for (const tensor of [result.rewards, result.fapoRewards, result.valid]) {
            assert.deepEqual(tensor.shape, [size]);
            assert.equal(tensor.device, device.name);
          }
        }
      }
    }
  }
});

forEachDevice("the verdict is looked at only where the answer is right", (device) => {
  for (const unknownVerdict of unknownVerdicts) {
    const { rewards, valid } = run(device, { correct: [0, 0, 0, 0], flawed: [1, 0, -1, 1], unknownVerdict });
    assert.deepEqual(rewards, [-1, -1, -1, -1]);
    assert.deepEqual(valid, [1, 1, 1, 1]);
  }
  assert.deepEqual(run(device, { correct: [0], flawed: [77] }).rewards, [-1]);
});

forEachDevice("an unknown verdict is sound, flawed, or takes the response out", (device) => {
  const verdicts = { correct: [1, 1, 1], flawed: [-1, 0, 1] };
  assert.deepEqual(run(device, verdicts), { rewards: [1, 1, 0], fapoRewards: [1, 1, 0], valid: [1, 1, 1] });
  assert.deepEqual(run(device, { ...verdicts, unknownVerdict: "flawed" }).rewards, [0, 1, 0]);
  const excluded = run(device, { ...verdicts, unknownVerdict: "exclude" });
  assert.deepEqual(excluded.valid, [0, 1, 1]);
  assert.deepEqual(excluded.rewards.slice(1), [1, 0]);
});

forEachDevice("any non-zero byte of correct is right", (device) => {
  const correct = times(256, (i) => i);
  const { rewards } = run(device, { correct, flawed: correct.map(() => 0) });
  assert.deepEqual(rewards, [-1, ...times(255, () => 1)]);
});

forEachDevice("the overlong penalty starts at the buffer, is -factor at maxLength and goes on below", (device) => {
  const responseLengths = [0, 4095, 4096, 4097, 6144, 8191, 8192, 12_288, 2 ** 31 - 1];
  const correct = responseLengths.map(() => 1);
  const options = { correct, flawed: responseLengths.map(() => 0), responseLengths };
  const { rewards, fapoRewards } = run(device, { ...options, overlong });
  assert.deepEqual(rewards.slice(0, 8), [1, 1, 1, 1 - 2 ** -12, 0.5, 2 ** -12, 0, -1]);
  close("rewards", rewards.slice(8), [1 - (2 ** 31 - 1 - 4096) / 4096]);
  assert.deepEqual(fapoRewards, correct);
  const doubled = run(device, { ...options, overlong: { ...overlong, factor: 2 } });
  assert.deepEqual(doubled.rewards.slice(0, 8), [1, 1, 1, 1 - 2 ** -11, 0, -1 + 2 ** -11, -1, -3]);
  assert.deepEqual(run(device, { ...options, overlong: { ...overlong, factor: 0 } }).rewards, correct);
});

forEachDevice("a flawed positive of 6144 tokens gets -0.5 with the defaults of FAPO", (device) => {
  assert.deepEqual(run(device, { correct: [1], flawed: [1], responseLengths: [6144], overlong }).rewards, [-0.5]);
});

forEachDevice("no response at all", (device) => {
  assert.deepEqual(run(device, { correct: [], flawed: [] }), { rewards: [], fapoRewards: [], valid: [] });
  const none = { correct: [], flawed: [], responseLengths: [], overlong };
  assert.deepEqual(run(device, none), { rewards: [], fapoRewards: [], valid: [] });
});

forEachDevice("penalty 0 gives the outcome's rewards bitwise, and the rewards are linear in the penalty", (device) => {
  const verdict = fc.record({ correct: fc.nat(1), flawed: fc.integer({ min: -1, max: 1 }) });
  const property = fc.property(
    fc.array(verdict, { maxLength: 30 }),
    fc.constantFrom(...unknownVerdicts),
    fc.integer({ min: 0, max: 64 }),
    (verdicts, unknownVerdict, sixteenths) => {
      const correct = verdicts.map((one) => one.correct);
      const flawed = verdicts.map((one) => one.flawed);
      const at = (flawedPenalty: number): Float32Array =>
        device.read(
          fapoPenalty({ correct, flawed, unknownVerdict, flawedPenalty, device: device.name }).rewards,
        ) as Float32Array;
      const outcome = Float32Array.from(correct, (right) => (right ? 1 : -1));
      assertSameBits(at(0), outcome);
      const [one, penalized] = [at(1), at(sixteenths / 16)];
      for (const [i, reward] of outcome.entries()) {
        assert.ok((penalized[i]! - reward) * 16 === (one[i]! - reward) * sixteenths);
      }
    },
  );
  fc.assert(property, { seed: 11, numRuns: device.runs(10_000) });
});

forEachDevice("a response's reward depends on nothing but the response", (device) => {
  const random = rng(4);
  const { correct, flawed } = randomVerdicts(random, 500);
  const responseLengths = times(500, () => integer(random, 0, 9000));
  const whole = run(device, { correct, flawed, responseLengths, overlong, flawedPenalty: 0.7 });
  for (const i of [0, 1, 63, 64, 255, 256, 499]) {
    const alone = run(device, {
      correct: [correct[i]!],
      flawed: [flawed[i]!],
      responseLengths: [responseLengths[i]!],
      overlong,
      flawedPenalty: 0.7,
    });
    assert.ok(Object.is(alone.rewards[0], whole.rewards[i]));
    assert.ok(Object.is(alone.fapoRewards[0], whole.fapoRewards[i]));
  }
});

forEachDevice("out is returned, fully written, and its tensors are kept", (device) => {
  const random = rng(5);
  const { correct, flawed } = randomVerdicts(random, 100);
  const options = { correct, flawed, unknownVerdict: "exclude" as const, device: device.name };
  const expected = fapoPenalty(options);
  const out = poisoned(device, expected);
  const tensors = { ...out };
  assert.equal(fapoPenalty({ ...options, out }), out);
  assert.deepEqual(Object.keys(out), Object.keys(tensors));
  for (const [name, tensor] of Object.entries(tensors)) assert.equal(out[name as keyof typeof out], tensor);
  assertSameOutputs(device, out, expected);
});

forEachDevice("fapoPenalty refuses bad input, writes nothing, and says what is wrong", (device) => {
  const op = "fapoPenalty";
  const good = (): Record<string, unknown> => ({
    correct: Uint8Array.of(1, 0, 1, 1),
    flawed: Int8Array.of(1, 0, -1, 0),
    responseLengths: Int32Array.of(10, 20, 30, 40),
    overlong: { maxLength: 40, buffer: 20 },
    device: device.name,
  });
  const of4 = { length: 4, plain: true } as const;
  const within = (change: Record<string, unknown>): { overlong: Record<string, unknown> } => ({
    overlong: { maxLength: 40, buffer: 20, ...change },
  });
  const fourFloats = new Float32Array(4);
  const result = fapoPenalty(good() as never);
  assertRefusals(device, fapoPenalty, good, [
    ...badArray(op, { name: "correct", dtype: "uint8", anyLength: true, ...of4 }),
    ...badArray(op, { name: "flawed", dtype: "int8", ...of4 }),
    ...badArray(op, { name: "responseLengths", dtype: "int32", optional: true, ...of4 }),
    ...badNumber(op, "flawedPenalty", "a number of at least 0", [-1, -1e-300, Number.POSITIVE_INFINITY]),
    ...badNumber(op, "rewardCorrect", "a finite number", [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]),
    ...badNumber(op, "rewardWrong", "a finite number", [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]),
    ...badChoice(op, "unknownVerdict", unknownVerdicts),
    ...badCall(op),
    ...badOut(op, device, result),
    {
      what: "a verdict out of range",
      change: { flawed: [0, 3, 0, 2] },
      message: `${op}: expected flawed[3] to be 1 (flawed), 0 (sound) or -1 (unknown), got 2`,
    },
    {
      what: "a negative length",
      change: { responseLengths: [1, 2, -3, 4] },
      message: `${op}: expected responseLengths[2] to be a number of tokens, got -3`,
    },
    {
      what: "overlong without lengths",
      change: { responseLengths: undefined },
      message: `${op}: overlong needs responseLengths`,
    },
    {
      what: "lengths without overlong",
      change: { overlong: undefined },
      message: `${op}: responseLengths are given, but no overlong`,
    },
    ...[
      [null, "null"],
      [true, "true"],
      [4096, "4096"],
      ["x", '"x"'],
    ].map(([overlong, got]) => ({
      what: `overlong is ${got}`,
      change: { overlong },
      message: `${op}: expected overlong to be { maxLength, buffer, factor? }, got ${got}`,
    })),
    ...["maxLength", "buffer"].flatMap((name) =>
      [undefined, 0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53].map((value) => ({
        what: `overlong.${name} is ${value}`,
        change: within({ [name]: value }),
        message: `${op}: overlong: expected ${name} to be a number of tokens, got ${value}`,
      })),
    ),
    ...[-1, Number.NaN, Number.POSITIVE_INFINITY].map((factor) => ({
      what: `overlong.factor is ${factor}`,
      change: within({ factor }),
      message: `${op}: overlong: expected factor to be a number of at least 0, got ${factor}`,
    })),
    {
      what: "buffer above maxLength",
      change: within({ buffer: 41 }),
      message: `${op}: overlong: expected buffer to be at most maxLength (40), got 41`,
    },
    {
      what: "an unknown option of overlong",
      change: within({ bufer: 4 }),
      message: `${op}: overlong: unknown option bufer`,
    },
    {
      what: "outputs that share memory",
      change: {
        out: { ...result, rewards: device.overlapping(fourFloats), fapoRewards: device.overlapping(fourFloats) },
      },
      message: /^fapoPenalty: expected out\.(fapoRewards|rewards) to be memory of its own, got memory that overlaps /,
    },
  ]);
  for (const [value, got] of [
    [undefined, "undefined"],
    [null, "null"],
    [3, "3"],
    ["x", '"x"'],
  ] as const) {
    const message = `${op}: expected options to be an object, got ${got}`;
    assertFails(() => fapoPenalty(value as never), "ERR_INVALID_ARGUMENT", message);
  }
});
