/** Random calls of policyLoss: as plain numbers for the definition, and as options for the op. */
import type { KlEstimator, LossAggMode, PolicyLossOptions, PolicyLossResult } from "fapo-kernels";
import { metricNames, type PolicyCase, type PolicyReference } from "../reference/policy.ts";
import { normal, type TestDevice } from "../support.ts";
import { close, inSomeForm, integer, metricValues, offsetsOf, pick, type Random, times } from "./ops.ts";

export const klEstimators: readonly KlEstimator[] = ["none", "k1", "k2", "k3"];
export const lossAggModes: readonly LossAggMode[] = [
  "token-mean",
  "token-sum",
  "seq-mean-token-sum",
  "seq-mean-token-mean",
  "seq-mean-token-sum-norm",
];
export type MaskKind = "none" | "ones" | "random" | "zeros" | "one token";
export const maskKinds: readonly MaskKind[] = ["none", "ones", "random", "zeros", "one token"];

/** What a case is made to have; the rest is drawn. */
export interface Wanted {
  lossAggMode: LossAggMode;
  klEstimator: KlEstimator;
  klCoef: number;
  old: boolean;
  advantagesPer: "token" | "sequence";
  weightsPer: "token" | "sequence" | "none";
  mask: MaskKind;
  /** Whether log-ratios far outside of every clamp occur. */
  wild: boolean;
}

/** Gaps between log-probs that leave the clamps on both sides. */
const gaps = [20, -20, 20.5, -20.5, 25, -25, 50, -50, 100, -100, 1e4, -1e4];

export function somePolicyCase(random: Random, wanted: Wanted): PolicyCase {
  const gaussian = normal(random);
  const sizes = times(integer(random, 1, 6), () => (random() < 0.2 ? 0 : integer(random, 1, 8)));
  const cuSeqlens = offsetsOf(sizes);
  const tokens = cuSeqlens.at(-1)!;
  const float = (value: number): number => Math.fround(value);
  const logprobs = times(tokens, () => float(-Math.abs(2 * gaussian())));
  const near = (spread: number): number[] =>
    logprobs.map((logprob) =>
      float(logprob - (wanted.wild && random() < 0.15 ? pick(random, gaps) : spread * gaussian())),
    );
  const per = (of: "token" | "sequence", make: () => number): number[] =>
    times(of === "token" ? tokens : sizes.length, () => float(make()));
  const { lossAggMode, klEstimator, klCoef } = wanted;
  const masks: Record<MaskKind, () => number[] | undefined> = {
    none: () => undefined,
    ones: () => times(tokens, () => 1),
    random: () => times(tokens, () => pick(random, [0, 1, 1, 255])),
    zeros: () => times(tokens, () => 0),
    "one token": () => {
      const chosen = integer(random, 0, tokens - 1);
      return times(tokens, (token) => Number(token === chosen));
    },
  };
  const responseMask = masks[wanted.mask]();
  return {
    logprobs,
    ...(wanted.old && { oldLogprobs: near(0.5) }),
    advantages: per(wanted.advantagesPer, () => (random() < 0.1 ? 0 : gaussian())),
    cuSeqlens,
    ...(responseMask && { responseMask }),
    ...(klEstimator !== "none" && { refLogprobs: near(0.7) }),
    ...(wanted.weightsPer !== "none" && { importanceWeights: per(wanted.weightsPer, () => Math.exp(gaussian())) }),
    klEstimator,
    klCoef,
    lossAggMode,
    ...(lossAggMode === "seq-mean-token-sum-norm" && { horizon: pick(random, [1, 4096, 0.5 + random()]) }),
    ...(random() < 0.4 && { globalTokens: integer(random, 1, 100) }),
    ...(random() < 0.4 && { globalSequences: integer(random, 1, 100) }),
    ...(random() < 0.5 && { clipRatioLow: pick(random, [0, 1, random()]) }),
    ...(random() < 0.5 && { clipRatioHigh: pick(random, [0, 5, random()]) }),
    ...(random() < 0.5 && { clipRatioC: pick(random, [3, 1.5, Number.POSITIVE_INFINITY]) }),
    ...(random() < 0.5 && { logRatioClamp: pick(random, [3, 0.5, wanted.wild ? 30 : Number.POSITIVE_INFINITY]) }),
    ...(random() < 0.5 && { gradScale: pick(random, [1024, -0.5, 0, random()]) }),
  };
}

/** The same case as options, each array in one of its forms. */
export function asOptions(device: TestDevice, random: Random, input: PolicyCase): PolicyLossOptions {
  const floats = (values: ArrayLike<number>): ReturnType<typeof inSomeForm<Float32Array>> =>
    inSomeForm(device, random, Float32Array.from(values));
  const { logprobs, oldLogprobs, advantages, cuSeqlens, responseMask, refLogprobs, importanceWeights, ...rest } = input;
  return {
    ...rest,
    logprobs: floats(logprobs),
    advantages: random() < 0.2 ? Array.from(advantages) : floats(advantages),
    ...(oldLogprobs && { oldLogprobs: floats(oldLogprobs) }),
    ...(refLogprobs && { refLogprobs: floats(refLogprobs) }),
    ...(importanceWeights && { importanceWeights: floats(importanceWeights) }),
    ...(cuSeqlens && {
      cuSeqlens: random() < 0.2 ? cuSeqlens : inSomeForm(device, random, Int32Array.from(cuSeqlens)),
    }),
    ...(responseMask && { responseMask: inSomeForm(device, random, Uint8Array.from(responseMask)) }),
    device: device.name,
  };
}

export function compareWithReference(
  device: TestDevice,
  result: PolicyLossResult,
  expected: PolicyReference,
  what = "policyLoss",
): void {
  close(`${what}: loss`, [result.loss.item()], [expected.loss]);
  close(`${what}: gradient`, device.floats(result.gradLogprobs), expected.gradLogprobs);
  const metrics = metricValues(result.metrics);
  for (const name of metricNames) close(`${what}: metrics`, [metrics[name]!], [expected.metrics[name]]);
}
