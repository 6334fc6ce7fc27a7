/**
 * CPU against CUDA over random shapes, dtypes and options. Each is within a tolerance of the definition, so one is within
 * twice that of the other.
 */
import assert from "node:assert/strict";
import {
  cast,
  fapoAdvantage,
  fapoPenalty,
  fusedPolicyLoss,
  groupAdvantage,
  type PolicyLossResult,
  policyLoss,
  type Tensor,
  toDevice,
} from "fapo-kernels";
import { spacing } from "../reference/halves.ts";
import { logprobOf, softmaxRow } from "../reference/softmax.ts";
import { type LogitsBatch, logitsTensor, normalValues, rowOf } from "../support/logits.ts";
import { bitsOf, integer, offsetsOf, pick, type Random, roundedOnce, times } from "../support/ops.ts";
import { lossAggModes, type PolicyBatch, policyBatch } from "../support/policy.ts";
import { asOptions, klEstimators, maskKinds, somePolicyCase } from "../support/policyCases.ts";
import { type Options, runBoth, upstreamOf } from "../support/tokenLogprob.ts";
import { assertClose, assertSameBits, type FloatDType, floatDTypes, normal, rng, type TestDevice } from "../support.ts";
import { entropyTolerance, gradientBound, logprobTolerance, lseTolerance, type Tolerance } from "../tolerances.ts";
import { count, cpu, gpu, test, Worst } from "./parts.ts";

const worst = new Worst("largest difference as a share of twice the tolerance");
const twice = ({ atol, rtol }: Tolerance): Tolerance => ({ atol: 2 * atol, rtol: 2 * rtol });

function close(what: string, got: ArrayLike<number>, expected: ArrayLike<number>, tolerance: Tolerance): void {
  worst.note(what, assertClose(got, expected, twice(tolerance), what));
}

/** Rows and vocabulary of every path: short, long, aligned and not, more rows than multiprocessors and few. */
function someShape(random: Random): [number, number] {
  const shapes = [
    [integer(random, 1, 40), integer(random, 1, 300)],
    [integer(random, 1, 40), integer(random, 300, 5000)],
    [integer(random, count(150, 3), count(300, 4)), 8 * integer(random, 1025, count(2000, 1100))],
    [integer(random, 1, 4), count(151_936, 4096) + integer(random, 0, 9)],
  ];
  return pick(random, shapes) as [number, number];
}

interface RandomBatch {
  batch: PolicyBatch;
  scaling: Pick<Options, "temperature" | "logitSoftcap">;
}

function someBatch(random: Random, dtype: FloatDType, seed: number): RandomBatch {
  const [rows, vocab] = someShape(random);
  const scaling = {
    ...(random() < 0.5 && { temperature: 0.3 + 2 * random() }),
    ...(random() < 0.25 && { logitSoftcap: 10 + 40 * random() }),
  };
  return { batch: policyBatch(rows, vocab, dtype, seed, scaling), scaling };
}

/** Entry by entry; 16 bits may round either way on top. `spread` is how far the pulls of a row are apart. */
function closeGradients(
  what: string,
  got: Tensor,
  expected: Tensor,
  { batch, scaling }: RandomBatch,
  pulls: { gradLogprobs: ArrayLike<number>; gradEntropy?: ArrayLike<number>; spread?: ArrayLike<number> },
): void {
  const { vocab, dtype, tokenIds } = batch;
  const { temperature = 1, logitSoftcap } = scaling;
  const [here, there] = [gpu.floats(got), cpu.floats(expected)];
  for (let i = 0; i < batch.rows; i++) {
    const softmax = softmaxRow(rowOf(batch, i), { temperature, logitSoftcap });
    const row = {
      dtype,
      gradLogprob: pulls.gradLogprobs[i]! / temperature,
      gradEntropy: (pulls.gradEntropy?.[i] ?? 0) / temperature,
      savedLogprob: tokenIds[i]! >= 0 ? logprobOf(softmax, tokenIds[i]!) : 0,
      largestCapped: (logitSoftcap ?? 0) / temperature,
      entropy: softmax.entropy,
    };
    for (let j = 0; j < vocab; j++) {
      const at = i * vocab + j;
      if (here[at] === there[at]) continue;
      const lnP = softmax.z[j]! - softmax.max - softmax.logSum;
      const rounding = dtype === "float32" ? 0 : spacing(there[at]!, dtype);
      const p = softmax.probabilities[j]!;
      const apart = ((pulls.spread?.[i] ?? 0) / temperature) * (tokenIds[i] === j ? 1 : p);
      const bound = 2 * gradientBound(row, p, lnP) + rounding + apart;
      const share = Math.abs(here[at]! - there[at]!) / bound;
      assert.ok(share <= 1, `${what} [${i}, ${j}]: ${here[at]} and ${there[at]}, bound ${bound}`);
      worst.note(what, share);
    }
  }
}

