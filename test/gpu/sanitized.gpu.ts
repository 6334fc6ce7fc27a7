/** Every kernel once, on shapes small enough for compute-sanitizer. */
import assert from "node:assert/strict";
import {
  captureGraph,
  cast,
  devices,
  fusedPolicyLoss,
  synchronize,
  tokenLogprob,
  tokenLogprobBackward,
} from "fapo-kernels";
import { logitsTensor, nans, normalBatch, normalValues } from "../support/logits.ts";
import { policyBatch } from "../support/policy.ts";
import { runBoth, upstreamOf } from "../support/tokenLogprob.ts";
import { digests } from "../support/workload.ts";
import { floatDTypes } from "../support.ts";
import { count, gpu, report, test } from "./parts.ts";

// As many rows as take rings, and few; whole packs, a rest, rows that are not aligned, a block that is not filled.
const [cuda] = devices().cuda.devices;
const ringRows = count(Math.floor(cuda!.multiprocessors / 2) + 2, 3);
const shapes = [
  [ringRows, 8208],
  [2, count(66_008, 33_000)], // in segments
  [3, 8211],
  [5, 37],
  [1, 1],
] as const;
report("shapes", shapes);

for (const dtype of floatDTypes) {
  for (const [rows, vocab] of shapes) {
    for (const scaling of [{}, { temperature: 0.7, logitSoftcap: 20 }]) {
      const capped = scaling.logitSoftcap === undefined ? "" : ", capped";
      test(`${rows} x ${vocab} ${dtype}${capped}`, () => {
        const batch = policyBatch(rows, vocab, dtype, 1, scaling);
        const got = runBoth(gpu, batch, scaling, upstreamOf(rows));
        assert.equal(got.gradLogits.length, rows * vocab);
        for (const inPlace of [false, true]) {
          const logits = logitsTensor(gpu, { ...batch, data: batch.data.slice() });
          const { loss } = fusedPolicyLoss({
            logits,
            tokenIds: batch.tokenIds,
            ...batch.options,
            inPlace,
            entropy: true,
          });
          assert.ok(Number.isFinite(loss.item()));
        }
      });
    }
  }
  test(`cast to ${dtype}`, () => {
    const narrow = cast(gpu.tensor(normalValues(1003, 1, 0, 1)), dtype);
    assert.equal(gpu.read(cast(narrow, "float32")).length, 1003);
  });
}

test("policyLoss, fapoPenalty, groupAdvantage, fapoAdvantage", () => {
  assert.deepEqual(digests(gpu), digests(gpu));
});

test("a graph is replayed after its tensors are gone", () => {
  const { gradLogprobs } = upstreamOf(ringRows);
  const batch = normalBatch(ringRows, 8208, "bfloat16");
  const logits = logitsTensor(gpu, batch);
  const tokenIds = gpu.tensor(batch.tokenIds);
  const upstream = gpu.tensor(gradLogprobs);
  using graph = captureGraph(
    () => {
      const { logprobs, lse } = tokenLogprob({ logits, tokenIds });
      return tokenLogprobBackward({ logits, tokenIds, logprobs, lse, gradLogprobs: upstream }).gradLogits;
    },
    { device: gpu.name },
  );
  for (const gone of [logits, tokenIds, upstream]) gone.dispose();
  for (let i = 0; i < 2; i++) graph.replay();
  assert.equal(gpu.read(graph.result).length, ringRows * 8208);
});

test("a bad token id harms no memory", () => {
  const batch = normalBatch(4, 8208, "bfloat16");
  const tokenIds = gpu.tensor(Int32Array.of(1, -5, 2 ** 31 - 1, 3));
  const [logprobs, lse] = [nans(gpu, [4]), nans(gpu, [4])];
  const call = (): void => {
    tokenLogprob({ logits: logitsTensor(gpu, batch), tokenIds, out: { logprobs, lse } });
    synchronize(gpu.name);
  };
  assert.throws(call, { code: "ERR_TOKEN_OUT_OF_RANGE" });
  assert.deepEqual(gpu.floats(logprobs).map(Number.isNaN), [false, true, true, false]);
});
