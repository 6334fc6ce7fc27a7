/** tokenLogprob, forward and backward. Logits of real vocabularies; see main.ts for the shapes. */
import { type Tensor, type TokenLogprobBackwardResult, tokenLogprob, tokenLogprobBackward, zeros } from "fapo-kernels";
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
import { type VocabBatch, vocabBatch } from "./data.ts";
import { baselineRows, bytesPer, checkGradients, firstRows, gradScaleOf, shapeName, tinyShape } from "./vocab.ts";

export const tokenLogprobBench: OpBench = { op: "tokenLogprob", cases };

function cases({ shapes, dtypes }: CaseOptions): BenchCase[] {
  const all = shapes.flatMap((shape) =>
    dtypes.flatMap((dtype) => [
      forward(shape, dtype, false),
      forward(shape, dtype, true),
      backward(shape, dtype, false),
      backward(shape, dtype, true),
    ]),
  );
  return [...all, { ...forward(tinyShape, "float32", false), overhead: true }];
}

function forward(shape: VocabShape, dtype: FloatDType, entropy: boolean): BenchCase {
  const [rows, vocab] = shape;
  return {
    op: "tokenLogprob",
    variant: entropy ? "entropy" : "",
    shape: shapeName(shape),
    dtype,
    bytes: rows * vocab * bytesPer[dtype], // the logits, read once
    floor: "read",
    prepare: () => prepareForward(vocabBatch(shape, dtype), entropy),
  };
}

function prepareForward({ logits, tokenIds }: VocabBatch, entropy: boolean): Prepared {
  const options = { logits, tokenIds, entropy };
  const out = tokenLogprob(options);
  const again = { ...options, out };
  const call = (): void => void tokenLogprob(again);
  const some = firstRows(logits, tokenIds);
  const theirs = baseline.rowOutputs(some.rows);
  const scratch = new Float32Array(some.vocab);
  const peer: Peer = {
    name: plainTypeScript,
    scale: tokenIds.length / some.rows,
    call: () => baseline.tokenLogprob(some, entropy, theirs, scratch),
    check() {
      call();
      this.call();
      expectClose("logprobs", out.logprobs.data, theirs.logprobs, { atol: 2e-6, rtol: 2e-6 });
      expectClose("lse", out.lse.data, theirs.lse, { atol: 2e-6, rtol: 2e-6 });
      if (out.entropy) expectClose("entropy", out.entropy.data, theirs.entropy, { atol: 2e-5, rtol: 2e-6 });
    },
  };
  return { call, peers: [peer] };
}

function backward(shape: VocabShape, dtype: FloatDType, inPlace: boolean): BenchCase {
  const [rows, vocab] = shape;
  return {
    op: "tokenLogprobBackward",
    variant: inPlace ? "in place" : "out",
    shape: shapeName(shape),
    dtype,
    bytes: 2 * rows * vocab * bytesPer[dtype], // the logits, read once, and their gradient, written once
    floor: inPlace ? "readWrite" : "copy",
    prepare: () => prepareBackward(vocabBatch(shape, dtype), dtype, inPlace),
  };
}

function prepareBackward(batch: VocabBatch, dtype: FloatDType, inPlace: boolean): Prepared {
  const { logits, tokenIds } = batch;
  const rows = tokenIds.length;
  const { logprobs, lse } = tokenLogprob({ logits, tokenIds });
  // As after a loss with token-mean: of both signs, none zero.
  const gradLogprobs = new Float32Array(rows).map((_, i) => (i % 2 ? 0.8 : -1.1) / rows);
  const gradScale = gradScaleOf(dtype, rows);
  const options = { logits, tokenIds, logprobs, lse, gradLogprobs, gradScale, inPlace };
  const gradLogits: Tensor = inPlace ? logits : zeros(logits.shape, { dtype });
  const out: TokenLogprobBackwardResult = { gradLogits };
  const again = { ...options, out };
  const call = (): void => void tokenLogprobBackward(again);

  const some = firstRows(logits, tokenIds);
  const theirs = some.logits.slice();
  const scratch = new Float32Array(some.vocab);
  const lseData = lse.data as Float32Array;
  const peer: Peer = {
    name: plainTypeScript,
    scale: rows / baselineRows(rows),
    // Never in place: that would be no less work, and its input stays fresh.
    call: () => baseline.tokenLogprobBackward(some, lseData, gradLogprobs, gradScale, theirs, scratch),
    check() {
      this.call();
      batch.restore();
      call();
      checkGradients(gradLogits, theirs, dtype);
      batch.restore();
    },
  };
  return { call, ...(inPlace && { restore: batch.restore }), peers: [peer] };
}
