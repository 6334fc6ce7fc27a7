/** The gradient of policyLoss against differences of the definition in float64, and at the exact kinks of the loss. */
import assert from "node:assert/strict";
import { type PolicyLossOptions, policyLoss } from "fapo-kernels";
import { klTerm, type PolicyCase, policyReference, tokenTerm } from "./reference/policy.ts";
import { close, pick, times } from "./support/ops.ts";
import { asOptions, klEstimators, lossAggModes, somePolicyCase } from "./support/policyCases.ts";
import { forEachDevice, rng, type TestDevice } from "./support.ts";

const step = 1e-5;

/** Whether the loss bends within two steps of a token's log-prob. */
function nearKink(input: PolicyCase, token: number): boolean {
  const { clipRatioLow = 0.2, clipRatioHigh = 0.28, clipRatioC = 10, logRatioClamp = 20 } = input;
  const difference = input.logprobs[token]! - (input.oldLogprobs ?? input.logprobs)[token]!;
  const logs = [
    Math.log(1 - clipRatioLow),
    Math.log(1 + clipRatioHigh),
    Math.log(clipRatioC),
    logRatioClamp,
    -logRatioClamp,
  ];
  const q = (input.refLogprobs?.[token] ?? 0) - input.logprobs[token]!;
  const distances = [...logs.map((log) => difference - log), ...[-20, 20, 2.6104].map((bound) => q - bound)];
  return distances.some((distance) => Math.abs(distance) < 1e-3);
}

forEachDevice("the gradient is the derivative of the loss, token by token", (device) => {
  const random = rng(40);
  let checked = 0;
  for (const lossAggMode of lossAggModes) {
    for (const klEstimator of klEstimators) {
      for (const old of [true, false]) {
        for (const weightsPer of ["none", "token", "sequence"] as const) {
          for (let repeat = 0; repeat < 4; repeat++) {
            const drawn = somePolicyCase(random, {
              lossAggMode,
              klEstimator,
              klCoef: klEstimator === "none" ? 0 : 0.4,
              old,
              advantagesPer: pick(random, ["token", "sequence"]),
              weightsPer,
              mask: pick(random, ["none", "random"]),
              wild: random() < 0.3,
            });
            const { gradScale: _, ...input } = drawn;
            const result = policyLoss(asOptions(device, random, input));
            const gradients = device.floats(result.gradLogprobs);
            const logprobs = Array.from(input.logprobs);
            // Where there are no old log-probs, those of the current policy stand still.
            const fixed = { ...input, oldLogprobs: input.oldLogprobs ?? logprobs };
            for (const token of logprobs.keys()) {
              if (nearKink(input, token)) continue;
              const lossAt = (offset: number): number =>
                policyReference({ ...fixed, logprobs: logprobs.with(token, logprobs[token]! + offset) }).loss;
              const difference = (lossAt(step) - lossAt(-step)) / (2 * step);
              // A loss of 5e8, from a ratio of exp(20), has no digits left for a difference of 1e-5.
              if (Math.abs(lossAt(0)) > 1e3) continue;
              close("central differences", [gradients[token]!], [difference], { atol: 1e-8, rtol: 1e-6 });
              checked++;
            }
          }
        }
      }
    }
  }
  assert.ok(checked > 4000, `${checked}`);
});

function single(
  device: TestDevice,
  options: Partial<PolicyLossOptions> & { logprob: number; oldLogprob: number; advantage: number },
) {
  const { logprob, oldLogprob, advantage, ...rest } = options;
  const result = policyLoss({
    logprobs: Float32Array.of(logprob),
    oldLogprobs: Float32Array.of(oldLogprob),
    advantages: Float32Array.of(advantage),
    lossAggMode: "token-sum",
    device: device.name,
    ...rest,
  });
  return { gradient: device.floats(result.gradLogprobs)[0]!, loss: result.loss.item(), metrics: result.metrics };
}

