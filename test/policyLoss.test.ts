import assert from "node:assert/strict";
import { policyLoss } from "fapo-kernels";
import { type PolicyCase, policyReference } from "./reference/policy.ts";
import { assertSameOutputs, close, metricValues, pick, poisoned, times } from "./support/ops.ts";
import {
  asOptions,
  compareWithReference,
  klEstimators,
  lossAggModes,
  maskKinds,
  somePolicyCase,
} from "./support/policyCases.ts";
import { forEachDevice, rng } from "./support.ts";

for (const lossAggMode of lossAggModes) {
  forEachDevice(`policyLoss is the definition, for every combination of options, with ${lossAggMode}`, (device) => {
    const random = rng(100 + lossAggModes.indexOf(lossAggMode));
    for (const klEstimator of klEstimators) {
      for (const klCoef of klEstimator === "none" ? [0] : [0, 0.3]) {
        for (const old of [true, false]) {
          for (const advantagesPer of ["token", "sequence"] as const) {
            for (const weightsPer of ["none", "token", "sequence"] as const) {
              for (const mask of maskKinds) {
                for (const wild of [false, true]) {
                  const input = somePolicyCase(random, {
                    lossAggMode,
                    klEstimator,
                    klCoef,
                    old,
                    advantagesPer,
                    weightsPer,
                    mask,
                    wild,
                  });
                  const result = policyLoss(asOptions(device, random, input));
                  const expected = policyReference(input);
                  compareWithReference(device, result, expected);
                  const gradients = device.floats(result.gradLogprobs);
                  for (const [token, counted] of Array.from(input.responseMask ?? []).entries()) {
                    if (counted === 0) assert.ok(gradients[token] === 0);
                  }
                  assert.deepEqual(result.loss.shape, []);
                  assert.deepEqual(result.gradLogprobs.shape, [input.logprobs.length]);
                }
              }
            }
          }
        }
      }
    }
  });
}

forEachDevice("the defaults are those of FAPO's scripts", (device) => {
  const random = rng(3);
  const bare = {
    logprobs: Float32Array.from(times(50, () => -5 * random())),
    oldLogprobs: Float32Array.from(times(50, () => -5 * random())),
    advantages: Float32Array.from(times(50, () => 2 * random() - 1)),
    device: device.name,
  };
  const explicit = policyLoss({
    ...bare,
    responseMask: new Uint8Array(50).fill(1),
    clipRatioLow: 0.2,
    clipRatioHigh: 0.28,
    clipRatioC: 10,
    logRatioClamp: 20,
    klEstimator: "none",
    klCoef: 0,
    lossAggMode: "token-mean",
    globalTokens: 50,
    gradScale: 1,
  });
  assertSameOutputs(device, policyLoss(bare), explicit);
});

forEachDevice("where N is S, a length of both means one value per sequence", (device) => {
  // Three tokens, three sequences; the first is empty and the last has two tokens.
  const input: PolicyCase = {
    logprobs: [-1, -2, -3],
    oldLogprobs: [-1.1, -1.9, -3.3].map(Math.fround),
    advantages: [100, 2, -3],
    importanceWeights: [50, 0.5, 0.25],
    cuSeqlens: [0, 0, 1, 3],
    lossAggMode: "token-sum",
  };
  const result = policyLoss(asOptions(device, rng(1), input));
  compareWithReference(device, result, policyReference(input));
  const perToken: PolicyCase = { ...input, advantages: [2, -3, -3], importanceWeights: [0.5, 0.25, 0.25] };
  const { cuSeqlens: _, ...withoutSequences } = perToken;
  const packed = policyLoss(asOptions(device, rng(1), withoutSequences));
  close("N = S", device.floats(result.gradLogprobs), device.floats(packed.gradLogprobs));
});

forEachDevice(
  "without old log-probs the ratio is 1: the loss is -mean(A), the gradient -A/N, nothing is clipped",
  (device) => {
    const random = rng(14);
    for (const size of [1, 2, 63, 64, 65, 1000]) {
      const logprobs = Float32Array.from(times(size, () => -8 * random()));
      const advantages = Float32Array.from(times(size, () => 4 * random() - 2));
      const mean = advantages.reduce((sum, value) => sum + value, 0) / size;
      for (const old of [undefined, logprobs]) {
        const options = { logprobs, ...(old && { oldLogprobs: old }), advantages, device: device.name };
        const { loss, gradLogprobs, metrics } = policyLoss(options);
        close("ratio 1", [loss.item()], [-mean]);
        close(
          "ratio 1",
          device.floats(gradLogprobs),
          Array.from(advantages, (value) => -value / size),
        );
        const { tokens, ratioMean, ratioMax, ...others } = metricValues(metrics);
        assert.deepEqual([tokens, ratioMean, ratioMax], [size, 1, 1]);
        assert.ok(Object.values(others).every((value) => value === 0));
      }
    }
  },
);

