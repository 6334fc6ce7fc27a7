/** tokenLogprob and tokenLogprobBackward where many rows, large offsets or odd addresses are at stake. */
import assert from "node:assert/strict";
import { tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { logprobOf, softmaxRow } from "./reference/softmax.ts";
import { assertGradient } from "./support/gradient.ts";
import { batchOf, logitsTensor, normalBatch, rowOf, shifted } from "./support/logits.ts";
import { rowBits, runBoth, upstreamOf } from "./support/tokenLogprob.ts";
import { assertClose, assertFails, assertSameBits, floatDTypes, forEachDevice } from "./support.ts";
import { logprobTolerance } from "./tolerances.ts";

forEachDevice("more rows than 65,535 are all computed", (device) => {
  for (const dtype of device.emulated ? (["bfloat16"] as const) : floatDTypes) {
    const rows = 70_001;
    const batch = normalBatch(rows, 3, dtype);
    const got = runBoth(device, batch);
    const reference = Array.from({ length: rows }, (_, i) => softmaxRow(rowOf(batch, i), {}));
    const logprobs = reference.map((row, i) => logprobOf(row, batch.tokenIds[i]!));
    assertClose(got.logprobs, logprobs, logprobTolerance, dtype);
    const gradient = device.floats(tensor(got.gradLogits, { dtype }));
    assertGradient(
      gradient,
      batch,
      reference,
      {},
      {
        gradLogprobs: new Float32Array(rows).fill(1),
        gradEntropy: new Float32Array(rows).fill(0.5),
        fromSaved: true,
        name: "gradLogits of 70,001 rows",
        what: dtype,
      },
    );
  }
});

forEachDevice("rows beyond 2^31 elements are found", (device) => {
  // Zero-filled memory that is never touched costs no RAM on the CPU; on a GPU all of it would be moved.
  if (device.name !== "cpu") return;
  const stride = 2 ** 31 + 5;
  const vocab = 65;
  let data: Uint16Array;
  try {
    data = new Uint16Array(stride + vocab);
  } catch (error) {
    assert.ok(error instanceof RangeError, "4.3 GB of address space cannot be had here");
    return;
  }
  const batch = normalBatch(2, vocab, "bfloat16");
  data.set(batch.data.subarray(0, vocab), 0);
  data.set(batch.data.subarray(vocab), stride);
  const logits = tensor(data, { shape: [2, vocab], dtype: "bfloat16", rowStride: stride });
  const expected = runBoth(device, batch);
  const common = { logits, tokenIds: batch.tokenIds };
  const forward = tokenLogprob({ ...common, entropy: true });
  assertSameBits(forward.logprobs.data, expected.logprobs);
  const gradLogprobs = new Float32Array(2).fill(1);
  const gradEntropy = new Float32Array(2).fill(0.5);
  tokenLogprobBackward({ ...common, ...forward, entropy: forward.entropy!, gradLogprobs, gradEntropy, inPlace: true });
  assertSameBits(data.subarray(0, vocab), rowBits(expected.gradLogits, 0, vocab));
  assertSameBits(data.subarray(stride), rowBits(expected.gradLogits, 1, vocab));
});

forEachDevice("the last token id is found in every vocabulary, the one after it refused", (device) => {
  for (const vocab of [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 2048, 2049, 4096]) {
    const batch = batchOf(new Float32Array(vocab), 1, vocab, "float32", Int32Array.of(vocab - 1));
    batch.values[vocab - 1] = 3;
    const expected = softmaxRow(batch.values, {});
    assertClose(runBoth(device, batch).logprobs, [logprobOf(expected, vocab - 1)], logprobTolerance, `${vocab}`);
    if (device.name !== "cpu") continue;
    batch.tokenIds[0] = vocab;
    const message = `tokenLogprob: expected tokenIds[0] to be in 0..${vocab - 1} or ignoreIndex (-100), got ${vocab}`;
    assertFails(() => runBoth(device, batch), "ERR_TOKEN_OUT_OF_RANGE", message);
  }
});

forEachDevice("arrays at any byte offset, or shared between threads, give the same bits", (device) => {
  for (const dtype of floatDTypes) {
    const batch = normalBatch(3, 77, dtype);
    const expected = runBoth(device, batch);
    const size = batch.data.BYTES_PER_ELEMENT;
    for (let bytes = 0; bytes < 64; bytes += size) {
      const shared = (bytes / size) % 2 === 1;
      const words = bytes - (bytes % 4);
      const moved = {
        ...batch,
        data: shifted(batch.data, bytes, shared),
        tokenIds: shifted(batch.tokenIds, words, shared),
      };
      const responseMask = shifted(Uint8Array.of(1, 1, 1), bytes + 1, shared);
      const got = runBoth(device, moved, { responseMask });
      for (const name of ["logprobs", "lse", "entropy", "gradLogits"] as const) {
        assertSameBits(got[name], expected[name], `${name} at byte ${bytes}, ${dtype}`);
      }
    }
  }
});

forEachDevice("outputs at any byte offset are written whole, and nothing around them", (device) => {
  // What surrounds an output is visible in memory of ours alone.
  if (device.name !== "cpu") return;
  for (const dtype of floatDTypes) {
    const batch = normalBatch(3, 77, dtype);
    const { rows, vocab, tokenIds } = batch;
    const expected = runBoth(device, batch);
    const size = batch.data.BYTES_PER_ELEMENT;
    for (let bytes = 0; bytes < 64; bytes += size) {
      const guarded = shifted(
        dtype === "float32" ? new Float32Array(rows * vocab + 1) : new Uint16Array(rows * vocab + 1),
        bytes,
      );
      const whole = new Uint8Array(guarded.buffer).fill(0xa5);
      const gradLogits = tensor(guarded.subarray(0, rows * vocab), { shape: [rows, vocab], dtype });
      const common = { logits: logitsTensor(device, batch), tokenIds };
      const rowOutputs = new Float32Array(3 * (rows + 1)).fill(-7);
      const output = (k: number) => tensor(rowOutputs.subarray(k * (rows + 1), k * (rows + 1) + rows));
      const forward = { logprobs: output(0), lse: output(1), entropy: output(2) };
      tokenLogprob({ ...common, entropy: true, out: forward });
      tokenLogprobBackward({
        ...common,
        ...forward,
        gradLogprobs: new Float32Array(rows).fill(1),
        gradEntropy: new Float32Array(rows).fill(0.5),
        out: { gradLogits },
      });
      assertSameBits(gradLogits.data, expected.gradLogits, `${dtype} at byte ${bytes}`);
      const end = bytes + rows * vocab * size;
      assert.ok(
        whole.every((byte, at) => (at >= bytes && at < end) || byte === 0xa5),
        `${dtype} at byte ${bytes}: written outside`,
      );
      for (const k of [1, 2, 3]) assert.equal(rowOutputs[k * (rows + 1) - 1], -7);
    }
  }
});

forEachDevice("gradients larger than the caches have the bits of small ones, and ignored rows zeros", (device) => {
  if (device.name !== "cpu") return; // only the CPU stores them another way
  const period = 9;
  const vocab = 30_011;
  for (const dtype of floatDTypes) {
    const few = normalBatch(period, vocab, dtype);
    const size = few.data.BYTES_PER_ELEMENT;
    const rows = Math.ceil((34 << 20) / (vocab * size));
    const tiled = <Data extends Float32Array | Uint16Array | Int32Array>(data: Data, each: number): Data => {
      const Type = data.constructor as new (length: number) => Data;
      const all = new Type(rows * each);
      for (let i = 0; i < rows; i++) all.set(data.subarray((i % period) * each, ((i % period) + 1) * each), i * each);
      return all;
    };
    const shape = [rows, vocab] as const;
    const upstream = upstreamOf(period);
    const expected = runBoth(device, few, {}, upstream);
    const tokenIds = tiled(few.tokenIds, 1);
    const responseMask = Uint8Array.from({ length: rows }, (_, i) => (i % 4 === 1 ? 0 : 1));
    const rowOutputs = {
      logprobs: tiled(expected.logprobs as Float32Array, 1),
      lse: tiled(expected.lse as Float32Array, 1),
      entropy: tiled(expected.entropy as Float32Array, 1),
    };
    const saved = {
      ...rowOutputs,
      gradLogprobs: tiled(upstream.gradLogprobs, 1),
      gradEntropy: tiled(upstream.gradEntropy, 1),
    };
    const zeros = new Uint8Array(vocab * size);
    const bytesOf = (data: Float32Array | Uint16Array, row: number): Uint8Array =>
      new Uint8Array(data.buffer, data.byteOffset + row * vocab * size, vocab * size);
    // A line is 64 bytes; an output begins in the middle of one, and ends in another.
    for (const bytes of [0, 64 - size, 16]) {
      const data = tiled(few.data, vocab);
      const guarded = shifted(tiled(few.data, vocab), bytes);
      const around = new Uint8Array(guarded.buffer, 0, bytes).fill(0xa5);
      const logits = tensor(data, { shape, dtype });
      const gradLogits = tensor(guarded, { shape, dtype });
      tokenLogprobBackward({ logits, tokenIds, responseMask, ...saved, out: { gradLogits } });
      for (let i = 0; i < rows; i++) {
        const want = responseMask[i] === 0 ? zeros : bytesOf(expected.gradLogits as typeof data, i % period);
        assert.ok(Buffer.compare(bytesOf(guarded, i), want) === 0, `row ${i} from byte ${bytes}, ${dtype}`);
      }
      guarded.set(data);
      tokenLogprobBackward({ logits: gradLogits, tokenIds, responseMask, ...saved, inPlace: true });
      for (let i = 0; i < rows; i++) {
        const want = responseMask[i] === 0 ? zeros : bytesOf(expected.gradLogits as typeof data, i % period);
        assert.ok(Buffer.compare(bytesOf(guarded, i), want) === 0, `in place, row ${i} from byte ${bytes}, ${dtype}`);
      }
      assert.ok(around.every((byte) => byte === 0xa5));
    }
  }
});
