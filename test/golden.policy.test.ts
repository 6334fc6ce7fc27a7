/**
 * The policy loss against test/fixtures/fapo_golden.json: three responses of four tokens, the third masked, in every mode
 * that the options can say, and one step from logits to the gradient of the logits.
 *
 * Left out, since no option says it: `delta4_tokenmean` (TRL's cap on the ratio), `gspo_seqmean` (a ratio per sequence),
 * the gradient of `c10_beta0.1_k3+` (straight-through; its value is k3's), `is_correction` (weights are an input).
 */
import assert from "node:assert/strict";
import { fusedPolicyLoss, type PolicyLossOptions, policyLoss, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { golden } from "./support/golden.ts";
import { close, metricValues } from "./support/ops.ts";
import { forEachDevice } from "./support.ts";

const { old, logp, A, mask, ref } = golden.policy_loss_inputs;
const cuSeqlens = [0, 4, 8, 12];

/**
 * The loss depends on differences of log-probs alone, and differences of 0.3 survive float32 better than those of -1.7
 * and -2: old log-probs are moved to 0.
 */
const logprobs = Float32Array.from(logp.flat(), (value, i) => value - old.flat()[i]!);
const refLogprobs = Float32Array.from(ref.flat(), (value, i) => value - old.flat()[i]!);

const batch = {
  oldLogprobs: new Float32Array(12),
  advantages: A,
  responseMask: Uint8Array.from(mask.flat()),
  cuSeqlens,
};
const kl = { refLogprobs, klCoef: 0.1 };

const modes: Record<string, Partial<PolicyLossOptions>> = {
  fapo_default_tokenmean_c10: {},
  c3_tokenmean: { clipRatioC: 3 },
  nodual_tokenmean: { clipRatioC: Number.POSITIVE_INFINITY },
  "c10_seq-mean-token-sum": { lossAggMode: "seq-mean-token-sum" },
  "c10_seq-mean-token-mean": { lossAggMode: "seq-mean-token-mean" },
  "c10_seq-mean-token-sum-norm": { lossAggMode: "seq-mean-token-sum-norm", horizon: 4 },
  // TRL counts the response without tokens, too.
  c10_grpo: { lossAggMode: "seq-mean-token-mean", globalSequences: 3 },
  c10_dr_grpo: { lossAggMode: "seq-mean-token-sum-norm", horizon: 4, globalSequences: 3 },
  c10_tokenmean_global20: { globalTokens: 20 },
  "c10_beta0.1_k1": { ...kl, klEstimator: "k1" },
  "c10_beta0.1_k2": { ...kl, klEstimator: "k2" },
  "c10_beta0.1_k3": { ...kl, klEstimator: "k3" },
};

for (const [name, options] of Object.entries(modes)) {
  const expected = golden.policy_loss[name]!;

  forEachDevice(`${name}: loss, gradient and metrics`, (device) => {
    const result = policyLoss({ ...batch, logprobs, ...options, device: device.name });
    close("golden loss", [result.loss.item()], [expected.loss]);
    close("golden gradient", device.floats(result.gradLogprobs), expected.dlogp.flat());
    const metrics = metricValues(result.metrics);
    close("golden metrics", [metrics.clipFractionHigh! + metrics.clipFractionLow!], [expected.clipfrac]);
    const ratios = expected.ratio.flat().filter((ratio) => ratio > 0);
    const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / 7;
    close("golden metrics", [metrics.ratioMean!, metrics.ratioMax!], [mean(ratios), Math.max(...ratios)]);
    close("golden metrics", [metrics.kl!], [mean((expected.kl ?? [[]]).flat())]);
    assert.deepEqual([metrics.tokens, metrics.sequences], [7, 2]);
  });

  forEachDevice(`${name}: token by token`, (device) => {
    const at = (values: Float32Array, token: number): Float32Array => values.slice(token, token + 1);
    for (const [token, counted] of mask.flat().entries()) {
      if (!counted) continue;
      const { clipRatioC, klEstimator } = options;
      const result = policyLoss({
        logprobs: at(logprobs, token),
        oldLogprobs: Float32Array.of(0),
        advantages: [A[Math.floor(token / 4)]!],
        lossAggMode: "token-sum",
        ...(clipRatioC && { clipRatioC }),
        ...(klEstimator && { klEstimator, klCoef: 0.1, refLogprobs: at(refLogprobs, token) }),
        device: device.name,
      });
      close("golden token", [result.loss.item()], [expected.per_token.flat()[token]!]);
      close("golden token", [result.metrics.ratioMean.item()], [expected.ratio.flat()[token]!]);
      if (expected.kl) close("golden token", [result.metrics.kl.item()], [expected.kl.flat()[token]!]);
    }
  });
}

forEachDevice("the value of k3 is what k3+ has, too", (device) => {
  const result = policyLoss({ ...batch, logprobs, ...kl, klEstimator: "k3", device: device.name });
  close("golden loss", [result.loss.item()], [golden.policy_loss["c10_beta0.1_k3+"]!.loss]);
});

forEachDevice("with the log-probs as they are, the loss is right within what float32 leaves of them", (device) => {
  // Of log-probs up to 4 half an ulp is 1.2e-7, of a difference twice that; the largest ratio is 12.
  const rounded = { atol: 1e-6, rtol: 1e-6 };
  const own = { ...batch, logprobs: Float32Array.from(logp.flat()), oldLogprobs: Float32Array.from(old.flat()) };
  for (const [name, options] of Object.entries(modes)) {
    const shifted = options.refLogprobs ? { refLogprobs: Float32Array.from(ref.flat()) } : {};
    const result = policyLoss({ ...own, ...options, ...shifted, device: device.name });
    close("golden, unshifted", [result.loss.item()], [golden.policy_loss[name]!.loss], rounded);
    close("golden, unshifted", device.floats(result.gradLogprobs), golden.policy_loss[name]!.dlogp.flat(), rounded);
  }
});

forEachDevice("the four losses of the fixture", (device) => {
  const lossOf = (options: Partial<PolicyLossOptions>): number =>
    policyLoss({ ...batch, logprobs, ...options, device: device.name }).loss.item();
  close(
    "table",
    [
      lossOf({}),
      lossOf({ clipRatioC: 3 }),
      lossOf({ clipRatioC: Number.POSITIVE_INFINITY }),
      lossOf({ lossAggMode: "seq-mean-token-mean" }),
    ],
    [-0.010362152440978, -0.510362152440978, 0.145530273323556, 0.241379007409148],
  );
});

forEachDevice("one prompt from logits and advantages to the gradient of the logits", (device) => {
  const { logits: rows, labels, old, adv, logp, loss, dlogp, dlogits } = golden.end_to_end;
  // The old log-probs are float32 here: half an ulp of 1.6 in the log-ratio, times a gradient below 1.
  const rounded = { atol: 2e-7, rtol: 1e-6 };
  const logits = device.tensor(Float32Array.from(rows.flat()), { shape: [4, 3] });
  const chain = { logits, tokenIds: Int32Array.from(labels) };
  const policy = { oldLogprobs: Float32Array.from(old), advantages: Float32Array.from(adv) };

  const { logprobs, lse } = tokenLogprob(chain);
  close("end to end", device.floats(logprobs), logp);
  const result = policyLoss({ logprobs, ...policy });
  close("end to end", [result.loss.item()], [loss], rounded);
  close("end to end", device.floats(result.gradLogprobs), dlogp, rounded);
  const { gradLogits } = tokenLogprobBackward({ ...chain, logprobs, lse, gradLogprobs: result.gradLogprobs });
  close("end to end", device.floats(gradLogits), dlogits.flat(), rounded);

  const fused = fusedPolicyLoss({ ...chain, ...policy });
  close("end to end", [fused.loss.item()], [loss], rounded);
  close("end to end", device.floats(fused.gradLogits), dlogits.flat(), rounded);
  // The third is clipped: its gradient is 0, exactly.
  assert.ok(
    device
      .floats(fused.gradLogits)
      .slice(6, 9)
      .every((value) => value === 0),
  );
});
