/** tokenLogprob, forward and backward. Logits of real vocabularies; see suite.ts for the shapes. */
import {
  type Device,
  type Tensor,
  type TokenLogprobBackwardResult,
  tokenLogprob,
  tokenLogprobBackward,
  zeros,
} from "fapo-kernels";
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
import { halfMask, type VocabBatch, vocabBatch } from "./data.ts";
import { put, read } from "./place.ts";
import {
  baselineRows,
  bytesPer,
  checkGradients,
  firstRows,
  gradScaleOf,
  manyRows,
  shapeName,
  tinyShape,
} from "./vocab.ts";

export const tokenLogprobBench: OpBench = { op: "tokenLogprob", cases };

type Variant = "" | "entropy" | "half masked";

function cases({ shapes, dtypes, device }: CaseOptions): BenchCase[] {
  const all = shapes.flatMap((shape) =>
    dtypes.flatMap((dtype) => [
      forward(shape, dtype, device, ""),
      forward(shape, dtype, device, "entropy"),
      ...(manyRows(shape) ? [forward(shape, dtype, device, "half masked")] : []),
      backward(shape, dtype, device, false),
      backward(shape, dtype, device, true),
    ]),
  );
  return [...all, { ...forward(tinyShape, "float32", device, ""), overhead: true }];
}

function forward(shape: VocabShape, dtype: FloatDType, device: Device, variant: Variant): BenchCase {
  const [rows, vocab] = shape;
  const counted = variant === "half masked" ? Math.ceil(rows / 2) : rows;
  return {
    op: "tokenLogprob",
    variant,
    shape: shapeName(shape),
    dtype,
    device,
    bytes: counted * vocab * bytesPer[dtype], // the logits of the rows that count, read once
    floor: "read",
    prepare: () => prepareForward(vocabBatch(shape, dtype, device), variant),
  };
}

function prepareForward({ logits, tokenIds }: VocabBatch, variant: Variant): Prepared {
  const rows = tokenIds.length;
  const { device } = logits;
  const entropy = variant === "entropy";
  const mask = variant === "half masked" ? halfMask(rows) : undefined;
  const options = {
    logits,
    tokenIds: put(tokenIds, device),
    entropy,
    ...(mask && { responseMask: put(mask, device) }),
  };
  const out = tokenLogprob(options);
  const again = { ...options, out };
  const call = (): void => void tokenLogprob(again);
  const some = firstRows(logits, tokenIds, mask);
  const theirs = baseline.rowOutputs(some.rows);
  const scratch = new Float32Array(some.vocab);
  const peer: Peer = {
    name: plainTypeScript,
    scale: rows / some.rows,
    call: () => baseline.tokenLogprob(some, entropy, theirs, scratch),
    check() {
      call();
      this.call();
      expectClose("logprobs", read(out.logprobs), theirs.logprobs, { atol: 2e-6, rtol: 2e-6 });
      expectClose("lse", read(out.lse), theirs.lse, { atol: 2e-6, rtol: 2e-6 });
      if (out.entropy) expectClose("entropy", read(out.entropy), theirs.entropy, { atol: 2e-5, rtol: 2e-6 });
    },
  };
  const results = (): typeof out => {
    call();
    return out;
  };
  const problem = variant === "" && { problem: { kind: "tokenLogprob" as const, logits, tokenIds, results } };
  return { call, moves: { source: logits }, peers: [peer], ...problem };
}

function backward(shape: VocabShape, dtype: FloatDType, device: Device, inPlace: boolean): BenchCase {
  const [rows, vocab] = shape;
  return {
    op: "tokenLogprobBackward",
    variant: inPlace ? "in place" : "out",
    shape: shapeName(shape),
    dtype,
    device,
    bytes: 2 * rows * vocab * bytesPer[dtype], // the logits, read once, and their gradient, written once
    floor: inPlace ? "readWrite" : "copy",
    prepare: () => prepareBackward(vocabBatch(shape, dtype, device), dtype, inPlace),
  };
}

function prepareBackward(batch: VocabBatch, dtype: FloatDType, inPlace: boolean): Prepared {
  const { logits, tokenIds: ids, restore } = batch;
  const { device } = logits;
  const rows = ids.length;
  const tokenIds = put(ids, device);
  const { logprobs, lse } = tokenLogprob({ logits, tokenIds });
  // As after a loss with token-mean: of both signs, none zero.
  const grads = new Float32Array(rows).map((_, i) => (i % 2 ? 0.8 : -1.1) / rows);
  const gradScale = gradScaleOf(dtype, rows);
  const options = { logits, tokenIds, logprobs, lse, gradLogprobs: put(grads, device), gradScale, inPlace };
  const gradLogits: Tensor = inPlace ? logits : zeros(logits.shape, { dtype, device });
  const out: TokenLogprobBackwardResult = { gradLogits };
  const again = { ...options, out };
  const call = (): void => void tokenLogprobBackward(again);

  const some = firstRows(logits, ids);
  const theirs = some.logits.slice();
  const scratch = new Float32Array(some.vocab);
  const lseData = read(lse) as Float32Array;
  const peer: Peer = {
    name: plainTypeScript,
    scale: rows / baselineRows(rows),
    // Never in place: that would be no less work, and its input stays fresh.
    call: () => baseline.tokenLogprobBackward(some, lseData, grads, gradScale, theirs, scratch),
    check() {
      this.call();
      restore();
      call();
      checkGradients(gradLogits, theirs, dtype);
      restore();
    },
  };
  return { call, ...(inPlace && { restore }), moves: { source: logits, target: gradLogits }, peers: [peer] };
}
