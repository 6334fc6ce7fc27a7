/** The edge cases of policyLoss, and relations between its calls. */
import assert from "node:assert/strict";
import { type PolicyLossOptions, type PolicyLossResult, policyLoss } from "fapo-kernels";
import fc from "fast-check";
import { policyReference } from "./reference/policy.ts";
import { assertSameOutputs, close, integer, metricValues, shuffled, times } from "./support/ops.ts";
import { asOptions, compareWithReference, lossAggModes, somePolicyCase } from "./support/policyCases.ts";
import { assertSameBits, forEachDevice, rng, type TestDevice } from "./support.ts";

function assertAllZero(device: TestDevice, result: PolicyLossResult, what: string): void {
  assert.ok(result.loss.item() === 0, `${what}: loss`);
  assert.ok(
    device.floats(result.gradLogprobs).every((value) => value === 0),
    `${what}: gradients`,
  );
  for (const [name, value] of Object.entries(metricValues(result.metrics))) assert.ok(value === 0, `${what}: ${name}`);
}

forEachDevice("no token, no sequence, or all tokens masked: everything is 0", (device) => {
  const poison = new Float32Array(6).fill(Number.NaN);
  const kl = { klEstimator: "k3", klCoef: 0.1 } as const;
  for (const lossAggMode of lossAggModes) {
    const mode = { lossAggMode, device: device.name, ...(lossAggMode.endsWith("norm") && { horizon: 8 }) };
    const empty = new Float32Array(0);
    for (const cuSeqlens of [[0], [0, 0], [0, 0, 0]]) {
      const advantages = new Float32Array(cuSeqlens.length - 1);
      const nothing = {
        logprobs: empty,
        oldLogprobs: empty,
        refLogprobs: empty,
        advantages,
        cuSeqlens,
        ...kl,
        ...mode,
      };
      assertAllZero(device, policyLoss(nothing), `${lossAggMode}, ${cuSeqlens.length - 1} sequences`);
    }
    const masked = policyLoss({
      logprobs: poison,
      oldLogprobs: poison,
      refLogprobs: poison,
      importanceWeights: poison,
      advantages: poison,
      responseMask: new Uint8Array(6),
      cuSeqlens: [0, 2, 2, 6],
      ...kl,
      ...mode,
    });
    assertAllZero(device, masked, `${lossAggMode}, all masked`);
  }
  const none = new Float32Array(0);
  assertAllZero(device, policyLoss({ logprobs: none, advantages: none, device: device.name }), "without sequences");
});

forEachDevice("masked tokens filled with NaN, infinities and huge numbers change no bit", (device) => {
  const random = rng(50);
  for (const lossAggMode of lossAggModes) {
    for (let repeat = 0; repeat < 12; repeat++) {
      const input = somePolicyCase(random, {
        lossAggMode,
        klEstimator: "k3",
        klCoef: 0.1,
        old: true,
        advantagesPer: "token",
        weightsPer: "token",
        mask: "random",
        wild: false,
      });
      // One length for tokens, another for sequences: values per token stay values per token.
      if (input.cuSeqlens!.length - 1 === input.logprobs.length) continue;
      const clean = policyLoss(asOptions(device, random, input));
      for (const garbage of [Number.NaN, Infinity, -Infinity, 3e38, -3e38]) {
        const fill = (values: ArrayLike<number>): number[] =>
          Array.from(values, (value, token) => (input.responseMask![token] === 0 ? garbage : value));
        const poisoned = {
          ...input,
          logprobs: fill(input.logprobs),
          oldLogprobs: fill(input.oldLogprobs!),
          refLogprobs: fill(input.refLogprobs!),
          advantages: fill(input.advantages),
          importanceWeights: fill(input.importanceWeights!),
        };
        assertSameOutputs(device, policyLoss(asOptions(device, random, poisoned)), clean, String(garbage));
      }
    }
  }
});

forEachDevice("any non-zero byte of the mask counts, and sequences without counted tokens do not", (device) => {
  const batch = {
    logprobs: Float32Array.of(-1, -2, -3, -4, -5),
    advantages: [1, 2, 3],
    cuSeqlens: [0, 2, 3, 5],
    lossAggMode: "seq-mean-token-mean" as const,
    device: device.name,
  };
  for (const byte of [1, 2, 127, 128, 255]) {
    const result = policyLoss({ ...batch, responseMask: Uint8Array.of(byte, 0, 0, byte, byte) });
    close("sequences without tokens", [result.loss.item()], [-(1 + 3) / 2]);
    close("sequences without tokens", device.floats(result.gradLogprobs), [-0.5, 0, 0, -0.75, -0.75]);
    assert.deepEqual([result.metrics.tokens.item(), result.metrics.sequences.item()], [3, 2]);
  }
});

