/** fusedPolicyLoss against its definition and against the chain of ops that it fuses. */
import assert from "node:assert/strict";
import { type FusedPolicyLossResult, policyLoss, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { type FusedCase, fusedReference } from "./reference/fusedLoss.ts";
import { metricNames } from "./reference/policy.ts";
import { gradientOfRow } from "./reference/softmax.ts";
import { assertGradient } from "./support/gradient.ts";
import { logitsTensor, rowOf } from "./support/logits.ts";
import {
  klEstimators,
  lossAggModes,
  metricsOf,
  type PolicyBatch,
  type PolicyOptions,
  policyBatch,
  runFused,
} from "./support/policy.ts";
import { record } from "./support/worst.ts";
import { assertClose, assertSameBits, floatDTypes, forEachDevice, rng, type TestDevice } from "./support.ts";
import {
  differenceTolerance,
  entropyTolerance,
  gradientBound,
  logprobTolerance,
  lossTolerance,
  lseTolerance,
} from "./tolerances.ts";

const scalings: Pick<PolicyOptions, "temperature" | "logitSoftcap">[] = [
  {},
  { temperature: 0.3 },
  { temperature: 2, logitSoftcap: 30 },
  { logitSoftcap: 5 },
];

/** Options of a batch, a different mix for every number. */
function mixedOptions(batch: PolicyBatch, turn: number): PolicyOptions {
  const random = rng(turn);
  const { rows, options } = batch;
  const klEstimator = klEstimators[turn % 4]!;
  const lossAggMode = lossAggModes[turn % 5]!;
  const perSequence = turn % 3 === 0;
  const mixed: PolicyOptions = {
    ...options,
    lossAggMode,
    ...(perSequence ? { advantages: options.advantages.slice(0, options.cuSeqlens.length - 1) } : {}),
    ...(lossAggMode === "seq-mean-token-sum-norm" ? { horizon: 20 } : {}),
    ...(turn % 2 === 0 ? { importanceWeights: Float32Array.from({ length: rows }, () => 2 * random()) } : {}),
    ...(turn % 7 === 0 ? { globalTokens: 3 * rows, globalSequences: 9 } : {}),
    clipRatioC: [10, 3, Number.POSITIVE_INFINITY][turn % 3]!,
    entropyCoef: [0, 0.01, -0.3][turn % 3]!,
    entropy: turn % 2 === 0,
    // Gradients of 16 bits are scaled up in training, so that few of them vanish.
    gradScale: turn % 4 === 0 ? 1024 : 1,
  };
  if (klEstimator !== "none") {
    mixed.klEstimator = klEstimator;
    mixed.klCoef = turn % 8 < 4 ? 0.1 : 0;
    mixed.refLogprobs = Float32Array.from(options.oldLogprobs, (old) => old + 3 * random() - 1.5);
  }
  if (turn % 11 === 0) delete (mixed as { oldLogprobs?: Float32Array }).oldLogprobs;
  return mixed;
}

function caseOf(batch: PolicyBatch, options: PolicyOptions): FusedCase {
  const { values, rows, vocab, tokenIds } = batch;
  return { ...(options as unknown as FusedCase), values, rows, vocab, tokenIds };
}

function check(device: TestDevice, batch: PolicyBatch, options: PolicyOptions, what: string): void {
  const { dtype } = batch;
  const result = runFused(device, batch, options);
  const logprobs = device.floats(result.logprobs);
  const expected = fusedReference({ ...caseOf(batch, options), logprobs });

  const compare = (name: string, got: ArrayLike<number>, want: ArrayLike<number>, tolerance: typeof lossTolerance) => {
    const share = assertClose(got, want, tolerance, `${name} of ${what}`);
    const errors = Array.from(got, (value, i) => (value === want[i] ? 0 : Math.abs(value - want[i]!)));
    record(`${name} ${dtype}`, Math.max(0, ...errors), share);
  };
  compare("logprobs", logprobs, expected.logprobs, logprobTolerance);
  compare("lse", device.floats(result.lse), expected.lse, lseTolerance(options));
  const wantsEntropy = options.entropy === true || (options.entropyCoef ?? 0) !== 0;
  assert.equal(result.entropy !== undefined, wantsEntropy, what);
  if (result.entropy) compare("entropy", device.floats(result.entropy), expected.entropy, entropyTolerance);
  // The entropy term carries the entropy's own error.
  const { atol, rtol } = lossTolerance;
  const entropyError = Math.abs(
    expected.loss - fusedReference({ ...caseOf(batch, options), logprobs, entropyCoef: 0 }).loss,
  );
  compare("loss", [result.loss.item()], [expected.loss], { atol: atol + 1e-6 * entropyError, rtol });
  const metrics = metricsOf(result.metrics);
  for (const name of metricNames) {
    const want = name === "entropy" && !wantsEntropy ? 0 : expected.metrics[name];
    compare("metrics", [metrics[name]], [want], name === "entropy" ? entropyTolerance : lossTolerance);
  }
  assertGradient(device.floats(result.gradLogits), batch, expected.softmax, options, {
    gradLogprobs: expected.gradLogprobs,
    gradEntropy: expected.gradEntropy,
    ignored: expected.ignored,
    fromSaved: false,
    name: "gradLogits",
    what,
  });
}

for (const dtype of floatDTypes) {
  forEachDevice(`loss, gradient and metrics are those of the definition for ${dtype}`, (device) => {
    let turn = 0;
    for (const vocab of [1, 2, 3, 7, 16, 17, 31, 33, 64, 65, 127, 255, 257, 1000, 2047, 2049]) {
      for (const rows of [1, 2, 3, 17]) {
        for (const scaling of scalings) {
          for (let k = 0; k < (vocab >= 300 ? 2 : device.emulated ? 3 : 12); k++) {
            const batch = policyBatch(rows, vocab, dtype, ++turn, scaling);
            const options = mixedOptions(batch, turn);
            check(device, batch, options, JSON.stringify({ dtype, rows, vocab, turn, ...scaling }));
          }
        }
      }
    }
    const batch = policyBatch(6, 32_000, dtype, 1);
    check(device, batch, mixedOptions(batch, 6), `${dtype} at vocab 32,000`);
    assert.ok(turn > (device.emulated ? 700 : 2500), `${turn} cases`);
  });
}

forEachDevice("gradients are those of central differences of the loss, away from the clips", (device) => {
  const step = 1e-5;
  let checked = 0;
  for (let turn = 1; turn <= 240; turn++) {
    const scaling = scalings[turn % 4]!;
    const batch = policyBatch(4, [2, 5, 9][turn % 3]!, "float32", turn, scaling);
    // exp(20) would drown the differences in the rounding of the loss.
    const exact = fusedReference(caseOf(batch, batch.options)).logprobs;
    const oldLogprobs = batch.options.oldLogprobs.map((old, i) =>
      Math.abs(old - exact[i]!) > 10 ? exact[i]! + 0.1 : old,
    );
    const options = { ...mixedOptions(batch, turn), gradScale: 1, oldLogprobs };
    const fused = caseOf(batch, options);
    const result = runFused(device, batch, options);
    const gradient = device.floats(result.gradLogits);
    const at = fusedReference(fused);
    for (let i = 0; i < batch.rows; i++) {
      if (at.ignored[i]) continue;
      const { temperature = 1, logitSoftcap } = scaling;
      const bounds = {
        gradLogprob: at.gradLogprobs[i]! / temperature,
        gradEntropy: at.gradEntropy[i]! / temperature,
        savedLogprob: 0,
        largestCapped: (logitSoftcap ?? 0) / temperature,
        entropy: at.entropy[i]!,
      };
      const analytic = gradientOfRow(
        rowOf(batch, i),
        batch.tokenIds[i]!,
        scaling,
        at.gradLogprobs[i]!,
        at.gradEntropy[i]!,
      );
      for (let j = 0; j < batch.vocab; j++) {
        const moved = Float64Array.from(batch.values);
        const k = i * batch.vocab + j;
        moved[k] = batch.values[k]! + step;
        const up = fusedReference({ ...fused, values: moved }).loss;
        moved[k] = batch.values[k]! - step;
        const down = fusedReference({ ...fused, values: moved }).loss;
        const slope = (up - down) / (2 * step);
        const what = JSON.stringify({ turn, i, j });
        assertClose([analytic[j]!], [slope], differenceTolerance, `definition ${what}`);
        const p = at.softmax[i]!.probabilities[j]!;
        // The ratio carries the error of the log-prob, and with it the gradient of the policy term.
        const ofLogprob = 1e-6 * (1 + Math.abs(at.logprobs[i]!)) * Math.abs(bounds.gradLogprob);
        const atol = gradientBound(bounds, p, Math.log(p)) + differenceTolerance.atol + ofLogprob;
        assertClose([gradient[k]!], [slope], { atol, rtol: differenceTolerance.rtol }, `gradient ${what}`);
        checked++;
      }
    }
  }
  assert.ok(checked > 3000, `${checked} derivatives`);
});

interface Chain {
  loss: number;
  logprobs: Float32Array;
  gradLogits: number[];
  metrics: Record<string, number>;
}

/** The three ops one after another: the caller masks ignored rows, and adds the entropy term. */
function runChain(device: TestDevice, batch: PolicyBatch, options: PolicyOptions): Chain {
  const {
    temperature,
    logitSoftcap,
    ignoreIndex = -100,
    entropy: _,
    entropyCoef = 0,
    inPlace: __,
    ...policy
  } = options;
  const responseMask = Uint8Array.from(batch.tokenIds, (id, i) =>
    id === ignoreIndex ? 0 : ((policy.responseMask as Uint8Array | undefined)?.[i] ?? 1),
  );
  const tokens = {
    logits: logitsTensor(device, batch),
    tokenIds: batch.tokenIds,
    responseMask,
    ...(temperature === undefined ? {} : { temperature }),
    ...(logitSoftcap === undefined ? {} : { logitSoftcap }),
  };
  const forward = tokenLogprob({ ...tokens, entropy: true });
  const loss = policyLoss({ ...policy, responseMask, logprobs: forward.logprobs });
  const weights = fusedReference({ ...caseOf(batch, options), entropyCoef: 1 }).gradEntropy;
  const back = tokenLogprobBackward({
    ...tokens,
    ...forward,
    gradLogprobs: loss.gradLogprobs,
    ...(entropyCoef === 0
      ? {}
      : { entropy: forward.entropy!, gradEntropy: Float32Array.from(weights, (weight) => weight * entropyCoef) }),
  });
  return {
    loss: loss.loss.item(),
    logprobs: device.read(forward.logprobs) as Float32Array,
    gradLogits: device.floats(back.gradLogits),
    metrics: metricsOf(loss.metrics),
  };
}

forEachDevice(
  "the fused op equals the chain: log-probs, loss and metrics to the bit, the gradient within rounding",
  (device) => {
    for (const dtype of floatDTypes) {
      for (let turn = 1; turn <= 300; turn++) {
        const scaling = scalings[turn % 4]!;
        const batch = policyBatch(9, [1, 5, 17, 64, 300][turn % 5]!, dtype, turn, scaling);
        const options = { ...mixedOptions(batch, turn), ...(turn % 2 === 0 ? { entropyCoef: 0 } : {}) };
        const what = `${dtype}, turn ${turn}`;
        const fused = runFused(device, batch, options);
        const chain = runChain(device, batch, options);
        // The sums of the row may be taken in another order beside the entropy's.
        assertClose(device.floats(fused.logprobs), chain.logprobs, { atol: 1e-6, rtol: 2e-7 }, `logprobs, ${what}`);
        const sameLogprobs = Buffer.from(chain.logprobs.buffer).equals(
          Buffer.from((device.read(fused.logprobs) as Float32Array).slice().buffer),
        );
        if (sameLogprobs && options.entropyCoef === 0) assert.equal(fused.loss.item(), chain.loss, what);
        const metrics = metricsOf(fused.metrics);
        for (const name of metricNames) {
          if (name !== "entropy" && sameLogprobs) assert.equal(metrics[name], chain.metrics[name], `${name}, ${what}`);
        }
        const at = fusedReference({ ...caseOf(batch, options), logprobs: chain.logprobs });
        assertGradient(chain.gradLogits, batch, at.softmax, scaling, {
          ...at,
          fromSaved: true,
          name: "gradLogits of the chain",
          what,
        });
      }
    }
  },
);

forEachDevice("without old log-probs the ratio is 1, so the loss is minus the mean advantage", (device) => {
  for (const dtype of floatDTypes) {
    const batch = policyBatch(12, 40, dtype, 3);
    const { advantages, responseMask } = batch.options;
    const result = runFused(device, batch, { advantages, responseMask });
    const metrics = metricsOf(result.metrics);
    const counted = Array.from(advantages).filter((_, i) => responseMask[i] !== 0 && batch.tokenIds[i] !== -100);
    const mean = counted.reduce((sum, value) => sum + value, 0) / counted.length;
    assertClose([result.loss.item()], [-mean], lossTolerance);
    const { tokens, sequences, ratioMean, ratioMax, ...others } = metrics;
    assert.deepEqual(
      { tokens, sequences, ratioMean, ratioMax },
      { tokens: counted.length, sequences: 0, ratioMean: 1, ratioMax: 1 },
    );
    for (const [name, value] of Object.entries(others)) assert.equal(value, 0, name);
  }
});

forEachDevice("micro-batches with the global counts add up to the whole batch", (device) => {
  for (const dtype of floatDTypes) {
    for (const lossAggMode of lossAggModes) {
      const batch = policyBatch(30, 33, dtype, 8);
      const lengths = [0, 7, 7, 16, 25, 30];
      const counted = (from: number, to: number): number =>
        batch.options.responseMask.subarray(from, to).filter((m, i) => m !== 0 && batch.tokenIds[from + i] !== -100)
          .length;
      const globalTokens = counted(0, 30);
      const globalSequences = lengths.slice(1).filter((end, s) => counted(lengths[s]!, end) > 0).length;
      const common = {
        lossAggMode,
        entropyCoef: 0.02,
        ...(lossAggMode === "seq-mean-token-sum-norm" ? { horizon: 12 } : {}),
      };
      const whole = runFused(device, batch, { ...batch.options, ...common, cuSeqlens: Int32Array.from(lengths) });
      let loss = 0;
      const parts: FusedPolicyLossResult[] = [];
      for (const [from, to] of [
        [0, 2],
        [2, 4],
        [4, 5],
      ] as const) {
        const [a, b] = [lengths[from]!, lengths[to]!];
        const { vocab } = batch;
        const slice = {
          rows: b - a,
          vocab,
          dtype,
          data: batch.data.subarray(a * vocab, b * vocab),
          values: batch.values.subarray(a * vocab, b * vocab),
          tokenIds: batch.tokenIds.subarray(a, b),
        };
        const part = runFused(device, slice, {
          ...common,
          oldLogprobs: batch.options.oldLogprobs.subarray(a, b),
          advantages: batch.options.advantages.subarray(a, b),
          responseMask: batch.options.responseMask.subarray(a, b),
          cuSeqlens: Int32Array.from(lengths.slice(from, to + 1), (at) => at - a),
          globalTokens,
          globalSequences,
        });
        loss += part.loss.item();
        parts.push(part);
      }
      const tolerance = { atol: 1e-6, rtol: 1e-6 };
      assertClose([loss], [whole.loss.item()], tolerance, `${dtype}, ${lossAggMode}`);
      const bits = parts.flatMap((part) => Array.from(device.read(part.gradLogits)));
      assert.deepEqual(bits, Array.from(device.read(whole.gradLogits)), `gradient, ${dtype}, ${lossAggMode}`);
      const logprobs = parts.flatMap((part) => device.floats(part.logprobs));
      assertSameBits(Float32Array.from(logprobs), device.read(whole.logprobs), `logprobs, ${dtype}`);
    }
  }
});

forEachDevice("gradScale multiplies the gradient and leaves the loss alone", (device) => {
  for (const dtype of floatDTypes) {
    const batch = policyBatch(9, 40, dtype, 5);
    const plain = runFused(device, batch, { ...batch.options, entropyCoef: 0.1 });
    const scaled = runFused(device, batch, { ...batch.options, entropyCoef: 0.1, gradScale: 64 });
    const negative = runFused(device, batch, { ...batch.options, entropyCoef: 0.1, gradScale: -64 });
    const none = runFused(device, batch, { ...batch.options, entropyCoef: 0.1, gradScale: 0 });
    for (const other of [scaled, negative, none]) assert.equal(other.loss.item(), plain.loss.item());
    const [a, b, c, d] = [plain, scaled, negative, none].map(({ gradLogits }) => device.floats(gradLogits));
    for (let k = 0; k < a!.length; k++) {
      // A power of two is exact where nothing is subnormal.
      if (Math.abs(a![k]!) > 2 ** -14) assert.equal(b![k]!, 64 * a![k]!);
      assert.ok(b![k] === -c![k]! && d![k] === 0);
    }
  }
});
