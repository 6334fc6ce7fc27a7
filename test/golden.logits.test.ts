/** Golden numbers of the ops over a vocabulary: float64 numpy, gradients checked there by finite differences. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fusedPolicyLoss, policyLoss, type TokenLogprobResult, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { gradientOfRow, logprobOf, softmaxRow } from "./reference/softmax.ts";
import { assertClose, forEachDevice, type TestDevice } from "./support.ts";
import { entropyTolerance, logprobTolerance, lossTolerance, lseTolerance } from "./tolerances.ts";

interface LogprobGolden {
  logits: number[][];
  labels: number[];
  logp: number[];
  entropy: number[];
  lse: number[];
}

interface Golden {
  [name: `logp_T${string}`]: LogprobGolden;
  [name: `dlogits_T${string}`]: { upstream: number[]; dlogits: number[][] };
  logp_softcap30: { logp: number[] };
  end_to_end: {
    logits: number[][];
    labels: number[];
    old: number[];
    adv: number[];
    logp: number[];
    ratio: number[];
    loss: number;
    dlogp: number[];
    dlogits: number[][];
  };
}

const golden: Golden = JSON.parse(
  readFileSync(new URL("../../test/fixtures/fapo_golden.json", import.meta.url), "utf8"),
);

function logitsOf(device: TestDevice, rows: readonly number[][]) {
  return device.tensor(Float32Array.from(rows.flat()), { shape: [rows.length, rows[0]!.length] });
}

for (const temperature of [1, 0.7, 1.2]) {
  const fixture = golden[`logp_T${temperature.toFixed(1)}`]!;
  const tokenIds = Int32Array.from(fixture.labels);
  // 0.1, 0.2, … are no float32: the second row is half an ulp of 0.5 off what numpy saw, which is 3e-8.
  const forward = (device: TestDevice): TokenLogprobResult =>
    tokenLogprob({ logits: logitsOf(device, fixture.logits), tokenIds, temperature, entropy: true });

  forEachDevice(`log-prob, lse and entropy at temperature ${temperature}`, (device) => {
    const { logprobs, lse, entropy } = forward(device);
    assertClose(device.floats(logprobs), fixture.logp, logprobTolerance, "logprobs");
    assertClose(device.floats(lse), fixture.lse, lseTolerance({}), "lse");
    assertClose(device.floats(entropy!), fixture.entropy, entropyTolerance, "entropy");
  });

  forEachDevice(`the definition in the tests agrees with numpy at temperature ${temperature}`, () => {
    for (const [i, row] of fixture.logits.entries()) {
      const softmax = softmaxRow(row, { temperature });
      // Rounding of float64 at logits of 1000 / T.
      const exact = { atol: 1e-12, rtol: 1e-13 };
      assertClose([logprobOf(softmax, tokenIds[i]!)], [fixture.logp[i]!], exact);
      assertClose([softmax.lse, softmax.entropy], [fixture.lse[i]!, fixture.entropy[i]!], exact);
    }
  });

  const gradients = golden[`dlogits_T${temperature.toFixed(1)}`];
  if (!gradients) continue;

  forEachDevice(`gradients at temperature ${temperature}`, (device) => {
    const { logprobs, lse } = forward(device);
    const gradLogprobs = Float32Array.from(gradients.upstream);
    const logits = logitsOf(device, fixture.logits);
    const { gradLogits } = tokenLogprobBackward({ logits, tokenIds, logprobs, lse, gradLogprobs, temperature });
    assertClose(device.floats(gradLogits), gradients.dlogits.flat(), { atol: 4e-7, rtol: 2e-6 });
    for (const [i, row] of fixture.logits.entries()) {
      const reference = gradientOfRow(row, tokenIds[i]!, { temperature }, gradLogprobs[i]!);
      assertClose(reference, gradients.dlogits[i]!, { atol: 1e-13, rtol: 1e-12 });
    }
  });
}

forEachDevice("log-probs with a softcap of 30", (device) => {
  const { logits, labels } = golden["logp_T1.0"]!;
  const tokenIds = Int32Array.from(labels.slice(0, 3));
  const { logprobs } = tokenLogprob({ logits: logitsOf(device, logits.slice(0, 3)), tokenIds, logitSoftcap: 30 });
  assertClose(device.floats(logprobs), golden.logp_softcap30.logp, logprobTolerance);
});

forEachDevice("one training step from logits to their gradient, fused and as a chain", (device) => {
  const { end_to_end: step } = golden;
  const logits = logitsOf(device, step.logits);
  const tokenIds = Int32Array.from(step.labels);
  const policy = { oldLogprobs: Float32Array.from(step.old), advantages: Float32Array.from(step.adv) };

  const fused = fusedPolicyLoss({ logits, tokenIds, ...policy });
  assertClose(device.floats(fused.logprobs), step.logp, logprobTolerance, "logprobs");
  // The old log-probs are rounded to float32, which moves a ratio by 6e-8 of |old|.
  const tolerance = { atol: 2e-7, rtol: 1e-6 };
  assertClose([fused.loss.item()], [step.loss], tolerance, "loss");
  assertClose(device.floats(fused.gradLogits), step.dlogits.flat(), tolerance, "gradLogits");
  const mean = step.ratio.reduce((sum, ratio) => sum + ratio, 0) / step.ratio.length;
  assertClose([fused.metrics.ratioMean.item()], [mean], lossTolerance, "ratioMean");

  const forward = tokenLogprob({ logits, tokenIds });
  const loss = policyLoss({ logprobs: forward.logprobs, ...policy });
  assert.equal(loss.loss.item(), fused.loss.item());
  assertClose(device.floats(loss.gradLogprobs), step.dlogp, tolerance, "gradLogprobs");
  const { gradLogits } = tokenLogprobBackward({ logits, tokenIds, ...forward, gradLogprobs: loss.gradLogprobs });
  assertClose(device.floats(gradLogits), step.dlogits.flat(), tolerance, "gradLogits of the chain");
});
