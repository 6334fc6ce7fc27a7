/** fusedPolicyLoss where inputs are special, in place, strided, and over any number of threads. */
import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import {
  devices,
  FapoError,
  type FusedPolicyLossResult,
  fusedPolicyLoss,
  setThreads,
  type Tensor,
  type TensorData,
  tensor,
} from "fapo-kernels";
import fc from "fast-check";
import { metricNames } from "./reference/policy.ts";
import { logprobOf, softmaxRow } from "./reference/softmax.ts";
import { batchOf, type LogitsBatch, logitsTensor, nan16, nans, normalBatch, rowOf, spread } from "./support/logits.ts";
import { metricsOf, type PolicyBatch, type PolicyOptions, policyBatch, runFused } from "./support/policy.ts";
import {
  assertClose,
  assertSameBits,
  type FloatDType,
  floatDTypes,
  forEachDevice,
  rng,
  type TestDevice,
} from "./support.ts";
import { lossTolerance } from "./tolerances.ts";

const perRow = ["logprobs", "lse", "entropy"] as const;

interface Outputs {
  loss: number;
  metrics: Record<string, number>;
  rows: Record<string, TensorData>;
  gradLogits: TensorData;
}

function read(device: TestDevice, result: FusedPolicyLossResult): Outputs {
  const rows: Record<string, TensorData> = {};
  for (const name of perRow) if (result[name]) rows[name] = device.read(result[name]);
  return {
    loss: result.loss.item(),
    metrics: metricsOf(result.metrics),
    rows,
    gradLogits: device.read(result.gradLogits),
  };
}

function assertSameOutputs(got: Outputs, expected: Outputs, what: string): void {
  assert.ok(Object.is(got.loss, expected.loss), `loss, ${what}: ${got.loss}, ${expected.loss}`);
  assert.deepEqual(got.metrics, expected.metrics, what);
  assert.deepEqual(Object.keys(got.rows), Object.keys(expected.rows), what);
  for (const [name, data] of Object.entries(got.rows)) assertSameBits(data, expected.rows[name]!, `${name}, ${what}`);
  assertSameBits(got.gradLogits, expected.gradLogits, `gradLogits, ${what}`);
}

const specials: Record<FloatDType, Record<"nan" | "inf" | "-inf", number>> = {
  float32: { nan: Number.NaN, inf: Number.POSITIVE_INFINITY, "-inf": Number.NEGATIVE_INFINITY },
  bfloat16: { nan: 0x7fc0, inf: 0x7f80, "-inf": 0xff80 },
  float16: { nan: 0x7e00, inf: 0x7c00, "-inf": 0xfc00 },
};

function isNaNBits(bits: number, dtype: FloatDType): boolean {
  if (dtype === "float32") return Number.isNaN(bits);
  return (bits & 0x7fff) > (dtype === "bfloat16" ? 0x7f80 : 0x7c00);
}

/** Options under which a NaN row reaches every number: a KL term, an entropy term, all metrics. */
function fullOptions(batch: PolicyBatch): PolicyOptions {
  const refLogprobs = batch.options.oldLogprobs.map((old) => old + 0.2);
  return { ...batch.options, entropyCoef: 0.1, klEstimator: "k3", klCoef: 0.1, refLogprobs };
}

const lanes = Array.from({ length: 77 }, (_, j) => j);