forEachDevice("log-ratios of 20, 50, 1e4 and infinity give finite losses and gradients", (device) => {
  for (const gap of [20, 20.001, 50, 1e4, Number.POSITIVE_INFINITY]) {
    for (const sign of [1, -1]) {
      for (const advantage of [1, -1, 0]) {
        for (const clipRatioC of [10, Number.POSITIVE_INFINITY]) {
          const input = {
            logprobs: [sign > 0 ? -1 : -1 - gap],
            oldLogprobs: [sign > 0 ? -1 - gap : -1],
            advantages: [advantage],
            clipRatioC,
          };
          const result = policyLoss(asOptions(device, rng(1), input));
          compareWithReference(device, result, policyReference(input), "wild");
          const values = [
            result.loss.item(),
            ...device.floats(result.gradLogprobs),
            ...Object.values(metricValues(result.metrics)),
          ];
          assert.ok(values.every(Number.isFinite), `${sign * gap}`);
          if (Math.fround(gap) > 20) assert.ok(device.floats(result.gradLogprobs)[0] === 0);
        }
      }
    }
  }
});

forEachDevice("without a clamp ratios are infinite and 0, as those of the definition are", (device) => {
  for (const gap of [20, 80, 800, 1e4, Number.POSITIVE_INFINITY]) {
    for (const sign of [1, -1]) {
      for (const advantage of [1, -1]) {
        const input = {
          logprobs: [sign > 0 ? -1 : -1 - gap],
          oldLogprobs: [sign > 0 ? -1 - gap : -1],
          advantages: [advantage],
          logRatioClamp: Number.POSITIVE_INFINITY,
        };
        const result = policyLoss(asOptions(device, rng(1), input));
        compareWithReference(device, result, policyReference(input), `gap ${sign * gap}, advantage ${advantage}`);
      }
    }
  }
});

forEachDevice("k1, k2 and k3 of huge gaps give finite values and gradients", (device) => {
  for (const q of [0, 1, -1, 20, -20, 100, -100, 1e4, -1e4, Infinity, -Infinity]) {
    for (const klEstimator of ["k1", "k2", "k3"] as const) {
      const input = {
        logprobs: [0],
        advantages: [0],
        refLogprobs: [q],
        klEstimator,
        klCoef: 1,
      };
      const result = policyLoss(asOptions(device, rng(1), input));
      compareWithReference(device, result, policyReference(input), klEstimator);
      assert.ok(Number.isFinite(result.loss.item()) && Number.isFinite(device.floats(result.gradLogprobs)[0]));
      if (Math.abs(q) > 20) assert.ok(device.floats(result.gradLogprobs)[0] === 0);
    }
  }
  const k3 = (q: number): number =>
    policyLoss({
      logprobs: Float32Array.of(0),
      advantages: Float32Array.of(0),
      refLogprobs: Float32Array.of(q),
      klEstimator: "k3",
      device: device.name,
    }).metrics.kl.item();
  assert.deepEqual([k3(0), k3(20), k3(100), k3(-20), k3(-1e4)], [0, 10, 10, 10, 10]);
  close("k3 of a small gap", [k3(1e-4)], [5.0001667e-9], { atol: 0, rtol: 1e-5 });
});

forEachDevice("a NaN shows in the loss and in its own gradient, and in no other", (device) => {
  const random = rng(51);
  const size = 40;
  const draw = (): Float32Array => Float32Array.from(times(size, () => -3 * random()));
  const batch: PolicyLossOptions = {
    logprobs: draw(),
    oldLogprobs: draw(),
    advantages: draw(),
    refLogprobs: draw(),
    importanceWeights: draw(),
    klEstimator: "k3",
    klCoef: 0.1,
    device: device.name,
  };
  const clean = device.read(policyLoss(batch).gradLogprobs) as Float32Array;
  for (const name of ["logprobs", "oldLogprobs", "advantages", "refLogprobs", "importanceWeights"] as const) {
    for (const at of [0, 7, 31, 32, size - 1]) {
      const dirty = (batch[name] as Float32Array).with(at, Number.NaN);
      const { loss, gradLogprobs } = policyLoss({ ...batch, [name]: dirty });
      assert.ok(Number.isNaN(loss.item()), name);
      const gradients = device.read(gradLogprobs) as Float32Array;
      assert.ok(Number.isNaN(gradients[at]), name);
      assertSameBits(gradients.with(at, 0), clean.with(at, 0), name);
    }
  }
});