forEachDevice("a padded batch is the packed one with offsets 0, T, 2T and a mask", (device) => {
  const random = rng(15);
  const [rows, width] = [4, 6];
  const lengths = [6, 3, 0, 1];
  const kept = times(rows * width, (i) => i % width < lengths[Math.floor(i / width)]!);
  const draw = (): Float32Array => Float32Array.from(times(rows * width, () => -2 * random()));
  const [logprobs, oldLogprobs] = [draw(), draw()];
  const packedOffsets = [0, 6, 9, 9, 10];
  const advantages = [1, -2, 3, 0.5];
  for (const lossAggMode of lossAggModes) {
    const shared = {
      advantages,
      lossAggMode,
      ...(lossAggMode.endsWith("norm") && { horizon: width }),
      device: device.name,
    };
    const padded = policyLoss({
      logprobs,
      oldLogprobs,
      responseMask: Uint8Array.from(kept, Number),
      cuSeqlens: times(rows + 1, (row) => row * width),
      ...shared,
    });
    const select = (values: Float32Array): Float32Array => values.filter((_, i) => kept[i]);
    const packed = policyLoss({
      logprobs: select(logprobs),
      oldLogprobs: select(oldLogprobs),
      cuSeqlens: packedOffsets,
      ...shared,
    });
    close("padded loss", [padded.loss.item()], [packed.loss.item()]);
    close(
      "padded gradient",
      device.floats(padded.gradLogprobs).filter((_, i) => kept[i]),
      device.floats(packed.gradLogprobs),
    );
    assert.equal(padded.metrics.sequences.item(), 3);
    assert.equal(packed.metrics.sequences.item(), 3);
    assert.equal(padded.metrics.tokens.item(), 10);
  }
});

forEachDevice("an estimator with klCoef 0 is reported and changes nothing else", (device) => {
  const random = rng(16);
  const draw = (): Float32Array => Float32Array.from(times(40, () => -3 * random()));
  const batch = { logprobs: draw(), oldLogprobs: draw(), advantages: draw(), device: device.name };
  const without = policyLoss(batch);
  for (const klEstimator of ["k1", "k2", "k3"] as const) {
    const reported = policyLoss({ ...batch, refLogprobs: draw(), klEstimator });
    assert.notEqual(reported.metrics.kl.item(), 0);
    const { loss, gradLogprobs } = reported;
    assertSameOutputs(device, { loss, gradLogprobs }, { loss: without.loss, gradLogprobs: without.gradLogprobs });
  }
});

forEachDevice("importance weights multiply the policy term and not the KL", (device) => {
  const random = rng(17);
  const draw = (): Float32Array => Float32Array.from(times(30, () => -3 * random()));
  const batch = { logprobs: draw(), oldLogprobs: draw(), advantages: draw(), lossAggMode: "token-sum" as const };
  const kl = { refLogprobs: draw(), klEstimator: "k3" as const, klCoef: 0.5 };
  const importanceWeights = new Float32Array(30).fill(2);
  const at = (options: object): number => policyLoss({ ...batch, ...options, device: device.name }).loss.item();
  const policyTerm = at({});
  const klTerm = at(kl) - policyTerm;
  close("weights", [at({ ...kl, importanceWeights })], [2 * policyTerm + klTerm], { atol: 1e-5, rtol: 1e-6 });
  close("weights", [at({ ...kl, importanceWeights: new Float32Array(30) })], [klTerm], { atol: 1e-5, rtol: 1e-6 });
});

