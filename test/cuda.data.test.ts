/** Ids, offsets and verdicts that lie on a GPU: bad ones harm no memory, make NaN, and are an error at the next wait. */
import assert from "node:assert/strict";
import {
  type FapoErrorCode,
  fapoAdvantage,
  fapoPenalty,
  fusedPolicyLoss,
  groupAdvantage,
  policyLoss,
  synchronize,
  type Tensor,
  tensor,
  toDevice,
  tokenLogprob,
} from "fapo-kernels";
import { testGpu } from "./support/cuda.ts";
import { assertFails } from "./support.ts";

const gpu = "cuda:0";
const there = (data: Tensor["data"], shape: number[] = [data.length]): Tensor =>
  toDevice(tensor(data as Float32Array, { shape }), gpu);
const read = (source: Tensor): number[] => Array.from(toDevice(source, "cpu").data);
const logits = (rows: number, vocab: number): Tensor =>
  there(
    Float32Array.from({ length: rows * vocab }, (_, i) => Math.sin(i)),
    [rows, vocab],
  );

/** One error at the next wait, whichever it is; none at the one after. */
function assertFault(op: string, code: FapoErrorCode, argument: string, message: RegExp): void {
  assertFails(
    () => synchronize(gpu),
    code,
    new RegExp(`^synchronize: ${argument.replace(/[[\]]/g, "\\$&")} of ${op} on cuda:0 ${message.source}`),
  );
  synchronize(gpu);
}

testGpu("a token id outside the vocabulary: NaN in its row alone, and an error once", () => {
  const [rows, vocab] = [5, 40];
  const good = read(tokenLogprob({ logits: logits(rows, vocab), tokenIds: new Int32Array(rows) }).logprobs);
  for (const bad of [-1, vocab, 2 ** 31 - 1, -(2 ** 31)]) {
    const { logprobs } = tokenLogprob({
      logits: logits(rows, vocab),
      tokenIds: there(Int32Array.of(0, 0, bad, 0, vocab + 7)),
      responseMask: new Uint8Array([1, 1, 1, 1, 0]),
    });
    assertFault("tokenLogprob", "ERR_TOKEN_OUT_OF_RANGE", "tokenIds[2]", /is outside the vocabulary/);
    assert.deepEqual(read(logprobs), [good[0], good[1], Number.NaN, good[3], 0]);
  }
});

testGpu("of several faults the first is told: of the earliest call, and in it of the lowest index", () => {
  const tokenIds = (...ids: number[]): Tensor => there(Int32Array.from(ids));
  const call = (ids: Tensor): void => {
    tokenLogprob({ logits: logits(3, 8), tokenIds: ids });
  };
  call(tokenIds(1, 2, 3));
  groupAdvantage({ rewards: there(new Float32Array(3)), groupIds: tokenIds(0, 9, 7), groups: 2 });
  call(tokenIds(8, 2, 9));
  assertFault("groupAdvantage", "ERR_INVALID_ARGUMENT", "groupIds[1]", /names no group/);
});

testGpu("item and toDevice are waits, too", () => {
  const fault = (): Tensor => tokenLogprob({ logits: logits(1, 8), tokenIds: there(Int32Array.of(99)) }).lse;
  assertFails(() => toDevice(fault(), "cpu"), "ERR_TOKEN_OUT_OF_RANGE", /^toDevice: tokenIds\[0\] of tokenLogprob/);
  const scalar = toDevice(tensor(Float32Array.of(3), { shape: [] }), gpu);
  fault();
  assertFails(() => scalar.item(), "ERR_TOKEN_OUT_OF_RANGE", /^Tensor\.item: tokenIds\[0\] of tokenLogprob/);
  assert.equal(scalar.item(), 3);
});

testGpu("group ids and offsets that do not fit harm no memory", () => {
  const rewards = there(Float32Array.of(1, 0, 1, 0));
  groupAdvantage({ rewards, groupIds: there(Int32Array.of(0, 1, -5, 2 ** 31 - 1)), groups: 2 });
  assertFault("groupAdvantage", "ERR_INVALID_ARGUMENT", "groupIds[2]", /names no group/);
  for (const [offsets, index] of [
    [[1, 2, 4], 0],
    [[0, 3, 2, 4], 2],
    [[0, 9, 4], 1],
    [[0, 2, 3], 2],
  ] as const) {
    groupAdvantage({ rewards, groupOffsets: there(Int32Array.from(offsets)) });
    assertFault("groupAdvantage", "ERR_INVALID_ARGUMENT", `groupOffsets[${index}]`, /does not belong to offsets/);
  }
});