forEachDevice("a NaN log-prob makes the metrics that are made of it NaN", (device) => {
  const result = policyLoss({
    logprobs: Float32Array.of(-1, Number.NaN, -2),
    oldLogprobs: Float32Array.of(-1, -1, -1),
    refLogprobs: Float32Array.of(-1, -1, -1),
    klEstimator: "k1",
    advantages: Float32Array.of(1, 1, 1),
    device: device.name,
  });
  const { ratioMean, ratioMax, approxKl, kl, tokens } = metricValues(result.metrics);
  assert.deepEqual([ratioMean, ratioMax, approxKl, kl, tokens], [Number.NaN, Number.NaN, Number.NaN, Number.NaN, 3]);
});

forEachDevice("-Infinity under both policies is NaN, not a silent ratio of 1", (device) => {
  const logprobs = Float32Array.of(-Infinity, -1);
  const result = policyLoss({
    logprobs,
    oldLogprobs: logprobs,
    advantages: Float32Array.of(1, 1),
    device: device.name,
  });
  assert.ok(Number.isNaN(result.loss.item()));
  assert.ok(Number.isNaN(device.floats(result.gradLogprobs)[0]));
  assert.equal(device.floats(result.gradLogprobs)[1], -0.5);
});

forEachDevice("without old log-probs the ratio is 1 also for a log-prob of -Infinity", (device) => {
  const input = { logprobs: [-Infinity, -1, Number.NaN], advantages: [2, 1, 1], responseMask: [1, 1, 0] };
  const result = policyLoss(asOptions(device, rng(1), input));
  compareWithReference(device, result, policyReference(input), "no old log-probs");
  close("no old log-probs", device.floats(result.gradLogprobs), [-1, -0.5, 0]);
});

forEachDevice("an advantage of 0 has no policy gradient and clips nothing", (device) => {
  for (const logprob of [-5, -1, 0]) {
    const { loss, gradLogprobs, metrics } = policyLoss({
      logprobs: Float32Array.of(logprob),
      oldLogprobs: Float32Array.of(-2),
      advantages: Float32Array.of(0),
      device: device.name,
    });
    assert.ok(loss.item() === 0 && device.floats(gradLogprobs)[0] === 0);
    const { clipFractionHigh, clipFractionLow, clipFractionDual } = metricValues(metrics);
    assert.deepEqual([clipFractionHigh, clipFractionLow, clipFractionDual], [0, 0, 0]);
  }
});

forEachDevice("clip fractions count where the clip binds, by the sign of the advantage", (device) => {
  const ratios = [2, 2, 0.5, 0.5, 20, 1, 1.1];
  const { metrics } = policyLoss({
    logprobs: Float32Array.from(ratios, Math.log),
    oldLogprobs: new Float32Array(7),
    advantages: Float32Array.of(1, -1, 1, -1, -1, 1, -1),
    device: device.name,
  });
  close(
    "clip fractions",
    [metrics.clipFractionHigh.item(), metrics.clipFractionLow.item(), metrics.clipFractionDual.item()],
    [1 / 7, 1 / 7, 1 / 7],
  );
});

forEachDevice("a NaN token makes the loss and every metric but the counts NaN", (device) => {
  for (const bad of ["logprobs", "oldLogprobs", "advantages"] as const) {
    const options = {
      logprobs: Float32Array.of(-1, -2),
      oldLogprobs: Float32Array.of(-1, -2),
      advantages: Float32Array.of(1, 1),
      device: device.name,
    };
    options[bad][1] = Number.NaN;
    const { loss, metrics } = policyLoss(options);
    assert.ok(Number.isNaN(loss.item()), bad);
    const { clipFractionHigh, clipFractionLow, clipFractionDual } = metricValues(metrics);
    assert.deepEqual([clipFractionHigh, clipFractionLow, clipFractionDual], [Number.NaN, Number.NaN, Number.NaN], bad);
    assert.equal(metrics.tokens.item(), 2);
  }
});