forEachDevice("gradScale multiplies the gradient and not the loss", (device) => {
  const random = rng(18);
  const draw = (): Float32Array => Float32Array.from(times(30, () => -3 * random()));
  const batch = { logprobs: draw(), oldLogprobs: draw(), advantages: draw(), device: device.name };
  const plain = policyLoss(batch);
  for (const gradScale of [1024, 0.25, -2, 0]) {
    const scaled = policyLoss({ ...batch, gradScale });
    assert.ok(Object.is(scaled.loss.item(), plain.loss.item()));
    const expected = device.floats(plain.gradLogprobs).map((value) => value * gradScale);
    close("gradScale", device.floats(scaled.gradLogprobs), expected, { atol: 0, rtol: 1e-6 });
  }
});

forEachDevice("micro-batches with the global counts add up to the whole batch", (device) => {
  const random = rng(19);
  for (const lossAggMode of lossAggModes) {
    for (let repeat = 0; repeat < 30; repeat++) {
      const input = somePolicyCase(random, {
        lossAggMode,
        klEstimator: pick(random, klEstimators.slice(1)),
        klCoef: 0.2,
        old: true,
        advantagesPer: "sequence",
        weightsPer: "sequence",
        mask: "random",
        wild: false,
      });
      const { globalTokens: _, globalSequences: __, ...whole } = input;
      const { metrics } = policyReference(whole);
      if (metrics.tokens === 0) continue;
      const global = { globalTokens: metrics.tokens, globalSequences: metrics.sequences };
      const cuSeqlens = whole.cuSeqlens!;
      const all = policyLoss(asOptions(device, random, whole));
      const parts = cuSeqlens.slice(0, -1).map((begin, s) => {
        const end = cuSeqlens[s + 1]!;
        const cut = (values: ArrayLike<number> | undefined): number[] => Array.from(values!).slice(begin, end);
        return policyLoss(
          asOptions(device, random, {
            ...whole,
            ...global,
            logprobs: cut(whole.logprobs),
            oldLogprobs: cut(whole.oldLogprobs),
            refLogprobs: cut(whole.refLogprobs),
            responseMask: cut(whole.responseMask),
            advantages: [whole.advantages[s]!],
            importanceWeights: [whole.importanceWeights![s]!],
            cuSeqlens: [0, end - begin],
          }),
        );
      });
      const sum = parts.reduce((total, part) => total + part.loss.item(), 0);
      close("micro-batches: loss", [sum], [all.loss.item()], { atol: 1e-6, rtol: 1e-6 });
      // Row by row the parts are the whole, to the bit.
      const gradients = parts.flatMap((part) => device.floats(part.gradLogprobs));
      assert.deepEqual(gradients.map(Math.fround), device.floats(all.gradLogprobs).map(Math.fround));
      const counted = (name: "tokens" | "sequences"): number =>
        parts.reduce((total, part) => total + part.metrics[name].item(), 0);
      assert.deepEqual([counted("tokens"), counted("sequences")], [metrics.tokens, metrics.sequences]);
      for (const name of [
        "clipFractionHigh",
        "clipFractionLow",
        "clipFractionDual",
        "ratioMean",
        "approxKl",
        "kl",
      ] as const) {
        const total = parts.reduce((acc, part) => acc + part.metrics[name].item() * part.metrics.tokens.item(), 0);
        close(`micro-batches: ${name}`, [total / metrics.tokens], [all.metrics[name].item()], {
          atol: 1e-6,
          rtol: 1e-6,
        });
      }
    }
  }
});

forEachDevice("out is returned, fully written, and its tensors and metrics are kept", (device) => {
  const random = rng(20);
  for (const lossAggMode of lossAggModes) {
    for (const mask of maskKinds) {
      const input = somePolicyCase(random, {
        lossAggMode,
        klEstimator: "k2",
        klCoef: 0.1,
        old: true,
        advantagesPer: "token",
        weightsPer: "none",
        mask,
        wild: true,
      });
      const options = asOptions(device, random, input);
      const expected = policyLoss(options);
      const out = poisoned(device, policyLoss(options));
      const { loss, gradLogprobs, metrics } = out;
      const scalars = { ...metrics };
      assert.equal(policyLoss({ ...options, out }), out);
      assert.deepEqual(Object.keys(out).sort(), ["gradLogprobs", "loss", "metrics"]);
      assert.ok(out.loss === loss && out.gradLogprobs === gradLogprobs && out.metrics === metrics);
      for (const [name, scalar] of Object.entries(scalars)) assert.equal(metrics[name as keyof typeof metrics], scalar);
      assertSameOutputs(device, out, expected, mask);
    }
  }
});
