/** What a graph saves: the time of a FAPO step, started by its calls and by one replay. */
import assert from "node:assert/strict";
import { captureGraph, fapoAdvantage, fusedPolicyLoss, synchronize, tensor, toDevice, zeros } from "fapo-kernels";
import { logitsTensor } from "../support/logits.ts";
import { policyBatch } from "../support/policy.ts";
import { count, gpu, report, test } from "./parts.ts";

const device = gpu.name;
const steps = count(2000, 3);

/** Microseconds a step takes: to be started, and in all. */
function timed(step: () => void): { started: number; whole: number } {
  for (let i = 0; i < steps / 10; i++) step();
  synchronize(device);
  const begin = performance.now();
  for (let i = 0; i < steps; i++) step();
  const started = performance.now() - begin;
  synchronize(device);
  const perStep = (ms: number): number => Number(((1000 * ms) / steps).toFixed(2));
  return { started: perStep(started), whole: perStep(performance.now() - begin) };
}

for (const [rows, vocab] of [
  [64, count(1000, 100)],
  [count(1024, 64), count(32_000, 1000)],
] as const) {
  test(`a FAPO step over ${rows} x ${vocab} logits, by calls and by a replay`, () => {
    const sequences = 16;
    const batch = policyBatch(rows, vocab, "bfloat16", 5);
    const logits = logitsTensor(gpu, batch);
    const on = <T extends Parameters<typeof tensor>[0]>(data: T) => toDevice(tensor(data), device);
    const correct = on(Uint8Array.from({ length: sequences }, (_, i) => i % 2));
    const flawed = on(new Int8Array(sequences));
    const cuSeqlens = on(Int32Array.from({ length: sequences + 1 }, (_, i) => (i * rows) / sequences));
    const tokenIds = on(batch.tokenIds);
    const oldLogprobs = on(new Float32Array(rows).fill(-Math.log(vocab)));
    const advantage = fapoAdvantage({ correct, flawed, groupSize: 8 });
    const inputs = { logits, tokenIds, oldLogprobs, cuSeqlens, advantages: advantage.advantages };
    const loss = fusedPolicyLoss(inputs);
    const step = (): void => {
      fapoAdvantage({ correct, flawed, groupSize: 8, out: advantage });
      fusedPolicyLoss({ ...inputs, out: loss });
    };
    step();
    const expected = toDevice(loss.gradLogits, "cpu");
    using graph = captureGraph(step);
    toDevice(zeros(loss.gradLogits.shape, { dtype: "bfloat16", device }), device, { out: loss.gradLogits });
    graph.replay();
    assert.deepEqual(toDevice(loss.gradLogits, "cpu").data, expected.data);
    report(`${rows} x ${vocab}, microseconds a step`, { calls: timed(step), replays: timed(() => graph.replay()) });
  });
}