// exp(d) = 1 + d for |d| = 2^-52, exactly: the one place where a ratio can sit on its bound to the last bit.
const tiny = 2 ** -52;

forEachDevice("at the exact bound of a clip the gradient passes, one ulp beyond it is 0", (device) => {
  for (const advantage of [1, 0.37, 2.5]) {
    const high = { clipRatioHigh: tiny, oldLogprob: 0, advantage };
    assert.equal(single(device, { ...high, logprob: tiny }).gradient, Math.fround(-advantage));
    assert.ok(single(device, { ...high, logprob: 2 * tiny }).gradient === 0);
    const low = { clipRatioLow: tiny, oldLogprob: 0, advantage: -advantage };
    assert.equal(single(device, { ...low, logprob: -tiny }).gradient, Math.fround(advantage));
    assert.ok(single(device, { ...low, logprob: -2 * tiny }).gradient === 0);
    // With both bounds at 1 and no old log-probs, every token is on its bound.
    for (const signed of [advantage, -advantage]) {
      const closed = { clipRatioLow: 0, clipRatioHigh: 0, oldLogprob: -3, logprob: -3, advantage: signed };
      const { gradient, metrics } = single(device, closed);
      assert.equal(gradient, Math.fround(-signed));
      assert.deepEqual([metrics.clipFractionHigh.item(), metrics.clipFractionLow.item()], [0, 0]);
    }
  }
});

forEachDevice("on the side that does not bind the gradient passes beyond the bound", (device) => {
  // A > 0 and the ratio falls, or A < 0 and it rises: max takes the unclipped branch.
  const down = single(device, { logprob: -3, oldLogprob: -1, advantage: 2 });
  close("unbound", [down.gradient], [-2 * Math.exp(-2)]);
  const up = single(device, { logprob: -1, oldLogprob: -3, advantage: -2 });
  close("unbound", [up.gradient], [2 * Math.exp(2)]);
  assert.deepEqual([down.metrics.clipFractionLow.item(), up.metrics.clipFractionHigh.item()], [0, 0]);
});

forEachDevice("the dual clip takes the gradient strictly beyond c, and where A < 0 alone", (device) => {
  const at = { clipRatioC: 1 + tiny, oldLogprob: 0 };
  assert.equal(single(device, { ...at, logprob: tiny, advantage: -2 }).gradient, 2);
  const beyond = single(device, { ...at, logprob: 2 * tiny, advantage: -2 });
  assert.ok(beyond.gradient === 0);
  assert.equal(beyond.metrics.clipFractionDual.item(), 1);
  assert.equal(single(device, { ...at, logprob: tiny, advantage: -2 }).metrics.clipFractionDual.item(), 0);

  const far = { oldLogprob: -5, logprob: -1, clipRatioHigh: 1000 };
  const kept = single(device, { ...far, advantage: 3 });
  close("no dual clip for A > 0", [kept.gradient, kept.loss], [-3 * Math.exp(4), -3 * Math.exp(4)]);
  const cut = single(device, { ...far, advantage: -3 });
  assert.ok(cut.gradient === 0);
  assert.equal(cut.loss, 30);
  const off = single(device, { ...far, advantage: -3, clipRatioC: Number.POSITIVE_INFINITY });
  close("dual clip off", [off.gradient, off.loss], [3 * Math.exp(4), 3 * Math.exp(4)]);
});

forEachDevice("at the exact log-ratio clamp the gradient passes, beyond it is 0", (device) => {
  const wide = { clipRatioLow: 1, clipRatioHigh: 1e12, clipRatioC: Number.POSITIVE_INFINITY, oldLogprob: 0 };
  for (const sign of [1, -1]) {
    for (const [clamp, beyond] of [
      [20, 20 + 2 ** -19],
      [0.5, 0.5 + 2 ** -24],
    ] as const) {
      const at = single(device, { ...wide, logRatioClamp: clamp, logprob: sign * clamp, advantage: -1 });
      close("at the clamp", [at.gradient, at.loss], [Math.exp(sign * clamp), Math.exp(sign * clamp)]);
      const out = single(device, { ...wide, logRatioClamp: clamp, logprob: sign * Math.fround(beyond), advantage: -1 });
      assert.ok(out.gradient === 0);
      close("beyond the clamp", [out.loss], [Math.exp(sign * clamp)]);
    }
  }
});

