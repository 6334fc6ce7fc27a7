import assert from "node:assert/strict";
import { policyLoss, type Tensor } from "fapo-kernels";
import { assertSameOutputs } from "./support/ops.ts";
import { klEstimators, lossAggModes } from "./support/policyCases.ts";
import { assertRefusals, badArray, badCall, badChoice, badNumber, badOut } from "./support/refusals.ts";
import { assertFails, forEachDevice } from "./support.ts";

forEachDevice("policyLoss refuses bad input, writes nothing, and says what is wrong", (device) => {
  const op = "policyLoss";
  const good = (): Record<string, unknown> => ({
    logprobs: Float32Array.of(-1, -2, -3, -4, -5, -6),
    oldLogprobs: Float32Array.of(-1.1, -2.5, -3, -3.5, -5, -6.2),
    refLogprobs: Float32Array.of(-1, -2, -2, -2, -5, -7),
    advantages: Float32Array.of(1, -1),
    importanceWeights: Float32Array.of(1, 2),
    responseMask: Uint8Array.of(1, 1, 0, 1, 1, 1),
    cuSeqlens: Int32Array.of(0, 4, 6),
    klEstimator: "k3",
    klCoef: 0.1,
    device: device.name,
  });
  const result = policyLoss(good() as never);
  const of6 = { dtype: "float32", length: 6 } as const;
  const norm = { lossAggMode: "seq-mean-token-sum-norm", horizon: 6 };
  const noKl = { klEstimator: undefined, klCoef: undefined, refLogprobs: undefined };
  const noSequences = {
    cuSeqlens: undefined,
    advantages: new Float32Array(6),
    importanceWeights: new Float32Array(6),
  };
  const lengths = "of length 6 (tokens) or 2 (responses)";
  const overlapping = Float32Array.of(-1, -2, -3, -4, -5, -6, -7);
  assertRefusals(device, policyLoss, good, [
    ...badArray(op, { name: "logprobs", anyLength: true, ...of6 }),
    ...badArray(op, { name: "oldLogprobs", optional: true, ...of6 }),
    ...badArray(op, { name: "refLogprobs", optional: true, ...of6 }),
    ...badArray(op, { name: "responseMask", dtype: "uint8", length: 6, optional: true }),
    ...badArray(op, { name: "advantages", dtype: "float32", length: 2, anyLength: true, plain: true }),
    ...badArray(op, {
      name: "importanceWeights",
      dtype: "float32",
      length: 2,
      anyLength: true,
      plain: true,
      optional: true,
    }),
    ...badArray(op, { name: "cuSeqlens", dtype: "int32", length: 3, anyLength: true, plain: true, optional: true }),
    ...badNumber(op, "clipRatioLow", "a number in 0..1", [-0.1, 1.1, Infinity, -Infinity]),
    ...badNumber(op, "clipRatioHigh", "a number of at least 0", [-0.1, Infinity, -Infinity]),
    ...badNumber(op, "clipRatioC", "a number above 1", [1, 0, -3, -Infinity]),
    ...badNumber(op, "logRatioClamp", "a positive number", [0, -0, -20, -Infinity]),
    ...badNumber(op, "klCoef", "a number of at least 0", [-0.1, Infinity]),
    ...badNumber(op, "horizon", "a positive number", [0, -1, Infinity], { lossAggMode: "seq-mean-token-sum-norm" }),
    ...badNumber(op, "globalTokens", "a number of tokens", [0, -1, 1.5, 2 ** 53, Infinity]),
    ...badNumber(op, "globalSequences", "a number of sequences", [0, -1, 1.5, 2 ** 53, Infinity]),
    ...badNumber(op, "gradScale", "a finite number", [Infinity, -Infinity]),
    ...badChoice(op, "klEstimator", klEstimators),
    ...badChoice(op, "lossAggMode", lossAggModes),
    ...badCall(op),
    ...badOut(op, device, result).filter(({ change }) => typeof change.out === "object" && change.out !== null),
    ...[3, "x"].map((out) => ({
      what: `out is ${out}`,
      change: { out },
      message: `${op}: expected out to be the result of an earlier ${op}, got ${JSON.stringify(out)}`,
    })),
    ...["entropy", "entropyCoef", "tokenIds", "logits", "ignoreIndex"].map((name) => ({
      what: `${name}, an option of fusedPolicyLoss`,
      change: { [name]: 1 },
      message: `${op}: unknown option ${name}`,
    })),
    ...[0, 1, 3, 5, 7].flatMap((length) =>
      ["advantages", "importanceWeights"].map((name) => ({
        what: `${name} of ${length}`,
        change: { [name]: new Float32Array(length) },
        message: `${op}: expected ${name} to be ${lengths}, got Float32Array(${length})`,
      })),
    ),
    ...["advantages", "importanceWeights"].map((name) => ({
      what: `${name} per sequence without cuSeqlens`,
      change: { ...noSequences, [name]: new Float32Array(2) },
      message: `${op}: expected ${name} to be of length 6 (tokens) (a length per response needs cuSeqlens), got Float32Array(2)`,
    })),
    {
      what: "no offsets at all",
      change: { cuSeqlens: new Int32Array(0) },
      message: `${op}: expected cuSeqlens to be of at least one element, got Int32Array(0)`,
    },
    ...(
      [
        [[1, 4, 6], 0, "0", 1],
        [[-1, 4, 6], 0, "0", -1],
        [[0, 4, 5], 2, "6, the number of tokens", 5],
        [[0, 4, 7], 2, "6, the number of tokens", 7],
        [[0, 7, 6], 1, "at least 0 and at most 6", 7],
        [[0, -1, 6], 1, "at least 0 and at most 6", -1],
        [[0, 2 ** 31 - 1, 6], 1, "at least 0 and at most 6", 2 ** 31 - 1],
        [[0, -(2 ** 31), 6], 1, "at least 0 and at most 6", -(2 ** 31)],
      ] as const
    ).map(([cuSeqlens, at, expected, got]) => ({
      what: `offsets ${cuSeqlens}`,
      change: { cuSeqlens },
      message: `${op}: expected cuSeqlens[${at}] to be ${expected}, got ${got}`,
    })),
    {
      what: "offsets that fall in the middle",
      change: { cuSeqlens: [0, 4, 3, 6], advantages: new Float32Array(3), importanceWeights: new Float32Array(3) },
      message: `${op}: expected cuSeqlens[2] to be at least 4 and at most 6, got 3`,
    },
    ...lossAggModes.slice(2).map((lossAggMode) => ({
      what: `${lossAggMode} without cuSeqlens`,
      change: { ...norm, ...noSequences, lossAggMode },
      message: `${op}: lossAggMode "${lossAggMode}" needs cuSeqlens`,
    })),
    {
      what: "sum-norm without horizon",
      change: { lossAggMode: "seq-mean-token-sum-norm" },
      message: `${op}: lossAggMode "seq-mean-token-sum-norm" needs horizon`,
    },
    ...lossAggModes.slice(0, 4).map((lossAggMode) => ({
      what: `horizon with ${lossAggMode}`,
      change: { lossAggMode, horizon: 6 },
      message: `${op}: horizon goes with lossAggMode "seq-mean-token-sum-norm", not "${lossAggMode}"`,
    })),
    {
      what: "a coefficient without an estimator",
      change: { ...noKl, klCoef: 0.1 },
      message: `${op}: klCoef needs a klEstimator, which is "none"`,
    },
    {
      what: "an estimator without reference",
      change: { refLogprobs: undefined },
      message: `${op}: klEstimator "k3" needs refLogprobs`,
    },
    {
      what: "a reference without estimator",
      change: { klEstimator: undefined, klCoef: undefined },
      message: `${op}: refLogprobs are given, but klEstimator is "none"`,
    },
    {
      what: "no advantages",
      change: { advantages: undefined },
      message: `${op}: expected advantages to be a Float32Array, an array of numbers or a float32 tensor, got undefined`,
    },
    ...[0, 1].map((shift) => ({
      what: `the gradient over the log-probs, shifted by ${shift}`,
      change: {
        logprobs: device.overlapping(overlapping.subarray(0, 6)),
        out: { ...result, gradLogprobs: device.overlapping(overlapping.subarray(shift, shift + 6)) },
      },
      message: `${op}: expected out.gradLogprobs to be memory of its own, got memory that overlaps logprobs`,
    })),
    {
      what: "the loss in the gradient",
      change: {
        out: {
          ...result,
          gradLogprobs: device.overlapping(overlapping.subarray(0, 6)),
          loss: device.overlapping(overlapping.subarray(5, 6), []),
        },
      },
      message: /^policyLoss: expected out\.\w+ to be memory of its own, got memory that overlaps /,
    },
  ]);
});

