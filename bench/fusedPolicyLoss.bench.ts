/** fusedPolicyLoss, in place and into an `out` that is used again. Logits of real vocabularies; see main.ts. */
import { type FusedPolicyLossResult, fusedPolicyLoss } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import type { Peer, Prepared, VocabShape } from "./case.ts";
import {
  type BenchCase,
  type CaseOptions,
  expectClose,
  type FloatDType,
  type OpBench,
  plainTypeScript,
} from "./case.ts";
import { policyBatch, type VocabBatch, vocabBatch } from "./data.ts";
import { bytesPer, checkGradients, firstRows, gradScaleOf, shapeName, tinyShape } from "./vocab.ts";

export const fusedPolicyLossBench: OpBench = { op: "fusedPolicyLoss", cases };

interface Variant {
  inPlace: boolean;
  entropyCoef: number;
}

function cases({ shapes, dtypes }: CaseOptions): BenchCase[] {
  const all = shapes.flatMap((shape) =>
    dtypes.flatMap((dtype) => [
      fused(shape, dtype, { inPlace: true, entropyCoef: 0 }),
      fused(shape, dtype, { inPlace: false, entropyCoef: 0 }),
      fused(shape, dtype, { inPlace: true, entropyCoef: 0.01 }),
    ]),
  );
  return [...all, { ...fused(tinyShape, "float32", { inPlace: false, entropyCoef: 0 }), overhead: true }];
}

function fused(shape: VocabShape, dtype: FloatDType, variant: Variant): BenchCase {
  const [rows, vocab] = shape;
  return {
    op: "fusedPolicyLoss",
    variant: (variant.inPlace ? "in place" : "out") + (variant.entropyCoef ? ", entropy" : ""),
    shape: shapeName(shape),
    dtype,
    bytes: 2 * rows * vocab * bytesPer[dtype], // the logits, read once, and their gradient, written once
    floor: variant.inPlace ? "readWrite" : "copy",
    prepare: () => prepare(vocabBatch(shape, dtype), dtype, variant),
  };
}

function prepare(batch: VocabBatch, dtype: FloatDType, { inPlace, entropyCoef }: Variant): Prepared {
  const { logits, tokenIds } = batch;
  const rows = tokenIds.length;
  const gradScale = gradScaleOf(dtype, rows);
  const terms = policyBatch(batch);
  const some = firstRows(logits, tokenIds);
  const options = { logits, tokenIds, ...terms, gradScale, inPlace, entropyCoef };
  const out: FusedPolicyLossResult = fusedPolicyLoss(options);
  const again = { ...options, out };
  const call = (): void => void fusedPolicyLoss(again);

  // In place: a second call would read the gradients that the first one left instead of logits.
  const restore = inPlace ? { restore: batch.restore } : {};
  // The baseline has no entropy bonus.
  const peers = entropyCoef ? [] : [plainPeer()];
  return { call, ...restore, peers };

  function plainPeer(): Peer {
    const gradLogits = some.logits.slice();
    const logprobs = new Float32Array(some.rows);
    const loss = baseline.lossOutputs();
    const scratch = new Float32Array(some.vocab);
    return {
      name: plainTypeScript,
      scale: rows / some.rows,
      // Never in place: that would be no less work, and its input stays fresh.
      call: () => baseline.fusedPolicyLoss(some, terms, rows, gradScale, gradLogits, logprobs, loss, scratch),
      check() {
        this.call();
        batch.restore();
        call();
        expectClose("logprobs", out.logprobs.data, logprobs, { atol: 2e-6, rtol: 2e-6 });
        checkGradients(out.gradLogits, gradLogits, dtype);
        if (some.rows === rows) expectClose("loss", [out.loss.item()], [loss.loss], { atol: 1e-6, rtol: 1e-5 });
        batch.restore();
      },
    };
  }
}