forEachDevice("small ratios keep their digits where the clamp lets them through", (device) => {
  for (const d of [-9, -25, -34, -60]) {
    const { metrics } = policyLoss({
      logprobs: Float32Array.of(d),
      oldLogprobs: Float32Array.of(0),
      advantages: Float32Array.of(1),
      logRatioClamp: 80,
      device: device.name,
    });
    close(`ratio at ${d}`, [metrics.ratioMean.item() / Math.exp(d)], [1]);
  }
});

// ---- relations

const token = fc.record({
  logprob: fc.integer({ min: -512, max: 0 }),
  old: fc.integer({ min: -512, max: 0 }),
  advantage: fc.integer({ min: -64, max: 64 }),
});
/** In 64ths, so that sums, differences and permutations are exact. */
const part = 1 / 64;
const tokens = fc.array(token, { minLength: 1, maxLength: 24 });

function columns(rows: readonly { logprob: number; old: number; advantage: number }[]) {
  return {
    logprobs: Float32Array.from(rows, (row) => row.logprob * part),
    oldLogprobs: Float32Array.from(rows, (row) => row.old * part),
    advantages: Float32Array.from(rows, (row) => row.advantage * part),
  };
}

forEachDevice("tokens permuted: gradients permuted to the bit, loss and metrics within rounding", (device) => {
  const property = fc.property(tokens, fc.nat(), (rows, seed) => {
    const order = shuffled(rng(seed), [...rows.keys()]);
    const plain = policyLoss({ ...columns(rows), device: device.name });
    const moved = policyLoss({ ...columns(order.map((i) => rows[i]!)), device: device.name });
    const gradients = device.read(plain.gradLogprobs);
    assertSameBits(
      device.read(moved.gradLogprobs),
      Float32Array.from(order, (i) => gradients[i]!),
    );
    close("permuted", [moved.loss.item()], [plain.loss.item()]);
  });
  fc.assert(property, { seed: 51, numRuns: device.runs(2000) });
});

forEachDevice("all log-probs moved by the same amount: the same bits", (device) => {
  const property = fc.property(tokens, fc.integer({ min: -512, max: 512 }), (rows, shift) => {
    const moved = rows.map((row) => ({ ...row, logprob: row.logprob + shift, old: row.old + shift }));
    const plain = policyLoss({ ...columns(rows), device: device.name });
    assertSameOutputs(device, policyLoss({ ...columns(moved), device: device.name }), plain);
  });
  fc.assert(property, { seed: 52, numRuns: device.runs(2000) });
});

forEachDevice("token-sum is the sum over calls with a token each; token-mean divides it by N", (device) => {
  const property = fc.property(tokens, (rows) => {
    const sum = policyLoss({ ...columns(rows), lossAggMode: "token-sum", device: device.name });
    const mean = policyLoss({ ...columns(rows), device: device.name });
    const apart = rows.map((row) => policyLoss({ ...columns([row]), device: device.name }));
    const gradients = apart.flatMap((result) => device.floats(result.gradLogprobs));
    assertSameBits(device.read(sum.gradLogprobs), Float32Array.from(gradients));
    const tolerance = { atol: 1e-6, rtol: 1e-5 };
    const total = apart.reduce((acc, result) => acc + result.loss.item(), 0);
    const size = apart.reduce((acc, result) => acc + Math.abs(result.loss.item()), 0);
    close("token-sum", [sum.loss.item()], [total], { atol: 1e-7 + 1e-6 * size, rtol: 0 });
    close("token-mean", [mean.loss.item() * rows.length], [sum.loss.item()], tolerance);
  });
  fc.assert(property, { seed: 53, numRuns: device.runs(500) });
});