forEachDevice("the metrics of out must be ours, and those of a call of the same op do for any shape", (device) => {
  const call = (size: number, out?: object) =>
    policyLoss({
      logprobs: new Float32Array(size),
      advantages: new Float32Array(size).fill(1),
      device: device.name,
      ...(out && { out: out as never }),
    });
  const first = call(3);
  const second = call(5, { ...call(5), metrics: first.metrics });
  assert.equal(second.metrics, first.metrics);
  assert.equal(first.metrics.tokens.item(), 5);
  assertSameOutputs(device, second, call(5));
  for (const metrics of [undefined, null, {}, { ...first.metrics }, Object.create(first.metrics)]) {
    const message = /^policyLoss: expected out\.metrics to be the metrics of an earlier policyLoss, got /;
    assertFails(() => call(3, { ...first, metrics }), "ERR_INVALID_ARGUMENT", message);
  }
});

forEachDevice("disposed metrics are refused", (device) => {
  const options = { logprobs: new Float32Array(2), advantages: new Float32Array(2), device: device.name };
  const out = policyLoss(options);
  (out.metrics.kl as Tensor).dispose();
  assertFails(() => out.metrics.kl.item(), "ERR_DISPOSED", "Tensor.item: the tensor has been disposed");
  // The op still writes where nobody looks any more, and the others are right.
  const again = policyLoss({ ...options, out });
  assert.equal(again.metrics.tokens.item(), 2);
});

forEachDevice("the same array may be several inputs", (device) => {
  const logprobs = Float32Array.of(-1, -2, -0.5);
  const shared = policyLoss({
    logprobs,
    oldLogprobs: logprobs,
    refLogprobs: logprobs,
    advantages: logprobs,
    klEstimator: "k2",
    klCoef: 1,
    device: device.name,
  });
  const apart = policyLoss({
    logprobs,
    oldLogprobs: logprobs.slice(),
    refLogprobs: logprobs.slice(),
    advantages: device.tensor(logprobs.slice()),
    klEstimator: "k2",
    klCoef: 1,
    device: device.name,
  });
  assertSameOutputs(device, shared, apart);
});