for (const dtype of floatDTypes) {
  for (const special of ["nan", "inf"] as const) {
    forEachDevice(`a ${special} logit in any column makes its row, the loss and the means NaN, ${dtype}`, (device) => {
      for (const logitSoftcap of [undefined, 30]) {
        const scaling = logitSoftcap === undefined ? {} : { logitSoftcap };
        for (const [vocab, columns] of [
          [1, [0]],
          [77, lanes],
          [4101, [0, 2047, 2048, 4095, 4096, 4100]],
        ] as const) {
          const batch = policyBatch(3, vocab, dtype, 4, scaling);
          const options = fullOptions(batch);
          const clean = read(device, runFused(device, batch, options));
          for (const column of columns) {
            const row = column % 3;
            const data = batch.data.slice();
            data[row * vocab + column] = specials[dtype][special];
            const got = read(device, runFused(device, { ...batch, data }, options));
            const what = `${vocab} columns, row ${row}, column ${column}`;
            assert.ok(Number.isNaN(got.loss), what);
            for (const name of ["ratioMean", "ratioMax", "approxKl", "kl", "entropy"]) {
              assert.ok(Number.isNaN(got.metrics[name]), `${name}, ${what}: ${got.metrics[name]}`);
            }
            assert.equal(got.metrics.tokens, 3);
            for (let i = 0; i < 3; i++) {
              const gradient = got.gradLogits.subarray(i * vocab, (i + 1) * vocab);
              if (i === row) {
                for (const name of perRow) assert.ok(Number.isNaN(got.rows[name]![i]), `${name}, ${what}`);
                assert.ok(
                  Array.from(gradient).every((bits) => isNaNBits(bits, dtype)),
                  what,
                );
              } else {
                for (const name of perRow) assert.equal(got.rows[name]![i], clean.rows[name]![i], `${name}, ${what}`);
                assertSameBits(gradient, clean.gradLogits.subarray(i * vocab, (i + 1) * vocab), what);
              }
            }
          }
        }
      }
    });
  }

  forEachDevice(`a -Infinity logit of the target keeps loss and gradient finite, ${dtype}`, (device) => {
    for (const vocab of [2, 17, 77]) {
      const batch = policyBatch(3, vocab, dtype, 4);
      const data = batch.data.slice();
      data[vocab + batch.tokenIds[1]!] = specials[dtype]["-inf"];
      const poisoned = { ...batch, data };
      // With old log-probs the log-ratio is beyond its clamp; without them it is 0.
      const { oldLogprobs: _, ...noOld } = batch.options;
      for (const [name, options] of Object.entries({ given: fullOptions(batch), absent: noOld })) {
        const got = read(device, runFused(device, poisoned, options));
        const what = `${name} old log-probs, vocab ${vocab}`;
        assert.equal(got.rows.logprobs![1], Number.NEGATIVE_INFINITY, what);
        const gradient = device.floats(tensor(got.gradLogits, { dtype }));
        assert.ok(Number.isFinite(got.loss), `loss, ${what}: ${got.loss}`);
        for (const metric of metricNames) assert.ok(Number.isFinite(got.metrics[metric]), `${metric}, ${what}`);
        assert.ok(gradient.every(Number.isFinite), `gradient, ${what}`);
        assert.ok(gradient[vocab + batch.tokenIds[1]!] === 0, what);
      }
    }
  });

  forEachDevice(`garbage in masked and ignored rows changes no bit, ${dtype}`, (device) => {
    const [rows, vocab] = [12, 40];
    const batch = policyBatch(rows, vocab, dtype, 6);
    const options = fullOptions(batch);
    options.importanceWeights = new Float32Array(rows).fill(0.5);
    const clean = read(device, runFused(device, batch, options));
    for (const garbage of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e38]) {
      const dirty = { ...batch, data: batch.data.slice(), tokenIds: batch.tokenIds.slice() };
      const floats = ["oldLogprobs", "advantages", "refLogprobs", "importanceWeights"] as const;
      const copies: Record<string, Float32Array> = {};
      for (const name of floats) copies[name] = (options[name] as Float32Array).slice();
      for (let i = 0; i < rows; i++) {
        const masked = batch.options.responseMask[i] === 0;
        if (!masked && batch.tokenIds[i] !== -100) continue;
        dirty.data.fill(dtype === "float32" ? garbage : nan16, i * vocab, (i + 1) * vocab);
        if (masked) dirty.tokenIds[i] = 2 ** 31 - 1;
        for (const copy of Object.values(copies)) copy[i] = garbage;
      }
      const got = read(device, runFused(device, dirty, { ...options, ...copies }));
      assertSameOutputs(got, clean, `garbage ${garbage}`);
      for (let i = 0; i < rows; i++) {
        if (batch.options.responseMask[i] !== 0 && batch.tokenIds[i] !== -100) continue;
        for (const name of perRow) assert.ok(got.rows[name]![i] === 0);
        assert.ok(got.gradLogits.subarray(i * vocab, (i + 1) * vocab).every((bits) => bits === 0));
      }
    }
  });

  forEachDevice(`in place the logits become the gradient that out would have got, to the bit, ${dtype}`, (device) => {
    let turn = 0;
    for (const vocab of [1, 2, 17, 64, 77, 300, 2049]) {
      for (const extra of [0, 3]) {
        for (const scaling of [{}, { temperature: 0.7 }, { logitSoftcap: 20 }]) {
          for (const entropyCoef of [0, 0.1]) {
            const batch = policyBatch(9, vocab, dtype, ++turn, scaling);
            // A row far from its target, and one with masked entries.
            batch.data.fill(specials[dtype]["-inf"], 2 * vocab, 2 * vocab + (vocab >> 1));
            const options = { ...batch.options, entropyCoef, gradScale: 16 };
            const rowStride = vocab + extra;
            const make = (): Tensor =>
              device.tensor(spread(batch, rowStride), { shape: [batch.rows, vocab], dtype, rowStride });
            const common = { tokenIds: batch.tokenIds, ...options };
            const expected = fusedPolicyLoss({ logits: make(), ...common });
            const logits = make();
            const got = fusedPolicyLoss({ logits, ...common, inPlace: true });
            assert.equal(got.gradLogits, logits);
            const what = `vocab ${vocab} + ${extra}, turn ${turn}`;
            assert.ok(Object.is(got.loss.item(), expected.loss.item()), what);
            assert.deepEqual(metricsOf(got.metrics), metricsOf(expected.metrics), what);
            assertSameBits(device.read(got.logprobs), device.read(expected.logprobs), `logprobs, ${what}`);
            const data = device.read(logits);
            const gradient = device.read(expected.gradLogits);
            const stride = data.length === gradient.length ? vocab : rowStride;
            for (let i = 0; i < batch.rows; i++) {
              const row = data.subarray(i * stride, i * stride + vocab);
              assertSameBits(row, gradient.subarray(i * vocab, (i + 1) * vocab), `row ${i}, ${what}`);
              const gap = data.subarray(i * stride + vocab, (i + 1) * stride);
              assert.ok(
                Array.from(gap).every((bits) => isNaNBits(bits, dtype)),
                `gap ${i}, ${what}`,
              );
            }
          }
        }
      }
    }
  });
}

