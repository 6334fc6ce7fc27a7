import assert from "node:assert/strict";
import { test } from "node:test";
import { measure, workload } from "../examples/judge-overlap.ts";

test("with verdicts per group the judge's time hides behind rollouts and updates", async () => {
  const load = { ...workload, groups: 32, rollout: 500, judgement: 100 };
  const [sequential, batch, groups] = await measure(load);
  // Margins are wide, for machines that are busy: measured are 31, 21 and 0.1 %.
  assert.ok(sequential!.share > 0.25, `one after the other: ${sequential!.share}`);
  assert.ok(groups!.share < 0.2, `group by group: ${groups!.share}`);
  assert.ok(groups!.waiting < batch!.waiting && batch!.waiting < sequential!.waiting);
  assert.ok(groups!.step < sequential!.step);
});
