/** tokenLogprob and tokenLogprobBackward where inputs are special: one test per line of the table of edge cases. */
import assert from "node:assert/strict";
import { type TensorData, tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { gradientOfRow, softmaxRow } from "./reference/softmax.ts";
import { batchOf, logitsTensor, nan16, nans, normalBatch, rowOf } from "./support/logits.ts";
import {
  assertAllNaN,
  assertOtherRowsSame,
  checkFiniteRow,
  type Outputs,
  rowBits,
  runBoth,
  specials,
  withSpecial,
} from "./support/tokenLogprob.ts";
import { assertClose, assertSameBits, type FloatDType, floatDTypes, forEachDevice } from "./support.ts";
import { entropyTolerance, lseTolerance } from "./tolerances.ts";

// Lanes 0 to 63 of any vector and what is left over; then around the blocks of a longer loop.
const lanes = Array.from({ length: 77 }, (_, j) => j);
const blockEdges = [0, 31, 511, 1023, 1024, 2047, 2048, 2049, 4095, 4096, 4100];
const positions: [vocab: number, columns: readonly number[]][] = [
  [1, [0]],
  [77, lanes],
  [4101, blockEdges],
];

for (const dtype of floatDTypes) {
  for (const special of ["nan", "inf"] as const) {
    forEachDevice(`a ${special} logit in any column makes its row NaN and changes no other, ${dtype}`, (device) => {
      for (const [vocab, columns] of positions) {
        const batch = normalBatch(3, vocab, dtype, { seed: vocab });
        for (const logitSoftcap of [undefined, 30]) {
          const options = logitSoftcap === undefined ? {} : { logitSoftcap };
          const clean = runBoth(device, batch, options);
          for (const column of columns) {
            const row = column % 3;
            const what = `${vocab} columns, row ${row}, column ${column}, cap ${logitSoftcap}`;
            const got = runBoth(device, withSpecial(batch, row, column, special), options);
            for (const name of ["logprobs", "lse", "entropy"] as const) {
              assertAllNaN(rowBits(got[name], row, 1), "float32", `${what}: ${name}`);
            }
            assertAllNaN(rowBits(got.gradLogits, row, vocab), dtype, `${what}: gradient`);
            assertOtherRowsSame(got, clean, row, 3, what);
          }
        }
      }
    });
  }

  forEachDevice(`a -Infinity logit in any column has no probability and a gradient of 0, ${dtype}`, (device) => {
    for (const [vocab, columns] of positions.slice(1)) {
      const batch = normalBatch(3, vocab, dtype, { seed: vocab });
      batch.tokenIds.fill(40);
      for (const logitSoftcap of [undefined, 30]) {
        const options = logitSoftcap === undefined ? {} : { logitSoftcap };
        const clean = runBoth(device, batch, options);
        for (const column of columns.filter((j) => j !== 40)) {
          const row = column % 3;
          const poisoned = withSpecial(batch, row, column, "-inf");
          const what = `${vocab} columns, row ${row}, column ${column}, cap ${logitSoftcap}`;
          const got = runBoth(device, poisoned, options);
          checkFiniteRow(device, poisoned, options, got, row, what);
          const bits = rowBits(got.gradLogits, row, vocab)[column]!;
          assert.ok(dtype === "float32" ? bits === 0 : (bits & 0x7fff) === 0, `${what}: gradient`);
          assertOtherRowsSame(got, clean, row, 3, what);
        }
      }
    }
  });

  forEachDevice(
    `a -Infinity logit of the target is log-prob -Infinity, and the row stays finite, ${dtype}`,
    (device) => {
      for (const vocab of [2, 17, 64, 77, 2049]) {
        for (const logitSoftcap of [undefined, 30]) {
          const options = logitSoftcap === undefined ? { temperature: 0.7 } : { temperature: 0.7, logitSoftcap };
          const batch = normalBatch(2, vocab, dtype, { seed: vocab, offset: 20 });
          const target = vocab - 1;
          batch.tokenIds.fill(target);
          const poisoned = withSpecial(batch, 1, target, "-inf");
          const what = `${vocab} columns, cap ${logitSoftcap}`;
          const got = runBoth(device, poisoned, options);
          assert.equal(got.logprobs[1], Number.NEGATIVE_INFINITY, what);
          const reference = softmaxRow(rowOf(poisoned, 1), options);
          assertClose([got.lse[1]!], [reference.lse], lseTolerance(options), `${what}: lse`);
          assertClose([got.entropy[1]!], [reference.entropy], entropyTolerance, `${what}: entropy`);
          const gradient = device.floats(tensor(got.gradLogits, { dtype })).slice(vocab);
          assert.ok(gradient[target] === 0, `${what}: gradient of the target`);
          const expected = gradientOfRow(rowOf(poisoned, 1), target, options, 1, 0.5);
          // From lse alone: 6e-8 |lse| more of error in the exponent, and one rounding to 16 bits.
          const rtol = { float32: 1e-5, bfloat16: 2 ** -8, float16: 2 ** -10 }[dtype];
          assertClose(gradient, expected, { atol: dtype === "float32" ? 4e-6 : 1e-5, rtol }, `${what}: gradient`);
          assertOtherRowsSame(got, runBoth(device, batch, options), 1, 2, what);
        }
      }
    },
  );

  forEachDevice(`a row of -Infinity alone is NaN, alone, ${dtype}`, (device) => {
    for (const vocab of [1, 2, 64, 77, 2049]) {
      for (const logitSoftcap of [undefined, 30]) {
        const options = logitSoftcap === undefined ? {} : { logitSoftcap };
        const batch = normalBatch(3, vocab, dtype, { seed: vocab });
        const poisoned = { ...batch, data: batch.data.slice() };
        poisoned.data.fill(specials[dtype]["-inf"], vocab, 2 * vocab);
        const got = runBoth(device, poisoned, options);
        for (const name of ["logprobs", "lse", "entropy"] as const) {
          assertAllNaN(rowBits(got[name], 1, 1), "float32", `${vocab} columns: ${name}`);
        }
        assertAllNaN(rowBits(got.gradLogits, 1, vocab), dtype, `${vocab} columns: gradient`);
        assertOtherRowsSame(got, runBoth(device, batch, options), 1, 3, `${vocab} columns`);
      }
    }
  });

  forEachDevice(`all but one logit -Infinity: that one has log-prob 0 and entropy 0, ${dtype}`, (device) => {
    const batch = normalBatch(2, 77, dtype);
    batch.data.fill(specials[dtype]["-inf"]);
    batch.tokenIds.set([70, 3]);
    batch.data[70] = batch.data[77 + 3] = dtype === "float32" ? 12 : 0x4140;
    const got = runBoth(device, batch);
    assert.deepEqual([...got.logprobs, ...got.entropy], [0, 0, 0, 0]);
    assert.ok(
      device.floats(tensor(got.gradLogits, { dtype })).every((value) => value === 0),
      "gradient",
    );
  });

  forEachDevice(`a vocabulary of one has log-prob, entropy and gradient 0, ${dtype}`, (device) => {
    for (const offset of [-1e4, -3, 0, 2, 1e4]) {
      const batch = normalBatch(5, 1, dtype, { offset });
      for (const options of [{}, { temperature: 0.3 }, { logitSoftcap: 30 }]) {
        const got = runBoth(device, batch, options);
        for (const name of ["logprobs", "entropy"] as const) {
          assert.ok(
            got[name].every((value) => value === 0),
            name,
          );
        }
        const lse = Array.from(batch.values, (_, i) => softmaxRow(rowOf(batch, i), options).lse);
        assertClose(got.lse, lse, lseTolerance(options), "lse");
        assert.ok(
          device.floats(tensor(got.gradLogits, { dtype })).every((value) => value === 0),
          "gradient",
        );
      }
    }
  });

  forEachDevice(`an ignored or masked row is 0 everywhere, and nothing of it is read, ${dtype}`, (device) => {
    const [rows, vocab] = [5, 77];
    const batch = normalBatch(rows, vocab, dtype);
    const garbage = [specials[dtype].nan, specials[dtype].inf, specials[dtype]["-inf"], nan16];
    const wild = [-1, vocab, 2 ** 31 - 1, -(2 ** 31), 7];
    const ignoreIndex = 123;
    const calls = garbage.flatMap((fill) => wild.map((id) => ({ fill, id })));
    let expected: Outputs | undefined;
    for (const { fill, id } of [{ fill: 0, id: 0 }, ...calls]) {
      const poisoned = { ...batch, data: batch.data.slice(), tokenIds: batch.tokenIds.slice() };
      poisoned.data.fill(fill, vocab, 2 * vocab).fill(fill, 3 * vocab, 4 * vocab);
      poisoned.tokenIds[1] = ignoreIndex;
      poisoned.tokenIds[3] = id;
      // Any byte that is not 0 counts.
      const responseMask = Uint8Array.of(1, 1, 255, 0, 2);
      const got = runBoth(device, poisoned, { ignoreIndex, responseMask });
      for (const row of [1, 3]) {
        for (const name of ["logprobs", "lse", "entropy"] as const) assert.ok(got[name][row] === 0, name);
        assert.ok(
          rowBits(got.gradLogits, row, vocab).every((bits) => bits === 0),
          "gradient",
        );
      }
      expected ??= got;
      for (const name of ["logprobs", "lse", "entropy", "gradLogits"] as const) {
        assertSameBits(got[name], expected[name], `${name} with ${fill} and id ${id}`);
      }
    }
    // The rows that count are those of a call on them alone.
    const kept = [0, 2, 4];
    const alone = runBoth(device, {
      ...batch,
      rows: 3,
      data: concat(kept.map((i) => batch.data.subarray(i * vocab, (i + 1) * vocab))),
      tokenIds: Int32Array.from(kept, (i) => batch.tokenIds[i]!),
    });
    for (const [at, row] of kept.entries()) {
      assertSameBits(rowBits(expected!.logprobs, row, 1), rowBits(alone.logprobs, at, 1));
      assertSameBits(rowBits(expected!.gradLogits, row, vocab), rowBits(alone.gradLogits, at, vocab));
    }
  });

  forEachDevice(`all rows masked, and no rows at all, are no error, ${dtype}`, (device) => {
    const batch = normalBatch(3, 9, dtype);
    batch.data.fill(nan16);
    const got = runBoth(device, batch, { responseMask: new Uint8Array(3) });
    for (const data of Object.values(got)) assert.ok(Array.from(data as TensorData).every((value) => value === 0));

    const empty = runBoth(device, batchOf(new Float32Array(0), 0, 9, dtype));
    for (const data of Object.values(empty)) assert.equal((data as TensorData).length, 0);
    const result = tokenLogprob({
      logits: device.tensor(batch.data.subarray(0, 0), { shape: [0, 9], dtype }),
      tokenIds: new Int32Array(0),
      entropy: true,
    });
    assert.deepEqual([result.logprobs.shape, result.lse.shape, result.entropy?.shape], [[0], [0], [0]]);
  });
}

function concat<Data extends Float32Array | Uint16Array>(parts: readonly Data[]): Data {
  const Type = parts[0]!.constructor as new (length: number) => Data;
  const all = new Type(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

forEachDevice("every encoding of NaN is a NaN", (device) => {
  const encodings: [FloatDType, number[]][] = [
    ["bfloat16", [0x7f81, 0x7fff, 0xff81, 0xffc0, 0xffff]],
    ["float16", [0x7c01, 0x7dff, 0x7fff, 0xfc01, 0xfe00, 0xffff]],
  ];
  for (const [dtype, patterns] of encodings) {
    for (const bits of patterns) {
      const batch = normalBatch(1, 40, dtype);
      batch.data[33] = bits;
      const got = runBoth(device, batch);
      assertAllNaN(got.logprobs, "float32", `${dtype} ${bits.toString(16)}`);
      assertAllNaN(got.gradLogits, dtype, `${dtype} ${bits.toString(16)}`);
    }
  }
  for (const bits of [0x7f800001, 0x7fffffff, 0xff800001, 0xffc00000, 0xffffffff]) {
    const batch = normalBatch(1, 40, "float32");
    new Uint32Array(batch.data.buffer)[33] = bits;
    const got = runBoth(device, batch);
    assertAllNaN(got.logprobs, "float32", bits.toString(16));
    assertAllNaN(got.gradLogits, "float32", bits.toString(16));
  }
});

for (const dtype of floatDTypes) {
  forEachDevice(`a saved entropy of NaN, whatever its bits, makes its row NaN where it is used, ${dtype}`, (device) => {
    const [rows, vocab] = [3, 100];
    const batch = normalBatch(rows, vocab, dtype, { seed: 12 });
    const logits = logitsTensor(device, batch);
    const { tokenIds } = batch;
    const saved = tokenLogprob({ logits, tokenIds, entropy: true });
    const { logprobs, lse } = saved;
    const gradLogprobs = new Float32Array(rows).fill(1);
    for (const bits of [0x7fc00000, 0x7fffffff, 0x7fff8000, 0xffffffff]) {
      const entropy = Float32Array.from(device.floats(saved.entropy!));
      new Uint32Array(entropy.buffer)[1] = bits;
      const inputs = { logits, tokenIds, logprobs, lse, entropy, gradLogprobs };
      const used = tokenLogprobBackward({ ...inputs, gradEntropy: gradLogprobs });
      const gradient = device.read(used.gradLogits);
      assertAllNaN(rowBits(gradient, 1, vocab), dtype, bits.toString(16));
      for (const value of device.floats(tokenLogprobBackward(inputs).gradLogits)) assert.ok(Number.isFinite(value));
    }
  });
}

forEachDevice("a NaN gradient that comes in makes its row NaN and no other", (device) => {
  const batch = normalBatch(3, 40, "float32");
  const common = { logits: logitsTensor(device, batch), tokenIds: batch.tokenIds };
  const forward = tokenLogprob({ ...common, entropy: true });
  const call = (gradLogprobs: Float32Array, gradEntropy: Float32Array): TensorData =>
    device.read(
      tokenLogprobBackward({ ...common, ...forward, entropy: forward.entropy!, gradLogprobs, gradEntropy }).gradLogits,
    );
  const ones = new Float32Array(3).fill(1);
  const clean = call(ones, ones);
  const bad = Float32Array.of(1, Number.NaN, 1);
  for (const got of [call(bad, ones), call(ones, bad)]) {
    assertAllNaN(rowBits(got, 1, 40), "float32", "row 1");
    assertSameBits(rowBits(got, 0, 40), rowBits(clean, 0, 40));
    assertSameBits(rowBits(got, 2, 40), rowBits(clean, 2, 40));
  }
});

forEachDevice("a row whose gradients are 0 has a gradient of 0 and is not read", (device) => {
  for (const dtype of floatDTypes) {
    const batch = normalBatch(2, 40, dtype);
    const common = { tokenIds: batch.tokenIds, logits: logitsTensor(device, batch) };
    const forward = tokenLogprob(common);
    const poisoned = { ...batch, data: batch.data.slice() };
    poisoned.data.fill(nan16, 40);
    if (dtype === "float32") poisoned.data.fill(Number.NaN, 40);
    const got = tokenLogprobBackward({
      ...common,
      ...forward,
      logits: logitsTensor(device, poisoned),
      gradLogprobs: Float32Array.of(1, 0),
      out: { gradLogits: nans(device, [2, 40], dtype) },
    });
    assert.ok(
      device
        .floats(got.gradLogits)
        .slice(40)
        .every((value) => value === 0),
      dtype,
    );
  }
});