forEachDevice("no counted token, no rows and no sequences give 0 everywhere", (device) => {
  for (const dtype of floatDTypes) {
    const batch = normalBatch(3, 5, dtype);
    batch.data.fill(nan16);
    const cases: [LogitsBatch, PolicyOptions][] = [
      [batch, { advantages: new Float32Array(3).fill(Number.NaN), responseMask: new Uint8Array(3), entropyCoef: 1 }],
      [
        { ...batch, tokenIds: new Int32Array(3).fill(-100) },
        { advantages: new Float32Array(3), entropy: true },
      ],
      [batchOf(new Float32Array(0), 0, 5, dtype), { advantages: new Float32Array(0) }],
      [
        batchOf(new Float32Array(0), 0, 5, dtype),
        { advantages: [], cuSeqlens: [0], lossAggMode: "seq-mean-token-mean" },
      ],
      [batchOf(new Float32Array(0), 0, 5, dtype), { advantages: [1, 2], cuSeqlens: [0, 0, 0], entropyCoef: 1 }],
    ];
    for (const [rows, options] of cases) {
      const got = read(device, runFused(device, rows, options));
      assert.equal(got.loss, 0);
      for (const name of metricNames) assert.equal(got.metrics[name], 0, name);
      for (const data of [...Object.values(got.rows), got.gradLogits]) {
        assert.ok(Array.from(data).every((value) => value === 0));
      }
    }
  }
});