testGpu("cuSeqlens that do not fit: no memory is harmed, and losses, gradients and metrics are NaN", () => {
  const advantages = new Float32Array(4);
  const options = { logprobs: there(new Float32Array(4)), advantages };
  for (const [cuSeqlens, index] of [
    [[1, 4], 0],
    [[0, 3, 2, 4], 2],
    [[0, 3], 1],
    [[0, -7, 4], 1],
  ] as const) {
    const bad = there(Int32Array.from(cuSeqlens));
    const { loss, gradLogprobs, metrics } = policyLoss({ ...options, cuSeqlens: bad });
    assertFault("policyLoss", "ERR_INVALID_ARGUMENT", `cuSeqlens[${index}]`, /does not belong to offsets/);
    const { tokens, sequences, ...means } = metrics;
    for (const scalar of [loss, means.ratioMean, means.ratioMax, means.clipFractionHigh]) {
      assert.ok(Number.isNaN(scalar.item()));
    }
    assert.deepEqual(read(gradLogprobs), new Array(4).fill(Number.NaN));
    // Zero advantages alone would make zeros.
    const fused = fusedPolicyLoss({ logits: logits(4, 9), tokenIds: new Int32Array(4), advantages, cuSeqlens: bad });
    assertFault("fusedPolicyLoss", "ERR_INVALID_ARGUMENT", `cuSeqlens[${index}]`, /does not belong to offsets/);
    assert.ok(Number.isNaN(fused.loss.item()));
    assert.ok(read(fused.gradLogits).every(Number.isNaN));
  }
  const none = new Float32Array(0);
  policyLoss({ logprobs: there(none), advantages: none, cuSeqlens: there(Int32Array.of(5)) });
  assertFault("policyLoss", "ERR_INVALID_ARGUMENT", "cuSeqlens[0]", /does not belong to offsets/);
});

testGpu("verdicts and lengths that are none are told", () => {
  const correct = there(Uint8Array.of(1, 0, 1));
  const flawed = there(Int8Array.of(0, 77, 5));
  fapoPenalty({ correct, flawed });
  assertFault("fapoPenalty", "ERR_INVALID_ARGUMENT", "flawed[2]", /is not 1 \(flawed\), 0 \(sound\) or -1/);
  fapoAdvantage({ correct, flawed, groupSize: 3 });
  assertFault("fapoAdvantage", "ERR_INVALID_ARGUMENT", "flawed[2]", /is not 1/);
  fapoPenalty({
    correct,
    flawed: new Int8Array(3),
    responseLengths: there(Int32Array.of(1, -1, 2)),
    overlong: { maxLength: 8, buffer: 4 },
  });
  assertFault("fapoPenalty", "ERR_INVALID_ARGUMENT", "responseLengths[1]", /is not a number of tokens/);
});

testGpu("arrays of the host beside tensors of a GPU are checked before anything is written", () => {
  const options = { logits: logits(2, 8), tokenIds: new Int32Array([0, 8]) };
  assertFails(
    () => tokenLogprob(options),
    "ERR_TOKEN_OUT_OF_RANGE",
    "tokenLogprob: expected tokenIds[1] to be in 0..7 or ignoreIndex (-100), got 8",
  );
  assertFails(
    () => groupAdvantage({ rewards: there(new Float32Array(3)), groupIds: [0, 1, 2], groups: 2 }),
    "ERR_INVALID_ARGUMENT",
    "groupAdvantage: expected groupIds[2] to be in 0..1, got 2",
  );
  assertFails(
    () => policyLoss({ logprobs: there(new Float32Array(3)), advantages: [1], cuSeqlens: [0, 2] }),
    "ERR_INVALID_ARGUMENT",
    "policyLoss: expected cuSeqlens[1] to be 3, the number of tokens, got 2",
  );
  assertFails(
    () => fapoPenalty({ correct: [1], flawed: [5], device: gpu }),
    "ERR_INVALID_ARGUMENT",
    "fapoPenalty: expected flawed[0] to be 1 (flawed), 0 (sound) or -1 (unknown), got 5",
  );
  synchronize(gpu);
});