for (const dtype of floatDTypes) {
  test(`tokenLogprob, forward and backward, ${dtype}`, () => {
    const random = rng(81);
    for (let k = 0; k < count(60, 5); k++) {
      const { batch, scaling } = someBatch(random, dtype, 100 + k);
      const options = { ...scaling, ...(random() < 0.5 && { responseMask: batch.options.responseMask }) };
      const upstream = upstreamOf(batch.rows, k);
      const [got, expected] = [gpu, cpu].map((device) => runBoth(device, batch, options, upstream)) as [Both, Both];
      const what = `${dtype}, case ${k} of ${batch.rows} x ${batch.vocab}`;
      const numbers = (data: unknown): ArrayLike<number> => data as ArrayLike<number>;
      close(`tokenLogprob logprobs ${dtype}`, numbers(got.logprobs), numbers(expected.logprobs), logprobTolerance);
      close(`tokenLogprob lse ${dtype}`, numbers(got.lse), numbers(expected.lse), lseTolerance(scaling));
      close(`tokenLogprob entropy ${dtype}`, numbers(got.entropy), numbers(expected.entropy), entropyTolerance);
      const asTensor = (device: TestDevice, both: Both): Tensor =>
        device.tensor(both.gradLogits, { shape: [batch.rows, batch.vocab], dtype });
      assert.ok(got.gradLogits.length > 0, what);
      const gradients = [asTensor(gpu, got), asTensor(cpu, expected)] as const;
      closeGradients(`tokenLogprobBackward ${dtype}`, ...gradients, { batch, scaling }, upstream);
    }
  });

  test(`fusedPolicyLoss, ${dtype}`, () => {
    const random = rng(82);
    for (let k = 0; k < count(60, 5); k++) {
      const { batch, scaling } = someBatch(random, dtype, 300 + k);
      const lossAggMode = pick(random, lossAggModes);
      const options = {
        ...batch.options,
        lossAggMode,
        ...(lossAggMode === "seq-mean-token-sum-norm" && { horizon: 64 }),
        entropy: random() < 0.5,
        gradScale: pick(random, [1, 1024]),
      };
      const fused = (device: TestDevice, inPlace: boolean): ReturnType<typeof fusedPolicyLoss> =>
        fusedPolicyLoss({ logits: fresh(device, batch), tokenIds: batch.tokenIds, ...options, inPlace });
      const [got, expected] = [fused(gpu, random() < 0.5), fused(cpu, false)];
      for (const name of ["logprobs", "lse"] as const) {
        const tolerance = name === "lse" ? lseTolerance(scaling) : logprobTolerance;
        close(`fusedPolicyLoss ${name} ${dtype}`, gpu.floats(got[name]), cpu.floats(expected[name]), tolerance);
      }
      if (got.entropy && expected.entropy) {
        const [here, there] = [gpu.floats(got.entropy), cpu.floats(expected.entropy)];
        close(`fusedPolicyLoss entropy ${dtype}`, here, there, entropyTolerance);
      }
      // The loss and its pull on a row depend on the log-prob, in which the devices differ.
      const { entropy: _, temperature: __, logitSoftcap: ___, ...policy } = options as typeof options & typeof scaling;
      const responseMask = counted(batch);
      const [here, there] = [gpu.floats(got.logprobs), cpu.floats(expected.logprobs)].map((values) =>
        policyLoss({ ...policy, logprobs: Float32Array.from(values), responseMask }),
      ) as [PolicyLossResult, PolicyLossResult];
      const gradLogprobs = cpu.floats(there.gradLogprobs);
      const spread = cpu.floats(here.gradLogprobs).map((value, i) => Math.abs(value - gradLogprobs[i]!));
      close(`fusedPolicyLoss loss ${dtype}`, [got.loss.item()], [here.loss.item()], roundedOnce);
      const gradients = [got.gradLogits, expected.gradLogits] as const;
      closeGradients(`fusedPolicyLoss gradient ${dtype}`, ...gradients, { batch, scaling }, { gradLogprobs, spread });
    }
  });

  test(`cast to ${dtype} gives the same bits`, () => {
    const values = normalValues(count(1 << 22, 20_000), 30, 0, 7);
    values.set([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 1e-40, 65520, 3.4e38]);
    const narrow = [gpu, cpu].map((device) => cast(device.tensor(values), dtype));
    assertSameBits(gpu.read(narrow[0]!), cpu.read(narrow[1]!), dtype);
    const wide = narrow.map((each) => toDevice(cast(each, "float32"), "cpu").data);
    assertSameBits(wide[0]!, wide[1]!, `${dtype} to float32`);
  });
}

