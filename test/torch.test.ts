/**
 * policyLoss, tokenLogprob, its backward pass and fusedPolicyLoss against PyTorch's autograd in float64:
 * test/fixtures/torch.json, written by scripts/torch-fixtures.py.
 */
import assert from "node:assert/strict";
import {
  type FusedPolicyLossOptions,
  fusedPolicyLoss,
  type PolicyLossOptions,
  policyLoss,
  type Tensor,
  type TokenLogitsOptions,
  tokenLogprob,
  tokenLogprobBackward,
} from "fapo-kernels";
import { readJson } from "./support/golden.ts";
import { close, metricValues } from "./support/ops.ts";
import { forEachDevice, type TestDevice } from "./support.ts";

interface Loss {
  loss: number;
  metrics: Record<string, number>;
}

interface Case {
  name: string;
  rows: number;
  vocab: number;
  options: Partial<FusedPolicyLossOptions>;
  inputs: Record<string, number[]>;
  forward: { logprobs: number[]; lse: number[]; entropy: number[] };
  policyLoss: Loss & { gradLogprobs: number[] };
  fusedPolicyLoss: Loss & { gradLogits: number[] };
  backward: { inputs: { gradLogprobs: number[]; gradEntropy: number[] }; gradLogits: number[] };
}

const fixture = readJson<{ torch: string; command: string; cases: Case[] }>("torch.json");

/** Log-probs are float32 numbers on the way from the logits to the loss. */
const logprobTolerance = { atol: 1e-6, rtol: 1e-6 };
const chainTolerance = { atol: 1e-6, rtol: 5e-6 };

/** JSON has neither -Infinity nor Infinity: strings. */
function floats(values: readonly unknown[]): Float32Array {
  return Float32Array.from(values, Number);
}

function batchOf({ inputs, options }: Case): Omit<PolicyLossOptions, "logprobs"> {
  const { clipRatioLow, clipRatioHigh, clipRatioC, logRatioClamp, klEstimator, klCoef, ...others } = options;
  const { lossAggMode, globalTokens, globalSequences, horizon, gradScale } = others;
  const chosen = {
    clipRatioLow,
    clipRatioHigh,
    clipRatioC: clipRatioC && Number(clipRatioC),
    logRatioClamp,
    klEstimator,
    klCoef,
    lossAggMode,
    globalTokens,
    globalSequences,
    horizon,
    gradScale,
  };
  const arrays = Object.fromEntries(
    ["oldLogprobs", "refLogprobs", "importanceWeights"].flatMap((name) =>
      inputs[name] ? [[name, floats(inputs[name])]] : [],
    ),
  );
  return {
    ...(chosen as Partial<PolicyLossOptions>),
    ...arrays,
    advantages: floats(inputs.advantages!),
    cuSeqlens: inputs.cuSeqlens!,
  };
}

function chainOf(device: TestDevice, { inputs, options, rows, vocab }: Case): TokenLogitsOptions {
  const { temperature, logitSoftcap } = options;
  return {
    logits: device.tensor(floats(inputs.logits!), { shape: [rows, vocab] }),
    tokenIds: Int32Array.from(inputs.tokenIds!),
    ...(inputs.responseMask && { responseMask: Uint8Array.from(inputs.responseMask) }),
    ...(temperature && { temperature }),
    ...(logitSoftcap && { logitSoftcap }),
  };
}

function compareMetrics(what: string, actual: object, expected: Record<string, number>): void {
  const values = metricValues(actual as never);
  for (const [name, value] of Object.entries(expected)) close(what, [values[name]!], [value], chainTolerance);
}

assert.ok(fixture.cases.length >= 12);

for (const one of fixture.cases) {
  const { name, inputs, forward, backward } = one;

  forEachDevice(`policyLoss as in PyTorch: ${name}`, (device) => {
    const counts = inputs.tokenIds!.map((id, row) => Number(id !== -100 && inputs.responseMask?.[row] !== 0));
    const result = policyLoss({
      ...batchOf(one),
      logprobs: floats(inputs.logprobs!),
      responseMask: Uint8Array.from(counts),
      device: device.name,
    });
    const expected = one.policyLoss;
    close("policyLoss: loss", [result.loss.item()], [expected.loss]);
    close("policyLoss: gradient", device.floats(result.gradLogprobs), expected.gradLogprobs);
    compareMetrics("policyLoss: metrics", result.metrics, expected.metrics);
  });

  forEachDevice(`tokenLogprob as in PyTorch: ${name}`, (device) => {
    const result = tokenLogprob({ ...chainOf(device, one), entropy: true });
    for (const output of ["logprobs", "lse", "entropy"] as const) {
      close(`tokenLogprob: ${output}`, device.floats(result[output] as Tensor), forward[output], logprobTolerance);
    }
  });

  forEachDevice(`tokenLogprobBackward as in PyTorch, through log-probs and entropies: ${name}`, (device) => {
    const chain = chainOf(device, one);
    const { logprobs, lse, entropy } = tokenLogprob({ ...chain, entropy: true });
    const { gradLogits } = tokenLogprobBackward({
      ...chain,
      logprobs,
      lse,
      entropy: entropy!,
      gradLogprobs: floats(backward.inputs.gradLogprobs),
      gradEntropy: floats(backward.inputs.gradEntropy),
    });
    close("tokenLogprobBackward", device.floats(gradLogits), backward.gradLogits, chainTolerance);
  });

  forEachDevice(`fusedPolicyLoss as in PyTorch: ${name}`, (device) => {
    const { entropyCoef = 0 } = one.options;
    const expected = one.fusedPolicyLoss;
    for (const inPlace of [false, true]) {
      const result = fusedPolicyLoss({
        ...batchOf(one),
        ...chainOf(device, one),
        entropyCoef,
        entropy: true,
        inPlace,
      } as FusedPolicyLossOptions);
      close("fusedPolicyLoss: loss", [result.loss.item()], [expected.loss], chainTolerance);
      close("fusedPolicyLoss: gradient", device.floats(result.gradLogits), expected.gradLogits, chainTolerance);
      close("fusedPolicyLoss: logprobs", device.floats(result.logprobs), forward.logprobs, logprobTolerance);
      close("fusedPolicyLoss: entropy", device.floats(result.entropy!), forward.entropy, logprobTolerance);
      compareMetrics("fusedPolicyLoss: metrics", result.metrics, expected.metrics);
    }
  });
}
