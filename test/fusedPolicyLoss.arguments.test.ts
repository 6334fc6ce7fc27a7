/** What fusedPolicyLoss refuses, and with which words. */
import assert from "node:assert/strict";
import { fusedPolicyLoss, policyLoss, type TensorData, tensor } from "fapo-kernels";
import {
  badArrays,
  badBooleans,
  badChoices,
  badDevices,
  badLogits,
  badLogitsMemory,
  badNumbers,
  badOutputs,
  badScales,
  unknownOption,
} from "./support/badArguments.ts";
import { assertRefused, type BadInput, detach, type Options } from "./support/badInput.ts";
import { logitsTensor, nans, normalBatch } from "./support/logits.ts";
import { klEstimators, lossAggModes, metricsOf, nanResult } from "./support/policy.ts";
import { assertFails, assertSameBits, forEachDevice, type TestDevice } from "./support.ts";

const [rows, vocab, sequences] = [5, 7, 2];

function goodOptions(device: TestDevice): Options {
  const batch = normalBatch(rows, vocab, "float32");
  return {
    logits: logitsTensor(device, { ...batch, data: batch.data.slice() }),
    tokenIds: batch.tokenIds,
    responseMask: new Uint8Array(rows).fill(1),
    oldLogprobs: new Float32Array(rows).fill(-2),
    refLogprobs: new Float32Array(rows).fill(-2.1),
    advantages: Float32Array.of(1, -1, 0.5, 2, -2),
    importanceWeights: new Float32Array(rows).fill(1),
    cuSeqlens: Int32Array.of(0, 2, rows),
    klEstimator: "k3",
    klCoef: 0.1,
    entropy: true,
    out: nanResult(device, batch, true),
  };
}

const call = (options: Options): unknown => fusedPolicyLoss(options as Parameters<typeof fusedPolicyLoss>[0]);
const runFused = (options: Options) => fusedPolicyLoss(options as Parameters<typeof fusedPolicyLoss>[0]);

function refused(name: string, change: BadInput["change"], message: string | RegExp): BadInput {
  return { name, change, message, code: "ERR_INVALID_ARGUMENT" };
}

const perToken = `of length ${rows} (tokens) or ${sequences} (responses)`;
const row = { dtype: "float32", shape: [rows] } as const;