forEachDevice("log-ratios far beyond the clamp give finite values and no gradient", (device) => {
  const batch = normalBatch(6, 20, "float32");
  const exact = Array.from({ length: 6 }, (_, i) => logprobOf(softmaxRow(rowOf(batch, i), {}), batch.tokenIds[i]!));
  for (const gap of [20.5, 50, 100, 1e4, 1e30]) {
    for (const sign of [-1, 1]) {
      const oldLogprobs = Float32Array.from(exact, (logprob) => logprob + sign * gap);
      for (const klEstimator of ["k1", "k2", "k3"] as const) {
        const result = runFused(device, batch, {
          oldLogprobs,
          refLogprobs: oldLogprobs,
          advantages: Float32Array.of(1, -1, 2, -2, 0.5, -0.5),
          klEstimator,
          klCoef: 0.1,
          clipRatioC: Number.POSITIVE_INFINITY,
        });
        const got = read(device, result);
        assert.ok(Number.isFinite(got.loss), `gap ${sign * gap}, ${klEstimator}: ${got.loss}`);
        for (const name of metricNames) assert.ok(Number.isFinite(got.metrics[name]), name);
        // Outside both clamps everything is flat.
        assert.ok(
          got.gradLogits.every((value) => value === 0),
          `gap ${sign * gap}, ${klEstimator}`,
        );
      }
    }
  }
});

forEachDevice("strided logits and a strided gradient give the bits of packed ones", (device) => {
  if (device.name !== "cpu") return;
  for (const dtype of floatDTypes) {
    for (const extra of [1, 16, 100]) {
      const batch = policyBatch(9, 65, dtype, 2);
      const { rows, vocab, tokenIds, options } = batch;
      const expected = fusedPolicyLoss({ logits: logitsTensor(device, batch), tokenIds, ...options });
      const rowStride = vocab + extra;
      const logits = tensor(spread(batch, rowStride), { shape: [rows, vocab], dtype, rowStride });
      const length = (rows - 1) * rowStride + vocab;
      const memory = dtype === "float32" ? new Float32Array(length).fill(-7) : new Uint16Array(length).fill(0x1234);
      const untouched = memory.slice();
      const gradLogits = tensor(memory, { shape: [rows, vocab], dtype, rowStride });
      const { metrics } = fusedPolicyLoss({ logits: logitsTensor(device, batch), tokenIds, ...options });
      const out = {
        loss: nans(device, []),
        logprobs: nans(device, [rows]),
        lse: nans(device, [rows]),
        gradLogits,
        metrics,
      };
      assert.equal(fusedPolicyLoss({ logits, tokenIds, ...options, out }), out);
      assert.equal(out.loss.item(), expected.loss.item());
      for (let i = 0; i < rows; i++) {
        const row = memory.subarray(i * rowStride, i * rowStride + vocab);
        assertSameBits(row, expected.gradLogits.data.subarray(i * vocab, (i + 1) * vocab), `row ${i}`);
        untouched.set(row, i * rowStride);
      }
      assertSameBits(memory, untouched, "gaps");
    }
  }
});

forEachDevice("more rows than 65,535 are all counted", (device) => {
  const rows = 70_001;
  const batch = normalBatch(rows, 2, "bfloat16");
  const advantages = Float32Array.from({ length: rows }, (_, i) => (i % 3) - 1.5);
  const got = read(device, runFused(device, batch, { advantages }));
  assert.equal(got.metrics.tokens, rows);
  const mean = advantages.reduce((sum, value) => sum + value, 0) / rows;
  assertClose([got.loss], [-mean], lossTolerance);
});