type Both = ReturnType<typeof runBoth>;

/** For an op in place: on the CPU a tensor shares its array. */
function fresh(device: TestDevice, batch: LogitsBatch): Tensor {
  return logitsTensor(device, { ...batch, data: batch.data.slice() });
}

/** The mask of the batch, without the tokens that fusedPolicyLoss ignores by their id. */
function counted({ tokenIds, options }: PolicyBatch): Uint8Array {
  return options.responseMask.map((value, i) => (tokenIds[i] === -100 ? 0 : value));
}

test("policyLoss", () => {
  const random = rng(83);
  for (let k = 0; k < count(500, 20); k++) {
    const klEstimator = pick(random, klEstimators);
    const input = somePolicyCase(random, {
      lossAggMode: pick(random, lossAggModes),
      klEstimator,
      klCoef: klEstimator === "none" ? 0 : random(),
      old: random() < 0.8,
      advantagesPer: pick(random, ["token", "sequence"]),
      weightsPer: pick(random, ["token", "sequence", "none"]),
      mask: pick(random, maskKinds),
      wild: random() < 0.3,
    });
    compareOutputs("policyLoss", (device) => policyLoss(asOptions(device, random, input)));
  }
});

test("fapoPenalty, groupAdvantage, fapoAdvantage", () => {
  const random = rng(84);
  const gaussian = normal(random);
  for (let k = 0; k < count(300, 15); k++) {
    const sizes = times(integer(random, 1, 60), () => integer(random, 0, 20));
    const sequences = sizes.reduce((sum, size) => sum + size, 0);
    const groupOffsets = Int32Array.from(offsetsOf(sizes));
    const correct = Uint8Array.from(times(sequences, () => integer(random, 0, 1)));
    const flawed = Int8Array.from(times(sequences, () => integer(random, -1, 1)));
    const rewards = Float32Array.from(times(sequences, gaussian));
    const responseLengths = Int32Array.from(times(sequences, () => integer(random, 1, 100)));
    const overlong = { maxLength: 100, buffer: 40 };
    const scale = pick(random, ["group-std", "batch-std", "none"] as const);
    const shared = (device: TestDevice) => ({ device: device.name }) as const;
    compareOutputs("fapoPenalty", (device) =>
      fapoPenalty({ correct, flawed, responseLengths, overlong, flawedPenalty: 0.7, ...shared(device) }),
    );
    compareOutputs("groupAdvantage", (device) => groupAdvantage({ rewards, groupOffsets, scale, ...shared(device) }));
    compareOutputs("fapoAdvantage", (device) =>
      fapoAdvantage({ correct, flawed, groupOffsets, scale, unknownVerdict: "exclude", ...shared(device) }),
    );
  }
});

/** Every output of a call, rounded once from float64 on either side. */
function compareOutputs(op: string, call: (device: TestDevice) => object): void {
  const [here, there] = [bitsOf(gpu, call(gpu)), bitsOf(cpu, call(cpu))];
  for (const [name, expected] of there) close(`${op} ${name}`, here.get(name)!, expected, roundedOnce);
}
