/** tokenLogprob and tokenLogprobBackward with rows that are not packed, in place, and outputs that are given. */
import assert from "node:assert/strict";
import { type Tensor, tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { type LogitsBatch, logitsTensor, normalBatch, spread } from "./support/logits.ts";
import { assertSameBits, floatDTypes, forEachDevice, type TestDevice } from "./support.ts";

function strided(device: TestDevice, batch: LogitsBatch, rowStride: number): Tensor {
  const { rows, vocab, dtype } = batch;
  return device.tensor(spread(batch, rowStride), { shape: [rows, vocab], dtype, rowStride });
}

const strides = [0, 1, 3, 15, 16, 64, 1000];

forEachDevice("strided rows give the bits of packed ones, whatever lies between them", (device) => {
  for (const dtype of floatDTypes) {
    for (const vocab of [1, 16, 65, 300]) {
      const batch = normalBatch(5, vocab, dtype);
      const { tokenIds, rows } = batch;
      const gradLogprobs = new Float32Array(rows).fill(1);
      const packed = tokenLogprob({ logits: logitsTensor(device, batch), tokenIds, entropy: true });
      const gradPacked = tokenLogprobBackward({
        logits: logitsTensor(device, batch),
        tokenIds,
        ...packed,
        entropy: packed.entropy!,
        gradLogprobs,
        gradEntropy: gradLogprobs,
      }).gradLogits;
      for (const extra of strides) {
        const what = `${dtype}, stride ${vocab} + ${extra}`;
        const logits = strided(device, batch, vocab + extra);
        const got = tokenLogprob({ logits, tokenIds, entropy: true });
        for (const name of ["logprobs", "lse", "entropy"] as const) {
          assertSameBits(device.read(got[name]!), device.read(packed[name]!), `${name}, ${what}`);
        }
        const inputs = { logits, tokenIds, ...got, entropy: got.entropy!, gradLogprobs, gradEntropy: gradLogprobs };
        const { gradLogits } = tokenLogprobBackward(inputs);
        assert.deepEqual(gradLogits.shape, [rows, vocab]);
        assertSameBits(device.read(gradLogits), device.read(gradPacked), `gradLogits, ${what}`);
      }
    }
  }
});

forEachDevice("a strided output leaves the gaps between its rows alone", (device) => {
  // The gaps are visible in memory of ours alone.
  if (device.name !== "cpu") return;
  for (const dtype of floatDTypes) {
    for (const vocab of [1, 16, 65, 300]) {
      const batch = normalBatch(4, vocab, dtype);
      const { tokenIds, rows } = batch;
      const logits = logitsTensor(device, batch);
      const forward = tokenLogprob({ logits, tokenIds });
      const inputs = { logits, tokenIds, ...forward, gradLogprobs: new Float32Array(rows).fill(1) };
      const packed = tokenLogprobBackward(inputs).gradLogits.data;
      for (const extra of strides) {
        const stride = vocab + extra;
        const length = (rows - 1) * stride + vocab;
        const memory = dtype === "float32" ? new Float32Array(length).fill(-7) : new Uint16Array(length).fill(0x1234);
        const untouched = memory.slice();
        const out = { gradLogits: tensor(memory, { shape: [rows, vocab], dtype, rowStride: stride }) };
        assert.equal(tokenLogprobBackward({ ...inputs, out }), out);
        for (let i = 0; i < rows; i++) {
          const row = memory.subarray(i * stride, i * stride + vocab);
          assertSameBits(row, packed.subarray(i * vocab, (i + 1) * vocab), `row ${i}`);
          untouched.set(row, i * stride);
        }
        assertSameBits(memory, untouched, `gaps of stride ${stride}, ${dtype}`);
      }
    }
  }
});

forEachDevice("in place, the logits become the bits that out would have got", (device) => {
  for (const dtype of floatDTypes) {
    for (const vocab of [1, 17, 64, 300, 2049]) {
      for (const extra of [0, 5]) {
        const batch = normalBatch(4, vocab, dtype);
        const tokenIds = batch.tokenIds.slice();
        tokenIds[2] = -100;
        const scaling = { temperature: 0.7, logitSoftcap: vocab === 64 ? 20 : 1e6 };
        const make = (): Tensor => strided(device, batch, vocab + extra);
        const forward = tokenLogprob({ logits: make(), tokenIds, entropy: true, ...scaling });
        const gradients = { gradLogprobs: Float32Array.of(1, -2, 3, 0), gradEntropy: Float32Array.of(0, 0.5, 1, 0) };
        const inputs = { tokenIds, ...forward, entropy: forward.entropy!, ...gradients, ...scaling };
        const { gradLogits } = tokenLogprobBackward({ logits: make(), ...inputs });
        const logits = make();
        const result = tokenLogprobBackward({ logits, ...inputs, inPlace: true });
        assert.equal(result.gradLogits, logits);
        assertSameBits(packedRows(device, logits), device.read(gradLogits), `${dtype}, vocab ${vocab} + ${extra}`);
      }
    }
  }
});

function packedRows(device: TestDevice, matrix: Tensor): Float32Array | Uint16Array {
  const [rows, vocab] = matrix.shape as [number, number];
  const data = device.read(matrix) as Float32Array | Uint16Array;
  const packed = data.slice(0, rows * vocab);
  // A device may have packed the rows on the way.
  const stride = data.length === rows * vocab ? vocab : matrix.rowStride;
  for (let i = 0; i < rows; i++) packed.set(data.subarray(i * stride, i * stride + vocab), i * vocab);
  return packed;
}

forEachDevice("out is written to and returned; without it the tensors are new", (device) => {
  const batch = normalBatch(3, 20, "float32");
  const options = { logits: logitsTensor(device, batch), tokenIds: batch.tokenIds };
  const first = tokenLogprob(options);
  const second = tokenLogprob(options);
  assert.notEqual(first.logprobs, second.logprobs);
  assert.deepEqual(Object.keys(first).sort(), ["logprobs", "lse"]);
  const out = tokenLogprob({ ...options, entropy: true });
  assert.deepEqual(Object.keys(out).sort(), ["entropy", "logprobs", "lse"]);
  const { logprobs, lse, entropy } = out;
  assert.equal(tokenLogprob({ ...options, entropy: true, out }), out);
  assert.ok(out.logprobs === logprobs && out.lse === lse && out.entropy === entropy);
  assertSameBits(device.read(out.logprobs), device.read(first.logprobs));
  for (const name of ["logprobs", "lse", "entropy"] as const) {
    const { dtype, shape, device: where } = out[name]!;
    assert.deepEqual({ dtype, shape, where }, { dtype: "float32", shape: [3], where: device.name });
  }
});

forEachDevice("inputs may be tensors as well as arrays, and nothing is written to them", (device) => {
  for (const dtype of floatDTypes) {
    const batch = normalBatch(3, 20, dtype);
    const responseMask = Uint8Array.of(1, 0, 1);
    const logits = logitsTensor(device, batch);
    const gradLogprobs = Float32Array.of(1, 2, 3);
    const before = batch.data.slice();
    const plain = tokenLogprob({ logits, tokenIds: batch.tokenIds, responseMask, entropy: true });
    const ids = device.tensor(batch.tokenIds);
    const mask = device.tensor(responseMask);
    const wrapped = tokenLogprob({ logits, tokenIds: ids, responseMask: mask, entropy: true });
    assertSameBits(device.read(wrapped.logprobs), device.read(plain.logprobs));
    const back = tokenLogprobBackward({
      logits,
      tokenIds: ids,
      responseMask: mask,
      logprobs: wrapped.logprobs,
      lse: wrapped.lse,
      entropy: wrapped.entropy!,
      gradLogprobs: device.tensor(gradLogprobs),
      gradEntropy: device.tensor(gradLogprobs.slice()),
    });
    const again = tokenLogprobBackward({
      logits,
      tokenIds: batch.tokenIds,
      responseMask,
      logprobs: device.read(plain.logprobs) as Float32Array,
      lse: device.read(plain.lse) as Float32Array,
      entropy: device.read(plain.entropy!) as Float32Array,
      // The same array twice is two inputs.
      gradLogprobs,
      gradEntropy: gradLogprobs,
    });
    assertSameBits(device.read(back.gradLogits), device.read(again.gradLogits));
    assertSameBits(batch.data, before, "logits");
    assert.deepEqual([...gradLogprobs], [1, 2, 3]);
    assert.deepEqual([...responseMask], [1, 0, 1]);
  }
});

forEachDevice("a Buffer is a mask, wherever in its pool it lies", (device) => {
  const batch = normalBatch(3, 20, "float32");
  const options = { logits: logitsTensor(device, batch), tokenIds: batch.tokenIds };
  const expected = tokenLogprob({ ...options, responseMask: Uint8Array.of(1, 0, 7) });
  const got = tokenLogprob({ ...options, responseMask: Buffer.from([1, 0, 7]) });
  assertSameBits(device.read(got.logprobs), device.read(expected.logprobs));
});

forEachDevice("undefined is an absent option, and inherited ones are not seen", (device) => {
  const batch = normalBatch(2, 20, "float32");
  const options = { logits: logitsTensor(device, batch), tokenIds: batch.tokenIds };
  const expected = tokenLogprob(options);
  const loose = {
    ...options,
    temperature: undefined,
    logitSoftcap: undefined,
    responseMask: undefined,
    out: undefined,
  };
  const got = tokenLogprob(loose as unknown as Parameters<typeof tokenLogprob>[0]);
  assertSameBits(device.read(got.logprobs), device.read(expected.logprobs));
  const inherited = Object.assign(Object.create({ temperature: 9, logitSoftcap: 1, entropy: true }), options);
  const plain = tokenLogprob(inherited);
  assert.equal(plain.entropy, undefined);
  assertSameBits(device.read(plain.logprobs), device.read(expected.logprobs));
});

forEachDevice("ignoreIndex may be any integer, one of the vocabulary, too", (device) => {
  const batch = normalBatch(3, 20, "float32");
  const logits = logitsTensor(device, batch);
  for (const ignoreIndex of [-100, -1, 5, 19, 20, 2 ** 31 - 1, -(2 ** 31), 2 ** 40]) {
    const fits = Math.abs(ignoreIndex) < 2 ** 31 || ignoreIndex === -(2 ** 31);
    const tokenIds = Int32Array.of(0, fits ? ignoreIndex : 3, 7);
    const { logprobs } = tokenLogprob({ logits, tokenIds, ignoreIndex });
    const values = device.floats(logprobs);
    assert.equal(values[1] === 0, fits, `ignoreIndex ${ignoreIndex}`);
    assert.ok(values[0]! < 0 && values[2]! < 0);
  }
});
