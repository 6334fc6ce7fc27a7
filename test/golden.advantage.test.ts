/**
 * Rewards and advantages against test/fixtures/fapo_golden.json: the overlong penalties, and eleven groups with four
 * penalties in seven conventions. Left out: a singleton as OpenRLHF would have it, which it refuses.
 */
import assert from "node:assert/strict";
import { type AdvantageOptions, fapoAdvantage, fapoPenalty, groupAdvantage } from "fapo-kernels";
import { type Convention, golden } from "./support/golden.ts";
import { close } from "./support/ops.ts";
import { forEachDevice } from "./support.ts";

/** How the options say what the library does. */
const conventions: Record<Convention, AdvantageOptions> = {
  paper: { ddof: 0, epsilon: 0 },
  verl: { singleton: "raw" },
  trl: { epsilon: 1e-4 },
  mlx: { ddof: 0, epsilon: 1e-4 },
  openrlhf: { epsilon: 1e-9 },
  drgrpo: { scale: "none", singleton: "raw" },
  rloo: { baseline: "leave-one-out", scale: "none", singleton: "raw" },
};

const classes = { C: [1, 0], F: [1, 1], W: [0, 0] } as const;

/** `warmup_2C2F4W`, `allC`, `singleton_F`: who is in the group. */
function verdictsOf(name: string): { correct: number[]; flawed: number[] } {
  const composition = name.startsWith("all") ? `8${name.slice(3)}` : name.slice(name.indexOf("_") + 1);
  const responses = [...composition.matchAll(/(\d*)([CFW])/g)].flatMap(([, count, kind]) =>
    Array.from({ length: Number(count || 1) }, () => classes[kind as "C" | "F" | "W"]),
  );
  return { correct: responses.map(([correct]) => correct), flawed: responses.map(([, flawed]) => flawed) };
}

const groups = Object.entries(golden.advantages).map(([key, expected]) => {
  const [name, lambda] = key.split("|lam=") as [string, string];
  // Six decimals in the key stand for thirds.
  return { key, ...verdictsOf(name), flawedPenalty: Math.round(Number(lambda) * 3) / 3, expected };
});

forEachDevice("the overlong penalties of FAPO's two lengths", (device) => {
  for (const [maxLength, cases] of [
    [8192, golden.overlong_8192_4096],
    [20_480, golden.overlong_20480_4096],
  ] as const) {
    const ones = cases.map(() => 1);
    const { rewards } = fapoPenalty({
      correct: ones,
      flawed: cases.map(() => 0),
      responseLengths: cases.map(({ L }) => L),
      overlong: { maxLength, buffer: 4096 },
      device: device.name,
    });
    assert.deepEqual(
      device.floats(rewards),
      cases.map(({ pen }) => 1 + pen),
    );
  }
});

for (const [name, convention] of Object.entries(conventions) as [Convention, AdvantageOptions][]) {
  forEachDevice(`the advantages of ${name}, group by group`, (device) => {
    assert.equal(groups.length, 44);
    for (const { key, correct, flawed, flawedPenalty, expected } of groups) {
      const want = expected[name];
      if (want.includes(null)) continue;
      const options = { ...convention, groupSize: correct.length, device: device.name };
      const result = fapoAdvantage({ correct, flawed, flawedPenalty, ...options });
      const advantages = device.floats(result.advantages);
      close(name, device.floats(result.rewards), expected.rewards);
      close(name, advantages, want as number[]);
      if (correct.length > 1 && new Set(expected.rewards).size === 1) {
        assert.ok(
          advantages.every((value) => value === 0),
          `${key}: exactly 0`,
        );
      }
      if (correct.length > 1) {
        close(`${name}: mean`, device.floats(result.groupMean), [expected.mean]);
        close(`${name}: std`, device.floats(result.groupStd), [convention.ddof === 0 ? expected.std0 : expected.std1!]);
      }
    }
  });
}

forEachDevice("all groups of a convention in one call", (device) => {
  const lambda1 = groups.filter(({ flawedPenalty }) => flawedPenalty === 1);
  const groupOffsets = [0];
  for (const { correct } of lambda1) groupOffsets.push(groupOffsets.at(-1)! + correct.length);
  const { advantages } = groupAdvantage({
    rewards: lambda1.flatMap(({ expected }) => expected.rewards),
    groupOffsets,
    singleton: "raw",
    device: device.name,
  });
  close(
    "in one call",
    device.floats(advantages),
    lambda1.flatMap(({ expected }) => expected.verl as number[]),
  );
});

// Correct, flawed, wrong: as the paper has it, and as its scripts compute it.
const table = [
  {
    group: "2C2F4W",
    paper: [1.507556722889, 0.301511344578, -0.904534033733],
    scripts: [1.410188596137, 0.282037719227, -0.846113157682],
  },
  { group: "3C2F3W", paper: [1.154700538379, 0, -1.154700538379], scripts: [1.080122283069, 0, -1.080122283069] },
  {
    group: "5C2F1W",
    paper: [Math.SQRT1_2, -Math.SQRT1_2, -2.12132034356],
    scripts: [0.661436952767, -0.661436952767, -1.984310858302],
  },
  { group: "6C2F", paper: [0.57735026919, -1.732050807569], scripts: [0.540060558203, -1.62018167461] },
];

forEachDevice("four groups from warm-up to refinement, in the paper and in its scripts", (device) => {
  for (const { group, paper, scripts } of table) {
    const { correct, flawed } = verdictsOf(`_${group}`);
    for (const [options, want] of [
      [{ ddof: 0, epsilon: 0 }, paper],
      [{}, scripts],
    ] as const) {
      const result = fapoAdvantage({ correct, flawed, ...options, groupSize: 8, device: device.name });
      const distinct = [...new Set(device.floats(result.advantages))];
      close("table", distinct, want);
    }
  }
});