const table: BadInput[] = [
  ...badLogits(rows, vocab),
  ...badArrays({ name: "tokenIds", dtype: "int32", length: rows, required: true }),
  ...badArrays({ name: "responseMask", dtype: "uint8", length: rows, required: false }),
  ...badArrays({ name: "oldLogprobs", dtype: "float32", length: rows, required: false }),
  ...badArrays({ name: "refLogprobs", dtype: "float32", length: rows, required: false }),
  ...badArrays({
    name: "advantages",
    dtype: "float32",
    length: rows,
    required: true,
    plain: true,
    lengths: perToken,
    lengthInKind: false,
  }),
  ...badArrays({
    name: "importanceWeights",
    dtype: "float32",
    length: rows,
    required: false,
    plain: true,
    lengths: perToken,
    lengthInKind: false,
  }),
  ...badScales("temperature"),
  ...badScales("logitSoftcap"),
  ...badNumbers({ name: "ignoreIndex", expected: "an integer", refused: [0.5, 2 ** 53] }),
  ...badNumbers({ name: "clipRatioLow", expected: "a number in 0..1", refused: [-0.1, 1.1] }),
  ...badNumbers({ name: "clipRatioHigh", expected: "a number of at least 0", refused: [-0.1] }),
  ...badNumbers({ name: "clipRatioC", expected: "a number above 1", refused: [1, 0, -3], infinite: true }),
  ...badNumbers({ name: "logRatioClamp", expected: "a positive number", refused: [0, -0, -20], infinite: true }),
  ...badNumbers({ name: "klCoef", expected: "a number of at least 0", refused: [-0.1] }),
  ...badNumbers({ name: "globalTokens", expected: "a number of tokens", refused: [0, -1, 1.5, 2 ** 53] }),
  ...badNumbers({ name: "globalSequences", expected: "a number of sequences", refused: [0, -1, 1.5, 2 ** 53] }),
  ...badNumbers({ name: "horizon", expected: "a positive number", refused: [0, -0, -1] }),
  ...badNumbers({ name: "gradScale", expected: "a finite number", refused: [] }),
  ...badNumbers({ name: "entropyCoef", expected: "a finite number", refused: [] }),
  ...badChoices("klEstimator", klEstimators),
  ...badChoices("lossAggMode", lossAggModes),
  ...badBooleans("entropy"),
  ...badBooleans("inPlace"),
  ...badDevices(),
  ...badOutputs("fusedPolicyLoss", [
    { name: "loss", dtype: "float32", shape: [] },
    { name: "logprobs", ...row },
    { name: "lse", ...row },
    { name: "entropy", ...row },
    { name: "gradLogits", dtype: "float32", shape: [rows, vocab] },
  ]),
  ...["logprobs", "gradLogprobs", "clipRatio", "epsilon", "beta", "cu_seqlens", "toString"].map(unknownOption),

  refused("entropy in out that was not asked for", (o) => delete o.entropy, /expected out\.entropy to be absent/),
  refused(
    "metrics of nobody",
    (o) => (o.out = { ...o.out, metrics: {} }),
    /expected out\.metrics to be the metrics of an earlier fusedPolicyLoss/,
  ),
  refused(
    "no metrics",
    (o) => delete o.out.metrics,
    /expected out\.metrics to be the metrics of an earlier fusedPolicyLoss, got undefined/,
  ),
  refused(
    "copied metrics",
    (o) => (o.out.metrics = { ...o.out.metrics }),
    /expected out\.metrics to be the metrics of an earlier/,
  ),

  refused("klCoef without an estimator", (o) => delete o.klEstimator, 'klCoef needs a klEstimator, which is "none"'),
  refused("an estimator without a reference", (o) => delete o.refLogprobs, 'klEstimator "k3" needs refLogprobs'),
  refused(
    "a reference without an estimator",
    (o) => {
      delete o.klEstimator;
      delete o.klCoef;
    },
    'refLogprobs are given, but klEstimator is "none"',
  ),
  ...lossAggModes
    .filter((mode) => mode.startsWith("seq-"))
    .map((mode) =>
      refused(
        `${mode} without cuSeqlens`,
        (o) => {
          o.lossAggMode = mode;
          if (mode.endsWith("norm")) o.horizon = 5;
          delete o.cuSeqlens;
        },
        `lossAggMode "${mode}" needs cuSeqlens`,
      ),
    ),
  refused(
    "no horizon",
    (o) => {
      o.lossAggMode = "seq-mean-token-sum-norm";
    },
    'lossAggMode "seq-mean-token-sum-norm" needs horizon',
  ),
  ...lossAggModes
    .filter((mode) => mode !== "seq-mean-token-sum-norm")
    .map((mode) =>
      refused(
        `a horizon with ${mode}`,
        (o) => {
          o.lossAggMode = mode;
          o.horizon = 5;
        },
        `horizon goes with lossAggMode "seq-mean-token-sum-norm", not "${mode}"`,
      ),
    ),
  ...["advantages", "importanceWeights"].map((name) =>
    refused(
      `${name} per response without cuSeqlens`,
      (o) => {
        delete o.cuSeqlens;
        o[name] = new Float32Array(sequences);
      },
      `expected ${name} to be of length ${rows} (tokens) (a length per response needs cuSeqlens), got Float32Array(${sequences})`,
    ),
  ),
];

forEachDevice("fusedPolicyLoss names every argument that is wrong, and writes nothing", (device) => {
  assertRefused("fusedPolicyLoss", call, goodOptions, table, device);
});