forEachDevice("A to -A with mirrored clips: where one binds, the other passes", (device) => {
  const property = fc.property(tokens, (rows) => {
    const symmetric = { clipRatioLow: 0.25, clipRatioHigh: 0.25, clipRatioC: Number.POSITIVE_INFINITY };
    const options = { ...symmetric, lossAggMode: "token-sum" as const, device: device.name };
    const plus = policyLoss({ ...columns(rows), ...options });
    const minus = policyLoss({ ...columns(rows.map((row) => ({ ...row, advantage: -row.advantage }))), ...options });
    const [up, down] = [device.floats(plus.gradLogprobs), device.floats(minus.gradLogprobs)];
    for (const [i, { logprob, old, advantage }] of rows.entries()) {
      const ratio = Math.exp((logprob - old) * part);
      const inside = ratio >= 0.75 && ratio <= 1.25;
      if (inside || advantage === 0) assert.ok(up[i] === -down[i]!);
      // Outside exactly one of the two is held back.
      else assert.ok((up[i] === 0) !== (down[i] === 0));
    }
  });
  fc.assert(property, { seed: 54, numRuns: device.runs(1000) });
});

forEachDevice("advantages times 2^n: loss and gradient times 2^n, to the bit", (device) => {
  const property = fc.property(tokens, fc.integer({ min: -10, max: 10 }), (rows, power) => {
    const batch = columns(rows);
    const plain = policyLoss({ ...batch, device: device.name });
    const advantages = batch.advantages.map((value) => value * 2 ** power);
    const scaled = policyLoss({ ...batch, advantages, device: device.name });
    assert.ok(scaled.loss.item() === plain.loss.item() * 2 ** power);
    const gradients = device.read(plain.gradLogprobs) as Float32Array;
    assertSameBits(
      device.read(scaled.gradLogprobs),
      gradients.map((value) => value * 2 ** power),
    );
  });
  fc.assert(property, { seed: 55, numRuns: device.runs(1000) });
});

forEachDevice("taking tokens out is the same as masking them, but for their gradients of 0", (device) => {
  const masked = fc.array(fc.tuple(token, fc.nat(1)), { minLength: 1, maxLength: 24 });
  const property = fc.property(masked, (rows) => {
    const kept = rows.filter(([, counts]) => counts).map(([row]) => row);
    const responseMask = Uint8Array.from(rows, ([, counts]) => counts);
    const all = policyLoss({ ...columns(rows.map(([row]) => row)), responseMask, device: device.name });
    const alone = policyLoss({ ...columns(kept), device: device.name });
    close("masked", [all.loss.item()], [alone.loss.item()]);
    const gradients = (device.read(all.gradLogprobs) as Float32Array).filter((_, i) => responseMask[i]);
    assertSameBits(gradients, device.read(alone.gradLogprobs));
  });
  fc.assert(property, { seed: 56, numRuns: device.runs(1500) });
});

forEachDevice("many tokens: around every size at which work may be split", (device) => {
  const random = rng(57);
  for (const size of [1, 2, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 4097, 70_000]) {
    const rows = times(size, () => ({
      logprob: integer(random, -300, 0),
      old: integer(random, -300, 0),
      advantage: integer(random, -64, 64),
    }));
    // The definition looks for the sequence of every token; without sequences it is fast enough for this.
    const batch = columns(rows);
    const responseMask = Uint8Array.from(rows, (_, i) => Number(i % 7 !== 3));
    const result = policyLoss({ ...batch, responseMask, device: device.name });
    compareWithReference(device, result, policyReference({ ...batch, responseMask }), "many tokens");
  }
});

forEachDevice("many sequences: around every size at which work may be split", (device) => {
  const random = rng(58);
  for (const sequences of [1, 2, 63, 64, 65, 257, 1025, 5000]) {
    const lengths = times(sequences, () => integer(random, 0, 4));
    const cuSeqlens = [0];
    for (const length of lengths) cuSeqlens.push(cuSeqlens.at(-1)! + length);
    const size = cuSeqlens.at(-1)!;
    const logprobs = Float32Array.from(times(size, () => -2 * random()));
    const advantages = Float32Array.from(times(sequences, () => random() - 0.5));
    const { loss, gradLogprobs, metrics } = policyLoss({
      logprobs,
      advantages,
      cuSeqlens,
      lossAggMode: "seq-mean-token-mean",
      device: device.name,
    });
    const counted = lengths.filter((length) => length > 0).length;
    const total = advantages.reduce((sum, value, s) => sum - (lengths[s]! > 0 ? value : 0), 0);
    close("many sequences: loss", [loss.item()], [counted ? total / counted : 0]);
    const expected = lengths.flatMap((length, s) => times(length, () => -advantages[s]! / (counted * length)));
    close("many sequences: gradient", device.floats(gradLogprobs), expected);
    assert.equal(metrics.sequences.item(), counted);
  }
});
