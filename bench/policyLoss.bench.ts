/** policyLoss on packed responses: 16 tokens (overhead), a micro-batch of 16,384, and a million, the step of a trainer. */
import { type Device, policyLoss } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import { type BenchCase, type CaseOptions, expectClose, type OpBench, type Prepared, plainTypeScript } from "./case.ts";
import { normal, policyBatchAround, rng } from "./data.ts";
import { put, read } from "./place.ts";

export const policyLossBench: OpBench = { op: "policyLoss", cases };

function cases({ quick, device }: CaseOptions): BenchCase[] {
  const sizes = quick ? [16, 16384] : [16, 16384, 1 << 20];
  return sizes.map((tokens) => ({
    op: "policyLoss",
    variant: "",
    shape: `${tokens}`,
    dtype: "float32",
    device,
    bytes: tokens * (4 + 4 + 4), // logprobs and oldLogprobs, read once; gradLogprobs, written once
    ...(tokens >= 1 << 20 && { floor: "copy" as const }),
    ...(tokens === 16 && { overhead: true as const }),
    prepare: () => prepare(tokens, device),
  }));
}

function prepare(tokens: number, device: Device): Prepared {
  const random = normal(rng(3));
  const logprobs = new Float32Array(tokens).map(() => -0.6 * Math.abs(random()));
  const terms = policyBatchAround(logprobs, Math.min(tokens, 512));
  const options = {
    logprobs: put(logprobs, device),
    oldLogprobs: put(terms.oldLogprobs, device),
    advantages: put(terms.advantages, device),
    cuSeqlens: put(terms.cuSeqlens, device),
  };
  const out = policyLoss(options);
  const again = { ...options, out };
  const call = (): void => void policyLoss(again);

  const gradLogprobs = new Float32Array(tokens);
  const theirs = baseline.lossOutputs();
  return {
    call,
    peers: [
      {
        name: plainTypeScript,
        scale: 1,
        call: () => baseline.policyLoss(logprobs, terms, gradLogprobs, theirs),
        check() {
          call();
          this.call();
          const { loss, gradLogprobs: grad, metrics } = out;
          expectClose("gradLogprobs", read(grad), gradLogprobs, { atol: 1e-9, rtol: 1e-5 });
          const ours = [loss, metrics.ratioMean, metrics.ratioMax, metrics.approxKl].map((scalar) => scalar.item());
          const expected = [theirs.loss, theirs.ratioMean, theirs.ratioMax, theirs.approxKl];
          expectClose("loss and metrics", ours, expected, { atol: 1e-7, rtol: 1e-5 });
        },
      },
    ],
  };
}