forEachDevice("cuSeqlens must be a whole cut of the tokens", (device) => {
  const set = (value: unknown) => (options: Options) => {
    options.cuSeqlens = value;
    options.advantages = new Float32Array(rows);
    delete options.importanceWeights;
  };
  const bad = [
    refused("empty", set(new Int32Array(0)), /expected cuSeqlens to be of at least one element/),
    refused("null", set(null), /expected cuSeqlens to be an Int32Array, an array of numbers or an int32 tensor/),
    refused(
      "a fraction",
      set([0, 2.5, 5]),
      "expected cuSeqlens[1] to be an integer in -2147483648..2147483647, got 2.5",
    ),
  ];
  const wrongType: BadInput = {
    name: "floats",
    change: set(Float32Array.of(0, 5)),
    code: "ERR_UNSUPPORTED_DTYPE",
    message: /expected cuSeqlens to be an Int32Array, .*, got Float32Array\(2\)/,
  };
  // Offsets on a GPU are found out at the next wait.
  if (device.name === "cpu") {
    const cuts = [[1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [0, -1, 5], [5, 0], [-1, 5], [0, 5, 4], [0]];
    for (const offsets of cuts) {
      bad.push(refused(`${offsets}`, set(Int32Array.from(offsets)), /expected cuSeqlens/));
    }
  }
  assertRefused("fusedPolicyLoss", call, goodOptions, [...bad, wrongType], device);
});

forEachDevice("memory that went away under a tensor is found out", (device) => {
  if (device.name !== "cpu") return;
  const lost = ["loss", "logprobs", "lse", "entropy", "gradLogits"].map((name) =>
    refused(
      `out.${name} over a buffer that was transferred`,
      (o) => detach(o.out[name].data),
      new RegExp(`expected out\\.${name}\\.data to be of .*, got Float32Array\\(0\\)`),
    ),
  );
  assertRefused("fusedPolicyLoss", call, goodOptions, [...badLogitsMemory(rows, vocab), ...lost], device);
});

forEachDevice("outputs that share memory with each other or with an input are refused", (device) => {
  if (device.name !== "cpu") return;
  const message = /expected (out\.)?\w+ to be memory of its own, got memory that overlaps (out\.)?\w+$/;
  const overlap: BadInput[] = [];
  const outputs = ["loss", "logprobs", "lse", "entropy"];
  for (const one of outputs) {
    for (const other of outputs) {
      if (one <= other) continue;
      overlap.push(
        refused(
          `out.${one} over out.${other}`,
          (o) => {
            const memory = new Float32Array(2 * rows);
            o.out[other] =
              other === "loss" ? tensor(memory.subarray(2, 3), { shape: [] }) : tensor(memory.subarray(0, rows));
            o.out[one] =
              one === "loss" ? tensor(memory.subarray(2, 3), { shape: [] }) : tensor(memory.subarray(2, 2 + rows));
          },
          message,
        ),
      );
    }
    overlap.push(
      refused(
        `out.${one} over logits`,
        (o) => {
          const memory = new Float32Array(rows * vocab);
          o.logits = tensor(memory, { shape: [rows, vocab] });
          o.out[one] =
            one === "loss" ? tensor(memory.subarray(34, 35), { shape: [] }) : tensor(memory.subarray(30, 30 + rows));
        },
        message,
      ),
    );
  }
  for (const name of [
    "oldLogprobs",
    "refLogprobs",
    "advantages",
    "importanceWeights",
    "responseMask",
    "tokenIds",
    "cuSeqlens",
  ]) {
    overlap.push(
      refused(
        `out.gradLogits over ${name}`,
        (o) => {
          const input: TensorData = o[name];
          const memory = new Float32Array(rows * vocab);
          const Type = input.constructor as new (buffer: ArrayBufferLike, offset: number, length: number) => TensorData;
          o[name] = new Type(memory.buffer, 8, input.length);
          o[name].set(input);
          o.out.gradLogits = tensor(memory, { shape: [rows, vocab] });
        },
        message,
      ),
    );
  }
  for (const shift of [-1, 0, 1]) {
    overlap.push(
      refused(
        `out.gradLogits over logits, ${shift}`,
        (o) => {
          const memory = new Float32Array(rows * vocab + 2);
          o.logits = tensor(memory.subarray(1, 1 + rows * vocab), { shape: [rows, vocab] });
          o.out.gradLogits = tensor(memory.subarray(1 + shift, 1 + shift + rows * vocab), { shape: [rows, vocab] });
        },
        message,
      ),
    );
  }
  assertRefused("fusedPolicyLoss", call, goodOptions, overlap, device);
});

forEachDevice("a token id out of range is named by its row before anything is written", (device) => {
  if (device.name !== "cpu") return;
  const bad: BadInput[] = [];
  for (const index of [0, 2, rows - 1]) {
    for (const id of [-1, vocab, -(2 ** 31), 2 ** 31 - 1]) {
      bad.push({
        name: `tokenIds[${index}] = ${id}`,
        change: (o) => {
          o.tokenIds[index] = id;
        },
        code: "ERR_TOKEN_OUT_OF_RANGE",
        message: `expected tokenIds[${index}] to be in 0..${vocab - 1} or ignoreIndex (-100), got ${id}`,
      });
    }
  }
  for (const { change, ...rest } of [...bad]) {
    bad.push({
      ...rest,
      name: `${rest.name} in place`,
      change: (o, where) => {
        change(o, where);
        o.inPlace = true;
        delete o.out;
      },
    });
  }
  assertRefused("fusedPolicyLoss", call, goodOptions, bad, device);
});

forEachDevice("memory taken away while options are read is found out, and no bit is wrong", (device) => {
  if (device.name !== "cpu") return;
  const expected = runFused(goodOptions(device));
  const arrays = ["logits", "tokenIds", "responseMask", "oldLogprobs", "advantages", "cuSeqlens", "importanceWeights"];
  for (const victim of arrays) {
    for (const trap of Object.keys(goodOptions(device))) {
      for (const attack of ["transfer", "dispose", "reenter"]) {
        const options = goodOptions(device);
        const value = options[trap];
        const target = options[victim];
        Object.defineProperty(options, trap, {
          enumerable: true,
          get: () => {
            if (attack === "transfer") detach(ArrayBuffer.isView(target) ? (target as TensorData) : target.data);
            if (attack === "dispose") target.dispose?.();
            if (attack === "reenter") runFused(goodOptions(device));
            return value;
          },
        });
        try {
          const got = runFused(options);
          assert.equal(got.loss.item(), expected.loss.item(), `${attack} ${victim} in ${trap}`);
        } catch (error) {
          const { code } = error as { code?: string };
          assert.ok(
            code === "ERR_INVALID_ARGUMENT" || code === "ERR_DISPOSED",
            `${attack} ${victim} in ${trap}: ${error}`,
          );
        }
      }
    }
  }
});

forEachDevice("a plain array whose elements take the logits away is harmless", (device) => {
  if (device.name !== "cpu") return;
  for (const attack of ["transfer", "dispose"]) {
    for (const victim of ["logits", "tokenIds", "oldLogprobs"]) {
      const options = goodOptions(device);
      const target = options[victim];
      const advantages = [1, 2, 3, 4, 5];
      Object.defineProperty(advantages, 2, {
        get: () => {
          if (attack === "dispose") target.dispose?.();
          if (attack === "transfer" && (target.data ?? target).byteLength > 0) detach(target.data ?? target);
          return 3;
        },
      });
      const before = device.read(options.out.gradLogits).slice();
      try {
        runFused({ ...options, advantages });
        assert.ok(attack === "dispose", `${attack} ${victim}`);
      } catch (error) {
        const { code, message } = error as { code: string; message: string };
        assert.ok(
          code === "ERR_INVALID_ARGUMENT" || code === "ERR_DISPOSED",
          `${attack} ${victim}: ${code} ${message}`,
        );
        assertSameBits(device.read(options.out.gradLogits), before);
      }
    }
  }
});

forEachDevice("a polluted Object.prototype changes nothing", (device) => {
  const expected = runFused(goodOptions(device));
  const pollution: Record<string, unknown> = Object.prototype as never;
  const names = [
    "temperature",
    "klCoef",
    "clipRatioLow",
    "horizon",
    "globalTokens",
    "entropyCoef",
    "inPlace",
    "gradScale",
  ];
  try {
    for (const name of names) pollution[name] = 0;
    const got = runFused(goodOptions(device));
    assert.equal(got.loss.item(), expected.loss.item());
    assertSameBits(device.read(got.gradLogits), device.read(expected.gradLogits));
  } finally {
    for (const name of names) delete pollution[name];
  }
});

forEachDevice("accessors for indices of a polluted Array.prototype change no result", (device) => {
  const expected = device.read(runFused(goodOptions(device)).gradLogits);
  for (let i = 0; i < 60; i++) {
    for (const reuse of [true, false]) {
      const options = goodOptions(device);
      const call = reuse ? { ...options, out: runFused(options) } : options;
      let got: ReturnType<typeof runFused>;
      Object.defineProperty(Array.prototype, i, { get: () => 42, set: () => {}, configurable: true });
      try {
        got = runFused(call);
      } finally {
        delete (Array.prototype as unknown as Record<string, unknown>)[i];
      }
      assertSameBits(device.read(got.gradLogits), expected, `index ${i}`);
    }
  }
});

forEachDevice("inputs of a length per response may be plain arrays, and win where N equals S", (device) => {
  const batch = normalBatch(4, 9, "float32");
  const common = { logits: logitsTensor(device, batch), tokenIds: batch.tokenIds };
  const perToken = runFused({ ...common, advantages: Float32Array.of(1, 1, -2, -2) });
  const perResponse = runFused({ ...common, advantages: [1, -2], cuSeqlens: [0, 2, 4] });
  assert.equal(perResponse.loss.item(), perToken.loss.item());
  assertSameBits(device.read(perResponse.gradLogits), device.read(perToken.gradLogits));
  // Four responses, two of them empty: advantages are theirs, not the tokens'.
  const equal = runFused({ ...common, advantages: [1, 7, -2, 9], cuSeqlens: [0, 2, 2, 4, 4] });
  assert.equal(equal.loss.item(), perToken.loss.item());
  assert.equal(equal.metrics.sequences.item(), 2);
});

forEachDevice("out is written to and returned, metrics with it; metrics of policyLoss serve as well", (device) => {
  const options = goodOptions(device);
  const { out } = options;
  const { metrics, gradLogits } = out;
  assert.equal(runFused(options), out);
  assert.ok(out.metrics === metrics && out.gradLogits === gradLogits);
  const first = metricsOf(metrics);
  const fresh = runFused({ ...options, out: undefined });
  assert.deepEqual(metricsOf(fresh.metrics), first);
  assert.deepEqual(Object.keys(fresh).sort(), ["entropy", "gradLogits", "logprobs", "loss", "lse", "metrics"]);
  assert.deepEqual(fresh.loss.shape, []);
  const other = policyLoss({ logprobs: Float32Array.of(-1), advantages: Float32Array.of(1), device: device.name });
  const borrowed = { ...out, metrics: other.metrics, loss: nans(device, []) };
  assert.equal(runFused({ ...options, out: borrowed }).metrics.tokens.item(), rows);
});

forEachDevice("a GPU that is not there is refused with the reason", (device) => {
  const options = { ...goodOptions(device), device: "cuda:99" };
  assertFails(
    () => call(options),
    "ERR_NO_CUDA",
    /^fusedPolicyLoss: device is "cuda:99", but .+; use "cpu"( or another)?$/,
  );
});