forEachDevice("permuting rows permutes the per-row outputs, to the bit", (device) => {
  const property = fc.property(
    fc.integer({ min: 2, max: 9 }),
    fc.integer({ min: 1, max: 90 }),
    fc.constantFrom<FloatDType>("float32", "bfloat16", "float16"),
    fc.nat(),
    (rows, vocab, dtype, seed) => {
      const batch = policyBatch(rows, vocab, dtype, seed);
      const { oldLogprobs, advantages, responseMask } = batch.options;
      const reverse = <Data extends TensorData>(data: Data): Data => data.slice().reverse() as Data;
      const backwards = { ...batch, data: batch.data.slice(), tokenIds: reverse(batch.tokenIds) };
      for (let i = 0; i < rows; i++) {
        backwards.data.set(batch.data.subarray(i * vocab, (i + 1) * vocab), (rows - 1 - i) * vocab);
      }
      const before = read(device, runFused(device, batch, { oldLogprobs, advantages, responseMask, entropyCoef: 0.1 }));
      const after = read(
        device,
        runFused(device, backwards, {
          oldLogprobs: reverse(oldLogprobs),
          advantages: reverse(advantages),
          responseMask: reverse(responseMask),
          entropyCoef: 0.1,
        }),
      );
      for (const name of perRow) assertSameBits(reverse(after.rows[name]!), before.rows[name]!, name);
      for (let i = 0; i < rows; i++) {
        const at = rows - 1 - i;
        assertSameBits(
          after.gradLogits.subarray(at * vocab, (at + 1) * vocab),
          before.gradLogits.subarray(i * vocab, (i + 1) * vocab),
        );
      }
    },
  );
  fc.assert(property, { seed: 20251122, numRuns: device.runs(1000) });
});

forEachDevice("any split into calls with equal global counts gives the same bits per row", (device) => {
  const property = fc.property(
    fc.integer({ min: 1, max: 12 }),
    fc.constantFrom(1, 5, 33, 70),
    fc.constantFrom<FloatDType>("float32", "bfloat16", "float16"),
    fc.nat(),
    fc.nat(),
    (rows, vocab, dtype, seed, cut) => {
      const batch = policyBatch(rows, vocab, dtype, seed);
      const { oldLogprobs, advantages, responseMask } = batch.options;
      const options = { globalTokens: 100, entropyCoef: 0.01, temperature: 0.7 };
      const whole = read(device, runFused(device, batch, { oldLogprobs, advantages, responseMask, ...options }));
      const at = cut % (rows + 1);
      let loss = 0;
      for (const [from, to] of [
        [0, at],
        [at, rows],
      ] as const) {
        const part = {
          ...batch,
          rows: to - from,
          data: batch.data.subarray(from * vocab, to * vocab),
          tokenIds: batch.tokenIds.subarray(from, to),
        };
        const slice = (data: Float32Array): Float32Array => data.subarray(from, to);
        const got = read(
          device,
          runFused(device, part, {
            oldLogprobs: slice(oldLogprobs),
            advantages: slice(advantages),
            responseMask: responseMask.subarray(from, to),
            ...options,
          }),
        );
        loss += got.loss;
        for (const name of perRow) assertSameBits(got.rows[name]!, whole.rows[name]!.subarray(from, to), name);
        assertSameBits(got.gradLogits, whole.gradLogits.subarray(from * vocab, to * vocab));
      }
      // Sums of up to exp(20) cancel: 1e-6 of the larger part.
      assertClose([loss], [whole.loss], { atol: 1e-6, rtol: 1e-5 });
    },
  );
  fc.assert(property, { seed: 20251122, numRuns: device.runs(1000) });
});

forEachDevice("the same bits run to run, for any number of threads and in a worker", async (device) => {
  const { threads } = devices().cpu;
  try {
    for (const dtype of floatDTypes) {
      for (const [rows, vocab] of [
        [64, 4000],
        [5, 50_257],
        [4000, 17],
      ] as const) {
        const batch = policyBatch(rows, vocab, dtype, 9);
        const options = fullOptions(batch);
        setThreads(1);
        const expected = read(device, runFused(device, batch, options));
        for (const count of device.emulated ? [2] : [1, 2, 3, 8, 64, 2]) {
          setThreads(count);
          const what = `${dtype} [${rows}, ${vocab}], ${count} threads`;
          assertSameOutputs(read(device, runFused(device, batch, options)), expected, what);
        }
      }
    }
  } finally {
    setThreads(threads);
  }
  const batch = policyBatch(30, 999, "float16", 10);
  const expected = read(device, runFused(device, batch, batch.options));
  const source = `
    const { parentPort, workerData } = require("node:worker_threads");
    import("fapo-kernels").then(({ tensor, toDevice, fusedPolicyLoss }) => {
      const { data, rows, vocab, dtype, tokenIds, options, name } = workerData;
      const logits = toDevice(tensor(data, { shape: [rows, vocab], dtype }), name);
      const { loss, gradLogits } = fusedPolicyLoss({ logits, tokenIds, ...options });
      parentPort.postMessage({ loss: loss.item(), gradLogits: toDevice(gradLogits, "cpu").data });
    });`;
  const got = await new Promise<{ loss: number; gradLogits: Uint16Array }>((resolve, reject) => {
    const worker = new Worker(source, { eval: true, workerData: { ...batch, name: device.name } });
    worker.once("message", resolve).once("error", reject);
  });
  assert.equal(got.loss, expected.loss);
  assertSameBits(got.gradLogits, expected.gradLogits);
});

