/** The same bits every time, for any split of the batch, and on every path that a row can take. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  fusedPolicyLoss,
  type Tensor,
  type TensorData,
  tensor,
  toDevice,
  tokenLogprob,
  tokenLogprobBackward,
} from "fapo-kernels";
import { type LogitsBatch, logitsTensor, normalBatch, spread } from "../support/logits.ts";
import { policyBatch } from "../support/policy.ts";
import { names, runBoth, upstreamOf } from "../support/tokenLogprob.ts";
import { digests } from "../support/workload.ts";
import { assertSameBits, floatDTypes } from "../support.ts";
import { count, gpu, report, test } from "./parts.ts";

const repeats = count(250, 2);
const rows = count(300, 4); // more than half of the multiprocessors: rows go through rings
const vocab = count(32_000, 8200);
report("repeats", repeats);

function digest(outputs: Iterable<TensorData>): string {
  const hash = createHash("sha256");
  for (const { buffer, byteOffset, byteLength } of outputs) hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  return hash.digest("hex");
}

function assertOneDigest(call: () => TensorData[], what: string): void {
  const expected = digest(call());
  for (let run = 1; run < repeats; run++) assert.equal(digest(call()), expected, `${what}, run ${run}`);
}

/** The elements; the tensors are freed. */
function taken(...outputs: Tensor[]): TensorData[] {
  const elements = outputs.map((each) => gpu.read(each));
  for (const each of outputs) each.dispose();
  return elements;
}

for (const dtype of floatDTypes) {
  test(`tokenLogprob and its backward pass, over and over, ${dtype}`, () => {
    const batch = normalBatch(rows, vocab, dtype);
    const { tokenIds } = batch;
    const logits = logitsTensor(gpu, batch);
    const { gradLogprobs } = upstreamOf(rows);
    assertOneDigest(() => {
      const { logprobs, lse, entropy } = tokenLogprob({ logits, tokenIds, entropy: true });
      const { gradLogits } = tokenLogprobBackward({ logits, tokenIds, logprobs, lse, gradLogprobs });
      return taken(logprobs, lse, entropy!, gradLogits);
    }, dtype);
  });

  test(`fusedPolicyLoss, over and over, ${dtype}`, () => {
    const batch = policyBatch(rows, vocab, dtype, 5);
    const logits = logitsTensor(gpu, batch);
    assertOneDigest(() => {
      const result = fusedPolicyLoss({ logits, tokenIds: batch.tokenIds, ...batch.options, entropy: true });
      const { loss, logprobs, lse, entropy, gradLogits } = result;
      return taken(loss, logprobs, lse, entropy!, gradLogits);
    }, dtype);
  });

  // A row alone is spread over the GPU; a row of a batch goes through a ring; a row that is not aligned does not.
  test(`a row gives the same bits in a batch, alone, and where it is not aligned, ${dtype}`, () => {
    const batch = normalBatch(rows, vocab, dtype, { sigma: 6 });
    const upstream = upstreamOf(rows);
    const expected = runBoth(gpu, batch, {}, upstream);
    const third = Math.floor(rows / 3);
    const parts = [0, 1, 2 * third, rows - 1].map((i) => [i, i + 1]); // rows alone, and two parts of the batch
    for (const [from, to] of [...parts, [0, third], [third, rows]] as [number, number][]) {
      const gradLogprobs = upstream.gradLogprobs.subarray(from, to);
      const gradEntropy = upstream.gradEntropy.subarray(from, to);
      const got = runBoth(gpu, rowsOf(batch, from, to), {}, { gradLogprobs, gradEntropy });
      for (const name of names) {
        const width = name === "gradLogits" ? vocab : 1;
        const bits = expected[name].subarray(from * width, to * width);
        assertSameBits(got[name], bits, `${name} of rows ${from} to ${to} alone`);
      }
    }

    const wide = tensor(spread(batch, vocab + 1) as Float32Array, {
      shape: [rows, vocab],
      rowStride: vocab + 1,
      dtype: dtype as "float32",
    });
    const logits = toDevice(wide, gpu.name);
    const { tokenIds } = batch;
    const { logprobs, lse, entropy } = tokenLogprob({ logits, tokenIds, entropy: true });
    const { gradLogits } = tokenLogprobBackward({ logits, tokenIds, logprobs, lse, entropy: entropy!, ...upstream });
    const got = { logprobs, lse, entropy: entropy!, gradLogits };
    for (const name of names) assertSameBits(gpu.read(got[name]), expected[name], `${name}, not aligned`);
  });
}

test("policyLoss, fapoPenalty, groupAdvantage and fapoAdvantage, over and over", () => {
  const expected = digests(gpu);
  for (let run = 1; run < repeats; run++) assert.deepEqual(digests(gpu), expected, `run ${run}`);
});

function rowsOf(batch: LogitsBatch, from: number, to: number): LogitsBatch {
  const [first, end] = [from * batch.vocab, to * batch.vocab];
  const [data, values] = [batch.data.subarray(first, end), batch.values.subarray(first, end)];
  return { ...batch, rows: to - from, data, values, tokenIds: batch.tokenIds.subarray(from, to) };
}
