/** The judge's training rewards against test/fixtures/fapo_golden.json. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { genrmReward } from "fapo-kernels/genrm";
import { golden } from "./support/golden.ts";
import { close } from "./support/ops.ts";

test("the rewards of eleven judgements of a solution of seven steps", () => {
  const cases = golden.genrm_n7;
  assert.equal(cases.length, 11);
  const { rewards } = genrmReward({
    predicted: cases.map(({ pred }) => pred ?? -2),
    truth: cases.map(({ gt }) => gt),
    steps: cases.map(() => 7),
  });
  close(
    "genrm",
    rewards.data,
    cases.map(({ reward }) => reward),
  );
});