// A GPU has one way to write, whatever the size.
forEachDevice("an out that is too large for the caches gets the bits of a call in place", (device) => {
  if (device.name !== "cpu") return;
  const { threads } = devices().cpu;
  const vocab = 7_699; // rows begin at any place of a cache line
  for (const dtype of floatDTypes) {
    const rows = dtype === "float32" ? 1_111 : 2_222; // 34 MB
    const batch = policyBatch(rows, vocab, dtype, 12);
    // Rows that are not read, and rows that are read and have no gradient.
    const responseMask = Uint8Array.from({ length: rows }, (_, i) => (i % 4 === 1 ? 0 : 1));
    const advantages = Float32Array.from({ length: rows }, (_, i) => (i % 5) - 2);
    const options = { ...batch.options, responseMask, advantages, clipRatioLow: 1, clipRatioHigh: 1e9, entropyCoef: 0 };
    try {
      for (const count of [1, 3]) {
        setThreads(count);
        const copy = { ...batch, data: batch.data.slice() };
        const expected = read(device, runFused(device, copy, { ...options, inPlace: true }));
        assertSameOutputs(read(device, runFused(device, batch, options)), expected, `${dtype}, ${count} threads`);
        for (let i = 0; i < rows; i++) {
          if (responseMask[i] !== 0 && advantages[i] !== 0) continue;
          assert.ok(
            rowOf({ ...batch, values: expected.gradLogits as Float32Array }, i).every((g) => g === 0),
            `row ${i}`,
          );
        }
      }
    } finally {
      setThreads(threads);
    }
  }
});

// There a row's gradient is made while the next row is read: whatever the one is, and the other.
forEachDevice("rows of every kind, one after another, in an out too large for the caches", (device) => {
  if (device.name !== "cpu") return;
  const { threads } = devices().cpu;
  const vocab = 40_009; // three parts
  const rows = 230; // 35 MB
  const batch = policyBatch(rows, vocab, "float32", 21);
  const data = batch.data as Float32Array;
  const random = rng(8);
  const kinds: readonly ((row: Float32Array, target: number) => void)[] = [
    () => {},
    (row) => row.fill(30, 20_000, 20_100), // too far above the target, in the middle of a part
    (row) => row.fill(25, vocab - 1), // and in the last place
    (row, target) => row.fill(row[target]! + 12), // in every place but that of the target
    (row) => row.fill(9000, 100, 101), // the only likely one, far from 0
    (row) => row.set(row.map((x) => x + 50_000)), // all far from 0: another map
    (row) => row.fill(Number.NaN, 39_000, 39_001),
    (row) => row.fill(Number.POSITIVE_INFINITY, 3, 4),
    (row) => row.fill(Number.NEGATIVE_INFINITY, 18_432, 36_864), // a part of no weight
    (row, target) => row.fill(Number.NEGATIVE_INFINITY, target, target + 1),
    (row) => row.fill(Number.NEGATIVE_INFINITY),
  ];
  const ignored = kinds.length;
  const flat = kinds.length + 1;
  const kindOf = Int32Array.from({ length: rows }, () => Math.floor(random() * (kinds.length + 2)));
  for (let i = 0; i < rows; i++) {
    const row = data.subarray(i * vocab, (i + 1) * vocab);
    const target = batch.tokenIds[i]!;
    const at = row[target]!;
    kinds[kindOf[i]!]?.(row, target);
    if (kindOf[i] === 3) row[target] = at;
  }
  const pairs = new Set(kindOf.subarray(1).map((kind, i) => kind * 100 + kindOf[i]!));
  assert.ok(pairs.size > 100, `${pairs.size} pairs of kinds`);
  const responseMask = Uint8Array.from(kindOf, (kind) => (kind === ignored ? 0 : 1));
  const advantages = Float32Array.from(kindOf, (kind, i) => (kind === flat ? 0 : (i % 4) - 1.5));
  const { oldLogprobs: _, ...others } = batch.options; // without them no row is clipped
  const options = { ...others, responseMask, advantages, entropyCoef: 0 };
  try {
    for (const count of [1, 3]) {
      setThreads(count);
      const expected = read(device, runFused(device, { ...batch, data: data.slice() }, { ...options, inPlace: true }));
      const got = read(device, runFused(device, batch, options));
      for (let i = 0; i < rows; i++) {
        const at = [i * vocab, (i + 1) * vocab] as const;
        const what = `row ${i} of kind ${kindOf[i]} after ${kindOf[i - 1]}, ${count} threads`;
        assertSameBits(got.gradLogits.subarray(...at), expected.gradLogits.subarray(...at), what);
      }
      assertSameOutputs(got, expected, `${count} threads`);
    }
  } finally {
    setThreads(threads);
  }
});