forEachDevice("the kinks of KL: q at 20 passes and beyond does not, k3 has no gradient above 10", (device) => {
  const logprob = 0;
  const at = (klEstimator: "k1" | "k2" | "k3", q: number): { gradient: number; kl: number } => {
    const { gradient, metrics } = single(device, {
      logprob,
      oldLogprob: logprob,
      advantage: 0,
      klEstimator,
      klCoef: 1,
      refLogprobs: Float32Array.of(logprob + q),
    });
    return { gradient, kl: metrics.kl.item() };
  };
  const past = 20 + 2 ** -19;
  assert.deepEqual(at("k1", 20), { gradient: 1, kl: -20 });
  assert.deepEqual(at("k1", -20), { gradient: 1, kl: 20 });
  assert.deepEqual(at("k2", 20), { gradient: -20, kl: 200 });
  assert.deepEqual(at("k2", -20), { gradient: 20, kl: 200 });
  for (const sign of [1, -1]) {
    assert.equal(at("k1", sign * past).kl, -sign * 20);
    assert.equal(at("k2", sign * past).kl, 200);
    for (const estimator of ["k1", "k2", "k3"] as const) assert.ok(at(estimator, sign * past).gradient === 0);
  }
  // exp(-20) + 19 is above 10, too; exp(-10) + 9 is not.
  assert.deepEqual(at("k3", -20), { gradient: 0, kl: 10 });
  close("k3 at -10", [at("k3", -10).gradient, at("k3", -10).kl], [1 - Math.exp(-10), Math.exp(-10) + 9]);
  // exp(q) - q - 1 is 10 at q = 2.6104...
  for (const q of [2.609375, 2.61328125]) {
    const expected = klTerm("k3", q);
    close("k3 around 10", [at("k3", q).gradient, at("k3", q).kl], [expected.gradient, expected.value]);
  }
  assert.ok(at("k3", 2.61328125).gradient === 0);
  assert.ok(at("k3", 2.609375).gradient < -12);
});

forEachDevice("a token's gradient is the one-sided derivative from inside at each bound", (device) => {
  const inputs = { oldLogprob: 0, refLogprob: 0, importanceWeight: 1 };
  const at = (options: Partial<PolicyCase>, logprob: number, advantage: number): number =>
    tokenTerm(options, { ...inputs, logprob, advantage }).loss;
  const open = { clipRatioLow: 0, clipRatioHigh: 0 };
  for (const [advantage, inside] of [
    [1.5, -step],
    [-1.5, step],
  ] as const) {
    const oneSided = (at(open, inside, advantage) - at(open, 0, advantage)) / inside;
    const { gradient } = single(device, { ...open, logprob: 0, oldLogprob: 0, advantage });
    close("one-sided", [gradient], [oneSided], { atol: 0, rtol: 1e-5 });
  }
});

forEachDevice("a descent step along the gradient lowers the loss", (device) => {
  const random = rng(41);
  for (let repeat = 0; repeat < 50; repeat++) {
    const size = 20;
    const logprobs = Float32Array.from(times(size, () => -2 * random()));
    const oldLogprobs = logprobs.map((value) => value + 0.1 * (random() - 0.5));
    const advantages = Float32Array.from(times(size, () => random() - 0.5));
    const before = policyLoss({ logprobs, oldLogprobs, advantages, device: device.name });
    const gradients = device.floats(before.gradLogprobs);
    const moved = logprobs.map((value, i) => value - 0.05 * gradients[i]!);
    const after = policyLoss({ logprobs: moved, oldLogprobs, advantages, device: device.name });
    assert.ok(after.loss.item() < before.loss.item());
  }
});
