/** fusedPolicyLoss, in place and into an `out` that is used again. Logits of real vocabularies; see suite.ts. */
import { type Device, type FusedPolicyLossResult, fusedPolicyLoss } from "fapo-kernels";
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
import { halfMask, policyBatch, type VocabBatch, vocabBatch } from "./data.ts";
import { put, read } from "./place.ts";
import { bytesPer, checkGradients, firstRows, gradScaleOf, manyRows, shapeName, tinyShape } from "./vocab.ts";

export const fusedPolicyLossBench: OpBench = { op: "fusedPolicyLoss", cases };

type Special = "entropy" | "half masked" | "zero advantages" | "allocated";

interface Variant {
  inPlace: boolean;
  special?: Special;
}

function cases({ shapes, dtypes, device, quick }: CaseOptions): BenchCase[] {
  const all = shapes.flatMap((shape) =>
    dtypes.flatMap((dtype) => [
      fused(shape, dtype, device, { inPlace: true }),
      fused(shape, dtype, device, { inPlace: false }),
      fused(shape, dtype, device, { inPlace: true, special: "entropy" }),
      ...(manyRows(shape)
        ? [
            fused(shape, dtype, device, { inPlace: true, special: "half masked" }),
            fused(shape, dtype, device, { inPlace: true, special: "zero advantages" }),
          ]
        : []),
      // Fresh memory costs what the system makes of it: nothing to guard an op by.
      ...(manyRows(shape) && !quick ? [fused(shape, dtype, device, { inPlace: false, special: "allocated" })] : []),
    ]),
  );
  return [...all, { ...fused(tinyShape, "float32", device, { inPlace: false }), overhead: true }];
}

function fused(shape: VocabShape, dtype: FloatDType, device: Device, variant: Variant): BenchCase {
  const [rows, vocab] = shape;
  const { inPlace, special } = variant;
  const counted = special === "half masked" ? Math.ceil(rows / 2) : rows;
  return {
    op: "fusedPolicyLoss",
    variant: (inPlace ? "in place" : "out") + (special ? `, ${special}` : ""),
    shape: shapeName(shape),
    dtype,
    device,
    bytes: (counted + rows) * vocab * bytesPer[dtype], // the logits of the rows that count, read; all gradients, written
    floor: inPlace ? "readWrite" : "copy",
    prepare: () => prepare(vocabBatch(shape, dtype, device), dtype, variant),
  };
}

function prepare(batch: VocabBatch, dtype: FloatDType, { inPlace, special }: Variant): Prepared {
  const { logits, tokenIds } = batch;
  const { device } = logits;
  const rows = tokenIds.length;
  const gradScale = gradScaleOf(dtype, rows);
  const terms = policyBatch(batch);
  if (special === "zero advantages") terms.advantages.fill(0);
  const mask = special === "half masked" ? halfMask(rows) : undefined;
  const entropyCoef = special === "entropy" ? 0.01 : 0;
  const counted = mask ? Math.ceil(rows / 2) : rows;
  const some = firstRows(logits, tokenIds, mask);
  const options = {
    logits,
    tokenIds: put(tokenIds, device),
    oldLogprobs: put(terms.oldLogprobs, device),
    advantages: put(terms.advantages, device),
    cuSeqlens: put(terms.cuSeqlens, device),
    gradScale,
    inPlace,
    entropyCoef,
    ...(mask && { responseMask: put(mask, device) }),
  };
  const out: FusedPolicyLossResult = fusedPolicyLoss(options);
  const again = special === "allocated" ? options : { ...options, out };
  const call = (): void => void fusedPolicyLoss(again);
  const results = (): FusedPolicyLossResult => {
    batch.restore();
    call();
    return out;
  };

  return {
    call,
    // In place: a second call would read the gradients that the first one left instead of logits.
    ...(inPlace && { restore: batch.restore }),
    moves: { source: logits, target: out.gradLogits },
    peers: [plainPeer()],
    ...(inPlace && !special && { problem: problem() }),
  };

  function problem(): NonNullable<Prepared["problem"]> {
    const { oldLogprobs, cuSeqlens } = terms;
    const advantages = new Float32Array(rows);
    terms.advantages.forEach((advantage, i) => {
      advantages.fill(advantage, cuSeqlens[i], cuSeqlens[i + 1]);
    });
    return { kind: "policyLoss", logits, tokenIds, oldLogprobs, advantages, gradScale, results };
  }

  function plainPeer(): Peer {
    const gradLogits = some.logits.slice();
    const logprobs = new Float32Array(some.rows);
    const loss = baseline.lossOutputs();
    const scratch = new Float32Array(2 * some.vocab);
    return {
      name: plainTypeScript,
      scale: rows / some.rows,
      // Never in place: that would be no less work, and its input stays fresh.
      call() {
        const scalars = [counted, gradScale, entropyCoef] as const;
        baseline.fusedPolicyLoss(some, terms, ...scalars, gradLogits, logprobs, loss, scratch);
      },
      check() {
        this.call();
        const ours = results();
        expectClose("logprobs", read(ours.logprobs), logprobs, { atol: 2e-6, rtol: 2e-6 });
        checkGradients(ours.gradLogits, gradLogits, dtype);
        if (some.rows === rows) expectClose("loss", [ours.loss.item()], [loss.loss], { atol: 1e-6, rtol: 1e-5 });
        batch.restore();
      },
    };
  }
}
