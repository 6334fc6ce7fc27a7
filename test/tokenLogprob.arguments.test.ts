/** What tokenLogprob and tokenLogprobBackward refuse, and with which words. */
import assert from "node:assert/strict";
import { type TensorData, tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import {
  badArrays,
  badBooleans,
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
import { assertFails, assertSameBits, forEachDevice, type TestDevice } from "./support.ts";

const [rows, vocab] = [3, 7];

function forwardOptions(device: TestDevice): Options {
  const batch = normalBatch(rows, vocab, "float32");
  return {
    logits: logitsTensor(device, { ...batch, data: batch.data.slice() }),
    tokenIds: batch.tokenIds,
    responseMask: Uint8Array.of(1, 1, 1),
    entropy: true,
    out: { logprobs: nans(device, [rows]), lse: nans(device, [rows]), entropy: nans(device, [rows]) },
  };
}

function backwardOptions(device: TestDevice): Options {
  const { out, entropy, ...shared } = forwardOptions(device);
  tokenLogprob({ ...shared, entropy, out } as Parameters<typeof tokenLogprob>[0]);
  return {
    ...shared,
    ...out,
    gradLogprobs: Float32Array.of(1, -2, 0.5),
    gradEntropy: Float32Array.of(0.1, 0.2, 0.3),
    out: { gradLogits: nans(device, [rows, vocab]) },
  };
}

const runForward = (options: Options): unknown => tokenLogprob(options as Parameters<typeof tokenLogprob>[0]);
const runBackward = (options: Options): unknown =>
  tokenLogprobBackward(options as Parameters<typeof tokenLogprobBackward>[0]);

const shared: BadInput[] = [
  ...badLogits(rows, vocab),
  ...badArrays({ name: "tokenIds", dtype: "int32", length: rows, required: true }),
  ...badArrays({ name: "responseMask", dtype: "uint8", length: rows, required: false }),
  ...badScales("temperature"),
  ...badScales("logitSoftcap"),
  ...badNumbers({ name: "ignoreIndex", expected: "an integer", refused: [0.5, 2 ** 53] }),
  ...badDevices(),
  ...["temprature", "temperatur", "T", "softcap", "logits_softcap", "gradLogits", "toString", "constructor"].map(
    unknownOption,
  ),
];

const row = { dtype: "float32", shape: [rows] } as const;

const forwardTable: BadInput[] = [
  ...shared,
  ...badBooleans("entropy"),
  ...badOutputs("tokenLogprob", [
    { name: "logprobs", ...row },
    { name: "lse", ...row },
    { name: "entropy", ...row },
  ]),
  {
    name: "out with an entropy that was not asked for",
    change: (options) => delete options.entropy,
    code: "ERR_INVALID_ARGUMENT",
    message: /expected out\.entropy to be absent, for it was not asked for, got a float32 tensor \[3\]/,
  },
  ...["gradScale", "inPlace", "gradLogprobs", "advantages"].map(unknownOption),
];

const backwardTable: BadInput[] = [
  ...shared,
  ...["logprobs", "lse", "gradLogprobs"].flatMap((name) =>
    badArrays({ name, dtype: "float32", length: rows, required: true }),
  ),
  ...["entropy", "gradEntropy"].flatMap((name) => badArrays({ name, dtype: "float32", length: rows, required: false })),
  ...badNumbers({ name: "gradScale", expected: "a finite number", refused: [] }),
  ...badBooleans("inPlace"),
  ...badOutputs("tokenLogprobBackward", [{ name: "gradLogits", dtype: "float32", shape: [rows, vocab] }]),
  {
    name: "gradEntropy without entropy",
    change: (options) => delete options.entropy,
    code: "ERR_INVALID_ARGUMENT",
    message: "gradEntropy needs entropy, the output of tokenLogprob",
  },
  {
    name: "out.gradLogits of another dtype of floats",
    change: (options, device) => {
      options.out.gradLogits = nans(device, [rows, vocab], "bfloat16");
    },
    code: "ERR_UNSUPPORTED_DTYPE",
    message: /expected out\.gradLogits to be a float32 tensor \[3, 7\], got a bfloat16 tensor \[3, 7\]/,
  },
  ...["clipRatioLow", "advantages"].map(unknownOption),
];

forEachDevice("tokenLogprob names every argument that is wrong, and writes nothing", (device) => {
  assertRefused("tokenLogprob", runForward, forwardOptions, forwardTable, device);
});

forEachDevice("tokenLogprobBackward names every argument that is wrong, and writes nothing", (device) => {
  assertRefused("tokenLogprobBackward", runBackward, backwardOptions, backwardTable, device);
});

forEachDevice("memory that went away under a tensor is found out", (device) => {
  if (device.name !== "cpu") return;
  const table = badLogitsMemory(rows, vocab);
  assertRefused("tokenLogprob", runForward, forwardOptions, table, device);
  assertRefused("tokenLogprobBackward", runBackward, backwardOptions, table, device);
  const lost = (name: string, message: RegExp): BadInput => ({
    name: `out.${name} over a buffer that was transferred`,
    change: (options) => detach(options.out[name].data),
    code: "ERR_INVALID_ARGUMENT",
    message,
  });
  const ofRow = (name: string) =>
    lost(name, new RegExp(`expected out\\.${name}\\.data to be of 3 elements, got Float32Array\\(0\\)`));
  assertRefused("tokenLogprob", runForward, forwardOptions, ["logprobs", "lse", "entropy"].map(ofRow), device);
  const matrix = lost(
    "gradLogits",
    /expected out\.gradLogits\.data to be of at least 21 elements, got Float32Array\(0\)/,
  );
  assertRefused("tokenLogprobBackward", runBackward, backwardOptions, [matrix], device);
});

forEachDevice("outputs that share memory with each other or with an input are refused", (device) => {
  // Overlap can be made with views of one buffer; a device tensor has memory of its own.
  if (device.name !== "cpu") return;
  const overlap = (target: string, other: string, change: BadInput["change"]): BadInput => ({
    name: `out.${target} over ${other}`,
    change,
    code: "ERR_INVALID_ARGUMENT",
    message: /expected (out\.)?\w+ to be memory of its own, got memory that overlaps (out\.)?\w+$/,
  });
  const views = (shift: number): [TensorData, TensorData] => {
    const memory = new Float32Array(2 * rows + 4).fill(0.5);
    return [memory.subarray(2, 2 + rows), memory.subarray(2 + shift, 2 + shift + rows)];
  };
  const table: BadInput[] = [];
  for (const shift of [-1, 0, 1, 2]) {
    for (const [one, other] of [
      ["logprobs", "lse"],
      ["lse", "entropy"],
      ["logprobs", "entropy"],
    ] as const) {
      table.push(
        overlap(one, `out.${other}, ${shift}`, (options) => {
          const [a, b] = views(shift);
          options.out[one] = tensor(a);
          options.out[other] = tensor(b);
        }),
      );
    }
  }
  for (const shift of [0, 1, 3 * 7 - 1]) {
    table.push(
      overlap("lse", `logits, ${shift}`, (options) => {
        const memory = new Float32Array(rows * vocab + rows);
        memory.set(options.logits.data);
        options.logits = tensor(memory.subarray(0, rows * vocab), { shape: [rows, vocab] });
        options.out.lse = tensor(memory.subarray(shift, shift + rows));
      }),
    );
  }
  table.push(
    overlap("logprobs", "tokenIds", (options) => {
      options.out.logprobs = tensor(new Float32Array(options.tokenIds.buffer));
    }),
    overlap("logprobs", "responseMask", (options) => {
      const memory = new Float32Array(rows).fill(1);
      options.out.logprobs = tensor(memory);
      options.responseMask = new Uint8Array(memory.buffer, 2, rows).fill(1);
    }),
  );
  assertRefused("tokenLogprob", runForward, forwardOptions, table, device);

  const backward: BadInput[] = [-1, 0, 1, vocab].map((shift) =>
    overlap("gradLogits", `logits, ${shift}`, (options) => {
      const memory = new Float32Array(2 * rows * vocab);
      const logits = memory.subarray(vocab, vocab + rows * vocab);
      logits.set(options.logits.data);
      options.logits = tensor(logits, { shape: [rows, vocab] });
      const at = vocab + shift;
      options.out.gradLogits = tensor(memory.subarray(at, at + rows * vocab), { shape: [rows, vocab] });
    }),
  );
  for (const name of ["logprobs", "lse", "entropy", "gradLogprobs", "gradEntropy"]) {
    backward.push(
      overlap("gradLogits", name, (options) => {
        const memory = new Float32Array(rows * vocab);
        options.out.gradLogits = tensor(memory, { shape: [rows, vocab] });
        options[name] = memory.subarray(4, 4 + rows);
      }),
      overlap("logits in place", name, (options) => {
        options.inPlace = true;
        delete options.out;
        options[name] = options.logits.data.subarray(4, 4 + rows);
      }),
    );
  }
  assertRefused("tokenLogprobBackward", runBackward, backwardOptions, backward, device);
});

forEachDevice("a strided output whose rows overlap each other cannot be made", (device) => {
  const make = () => device.tensor(new Float32Array(20), { shape: [3, 7], rowStride: 6 });
  assertFails(make, "ERR_INVALID_ARGUMENT", "tensor: expected rowStride to be an integer of at least 7, got 6");
});

forEachDevice("a token id out of range is named by its row before anything is written", (device) => {
  // A GPU finds it at the next wait; see the tests of devices.
  if (device.name !== "cpu") return;
  const table: BadInput[] = [];
  for (const index of [0, 1, 2]) {
    for (const id of [-1, vocab, vocab + 1, -(2 ** 31), 2 ** 31 - 1, -101, 1000]) {
      table.push({
        name: `tokenIds[${index}] = ${id}`,
        change: (options) => {
          options.tokenIds[index] = id;
        },
        code: "ERR_TOKEN_OUT_OF_RANGE",
        message: `expected tokenIds[${index}] to be in 0..6 or ignoreIndex (-100), got ${id}`,
      });
    }
  }
  table.push({
    name: "the first of two bad ids",
    change: (options) => {
      options.tokenIds.set([-5, 3, 99]);
    },
    code: "ERR_TOKEN_OUT_OF_RANGE",
    message: "expected tokenIds[0] to be in 0..6 or ignoreIndex (-100), got -5",
  });
  table.push({
    name: "the default ignoreIndex once another was given",
    change: (options) => {
      options.tokenIds[1] = -100;
      options.ignoreIndex = -7;
    },
    code: "ERR_TOKEN_OUT_OF_RANGE",
    message: "expected tokenIds[1] to be in 0..6 or ignoreIndex (-7), got -100",
  });
  assertRefused("tokenLogprob", runForward, forwardOptions, table, device);
  assertRefused("tokenLogprobBackward", runBackward, backwardOptions, table, device);
});

for (const [name, call] of [
  ["tokenLogprob", runForward],
  ["tokenLogprobBackward", runBackward],
] as const) {
  forEachDevice(`${name} refuses options that are no object`, () => {
    for (const [value, got] of [
      [undefined, "undefined"],
      [null, "null"],
      [1, "1"],
      ["x", '"x"'],
    ] as const) {
      const message = `${name}: expected options to be an object, got ${got}`;
      assertFails(() => call(value as unknown as Options), "ERR_INVALID_ARGUMENT", message);
    }
  });
}

forEachDevice("arrays that lie about their length are refused", (device) => {
  class Liar extends Int32Array {
    override get length(): number {
      return rows;
    }
  }
  const options = { ...forwardOptions(device), tokenIds: new Liar(1) };
  const message = /^tokenLogprob: expected tokenIds to be an Int32Array or an int32 tensor of length 3, got \w+\(3\)$/;
  assertFails(() => runForward(options), "ERR_UNSUPPORTED_DTYPE", message);
  const patched = new Int32Array(1);
  Object.defineProperty(patched, "length", { value: rows });
  assertFails(() => runForward({ ...options, tokenIds: patched }), "ERR_UNSUPPORTED_DTYPE", message);
});

forEachDevice("an option's getter that takes memory away is harmless", (device) => {
  if (device.name !== "cpu") return;
  const attacks: Record<string, (victim: { data: TensorData; dispose?: () => void }) => void> = {
    transfer: ({ data }) => detach(data),
    dispose: (victim) => victim.dispose?.(),
    reenter: () => {
      runForward(forwardOptions(device));
    },
  };
  for (const [attack, act] of Object.entries(attacks)) {
    for (const victimName of ["logits", "tokenIds", "responseMask", "logprobs", "out"]) {
      for (const trap of Object.keys(backwardOptions(device))) {
        const options = backwardOptions(device);
        const victim = options[victimName];
        const target =
          victimName === "out" ? victim.gradLogits : ArrayBuffer.isView(victim) ? { data: victim } : victim;
        const value = options[trap];
        Object.defineProperty(options, trap, {
          enumerable: true,
          get: () => {
            act(target);
            return value;
          },
        });
        try {
          runBackward(options);
        } catch (error) {
          const { code, message } = error as { code?: string; message: string };
          const expected = ["ERR_INVALID_ARGUMENT", "ERR_DISPOSED"];
          assert.ok(expected.includes(code ?? ""), `${attack} ${victimName} in ${trap}: ${code} ${message}`);
        }
      }
    }
  }
  runBackward(backwardOptions(device));
});

forEachDevice("what a getter throws comes through, and nothing is written", (device) => {
  const boom = new Error("planted");
  for (const trap of Object.keys(backwardOptions(device))) {
    const options = backwardOptions(device);
    const before = device.read(options.out.gradLogits).slice();
    const { gradLogits } = options.out;
    Object.defineProperty(options, trap, {
      enumerable: true,
      get: () => {
        throw boom;
      },
    });
    assert.throws(
      () => runBackward(options),
      (error) => error === boom,
    );
    assertSameBits(device.read(gradLogits), before);
  }
  const revoked = Proxy.revocable(forwardOptions(device), {});
  revoked.revoke();
  assert.throws(() => runForward(revoked.proxy), TypeError);
});

forEachDevice("options may be frozen, a Proxy or without a prototype", (device) => {
  const expected = device.read((runForward(forwardOptions(device)) as { logprobs: never }).logprobs);
  const reads: string[] = [];
  const counting = new Proxy(forwardOptions(device), {
    get: (target, name: string) => {
      reads.push(name);
      return target[name];
    },
  });
  for (const options of [
    Object.freeze(forwardOptions(device)),
    Object.assign(Object.create(null), forwardOptions(device)),
    counting,
  ]) {
    assertSameBits(device.read((runForward(options) as { logprobs: never }).logprobs), expected);
  }
  assert.equal(new Set(reads).size, reads.length, `read twice: ${reads}`);
});

forEachDevice("a polluted Object.prototype changes nothing", (device) => {
  const expected = device.read((runForward(forwardOptions(device)) as { logprobs: never }).logprobs);
  const gradient = device.read((runBackward(backwardOptions(device)) as { gradLogits: never }).gradLogits);
  const names = ["temperature", "logitSoftcap", "ignoreIndex", "gradScale", "inPlace", "device", "rowStride", "dtype"];
  const pollution: Record<string, unknown> = Object.prototype as never;
  try {
    for (const name of names) pollution[name] = 0;
    assertSameBits(device.read((runForward(forwardOptions(device)) as { logprobs: never }).logprobs), expected);
    assertSameBits(device.read((runBackward(backwardOptions(device)) as { gradLogits: never }).gradLogits), gradient);
  } finally {
    for (const name of names) delete pollution[name];
  }
});

forEachDevice("a frozen result is as good an out as any", (device) => {
  const options = backwardOptions(device);
  const out = Object.freeze(options.out);
  assert.equal(runBackward({ ...options, out }), out);
  const inPlace = { ...options, inPlace: true, out: Object.freeze({ gradLogits: options.logits }) };
  assert.equal((runBackward(inPlace) as { gradLogits: unknown }).gradLogits, options.logits);
});

forEachDevice("in place, out gets the logits as its gradient, whatever it held before", (device) => {
  const first = backwardOptions(device);
  const out = runBackward({ ...first, inPlace: true, out: undefined });
  const second = backwardOptions(device);
  assert.equal(runBackward({ ...second, inPlace: true, out }), out);
  assert.equal((out as { gradLogits: unknown }).gradLogits, second.logits);
});