forEachDevice("an ignored row is read by no part of the op, whatever ignoreIndex is", (device) => {
  const random = rng(3);
  const batch = normalBatch(4, 9, "float32");
  const advantages = Float32Array.from({ length: 4 }, () => random());
  const three = { ...batch, rows: 3, data: batch.data.subarray(0, 27), tokenIds: batch.tokenIds.subarray(0, 3) };
  const expected = runFused(device, three, { advantages: advantages.subarray(0, 3) }).loss.item();
  for (const ignoreIndex of [-100, -1, 8, 2 ** 31 - 1]) {
    const tokenIds = batch.tokenIds.map((id, i) => (i === 3 ? ignoreIndex : id === 8 ? 7 : id));
    const same = { ...three, tokenIds: tokenIds.subarray(0, 3) };
    const want = runFused(device, same, { advantages: advantages.subarray(0, 3) }).loss.item();
    const data = batch.data.slice();
    data.fill(Number.NaN, 27);
    const got = runFused(device, { ...batch, data, tokenIds }, { advantages, ignoreIndex });
    assert.equal(got.loss.item(), want, `ignoreIndex ${ignoreIndex}`);
    assert.equal(got.metrics.tokens.item(), 3);
  }
  assert.ok(Number.isFinite(expected));
});

forEachDevice("a call in place that is refused leaves its out as it was", (device) => {
  const make = () => device.tensor(Float32Array.of(0, 1, 2, 3), { shape: [2, 2] });
  const options = { tokenIds: new Int32Array(2), advantages: Float32Array.of(1, 1), inPlace: true } as const;
  const first = make();
  const out = fusedPolicyLoss({ ...options, logits: first });
  assert.throws(() => fusedPolicyLoss({ ...options, logits: make(), out, bogus: 1 } as never), /unknown option bogus/);
  assert.equal(out.gradLogits, first);
  const second = make();
  assert.equal(fusedPolicyLoss({ ...options, logits: second, out }).gradLogits, second);
  const { gradLogits, ...others } = out;
  const unsettable = {
    frozen: Object.freeze({ ...out }),
    "read-only": Object.defineProperty({ ...others }, "gradLogits", { value: gradLogits, enumerable: true }),
    accessor: Object.defineProperty({ ...others }, "gradLogits", { get: () => gradLogits, enumerable: true }),
    "not extensible": Object.preventExtensions({ ...others }),
  };
  for (const [what, given] of Object.entries(unsettable)) {
    const logits = make();
    assert.throws(
      () => fusedPolicyLoss({ ...options, logits, out: given as never }),
      (error) => error instanceof FapoError && error.code === "ERR_INVALID_ARGUMENT",
      what,
    );
    assert.deepEqual([...device.floats(logits)], [0, 1, 2, 3], what);
  }
  const third = make();
  assert.equal(fusedPolicyLoss({ ...options, logits: third, out: others as never }).gradLogits, third);
});
