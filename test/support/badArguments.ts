/** What can be wrong with an argument of a kind, as rows for support/badInput.ts. */
import { type DType, type FapoErrorCode, tensor } from "fapo-kernels";
import type { TestDevice } from "../support.ts";
import { type BadInput, detach } from "./badInput.ts";
import { arrayFor } from "./logits.ts";

export interface ArrayArgument {
  name: string;
  dtype: DType;
  length: number;
  required: boolean;
  /** Whether a plain array of numbers is taken, too. */
  plain?: boolean;
  /** What is expected of the length, where it is not one number: "of length 3 (tokens) or 2 (responses)". */
  lengths?: string;
  /** Whether the op's message names the length when the kind is wrong. */
  lengthInKind?: boolean;
}

const classNames: Record<DType, string> = {
  float32: "Float32Array",
  bfloat16: "Uint16Array",
  float16: "Uint16Array",
  int32: "Int32Array",
  uint8: "Uint8Array",
  int8: "Int8Array",
};

/** Everything that can be wrong with an array argument. */
export function badArrays({ name, dtype, length, required, plain, lengths, lengthInKind }: ArrayArgument): BadInput[] {
  const className = classNames[dtype];
  const article = className.startsWith("I") ? "an" : "a";
  const size = (lengthInKind ?? true) ? ` of length ${length}` : "";
  const kind = `${article} ${className}${plain ? ", an array of numbers" : ""} or ${dtype.startsWith("i") ? "an" : "a"} ${dtype} tensor${size}`;
  const table: BadInput[] = [];
  const add = (what: string, change: BadInput["change"], message: BadInput["message"], code?: FapoErrorCode): void => {
    table.push({ name: `${name} ${what}`, change, message, code: code ?? "ERR_INVALID_ARGUMENT" });
  };
  const set = (what: string, make: () => unknown, got: string, code?: FapoErrorCode): void =>
    add(
      what,
      (options) => {
        options[name] = make();
      },
      `expected ${name} to be ${kind}, got ${got}`,
      code,
    );

  if (required) {
    set("undefined", () => undefined, "undefined");
    add("absent", (options) => delete options[name], `expected ${name} to be ${kind}, got undefined`);
  }
  set("null", () => null, "null");
  set("a number", () => 3, "3");
  set("a string", () => "abc", '"abc"');
  set("a function", () => () => {}, "a function");
  set("a plain object", () => ({ length }), "an object (Object)");
  set("an ArrayBuffer", () => new ArrayBuffer(8), "an object (ArrayBuffer)");
  if (!plain) set("a plain array", () => Array.from({ length: 3 }, () => 0), "[0, 0, 0]");
  set("an imitation", () => Object.create(arrayFor(dtype, 0).constructor.prototype), `an object (${className})`);
  set("a Proxy of an array", () => new Proxy(arrayFor(dtype, length), {}), `an object (${className})`);
  const wrongClass = (Type: new (length: number) => ArrayBufferView, got = `${Type.name}(${length})`): void =>
    set(Type.name, () => new Type(length), got, "ERR_UNSUPPORTED_DTYPE");
  const classes = [
    Float32Array,
    Float64Array,
    Int8Array,
    Int16Array,
    Int32Array,
    Uint8Array,
    Uint8ClampedArray,
    Uint16Array,
    Uint32Array,
    BigInt64Array,
    BigUint64Array,
  ];
  for (const Type of classes) if (Type.name !== className) wrongClass(Type);
  set(
    "a DataView",
    () => new DataView(new ArrayBuffer(length * 4)),
    `DataView(${length * 4})`,
    "ERR_UNSUPPORTED_DTYPE",
  );

  const wanted = lengths ?? `of length ${length}`;
  for (const wrong of [length - 1, length + 1]) {
    const got = `${className}(${wrong})`;
    add(
      `of length ${wrong}`,
      (options) => {
        options[name] = arrayFor(dtype, wrong);
      },
      `expected ${name} to be ${wanted}, got ${got}`,
    );
    add(
      `a tensor of length ${wrong}`,
      (options, device) => {
        options[name] = device.tensor(arrayFor(dtype, wrong));
      },
      new RegExp(
        `${escaped(`expected ${name} to be ${wanted}, got `)}(${escaped(got)}|${wrong} elements on cuda:\\d)$`,
      ),
    );
  }
  add(
    "over a detached buffer",
    (options) => {
      options[name] = arrayFor(dtype, length);
      detach(options[name]);
    },
    `the buffer of ${name} has been detached or shrunk`,
  );
  add(
    "a disposed tensor",
    (options, device) => {
      options[name] = device.tensor(arrayFor(dtype, length));
      options[name].dispose();
    },
    `${name} has been disposed`,
    "ERR_DISPOSED",
  );
  add(
    "a matrix",
    (options, device) => {
      options[name] = device.tensor(arrayFor(dtype, length), { shape: [length, 1] });
    },
    new RegExp(`expected ${name} to be of one dimension, got an? ${dtype} tensor \\[${length}, 1\\] on `),
  );
  for (const other of ["float32", "bfloat16", "int32", "uint8", "int8"] as const) {
    if (other === dtype) continue;
    add(
      `a tensor of ${other}`,
      (options, device) => {
        options[name] = device.tensor(arrayFor(other, length), { dtype: other });
      },
      `expected ${name}.dtype to be ${dtype}, got "${other}"`,
      "ERR_UNSUPPORTED_DTYPE",
    );
  }
  add(
    "an object made from a tensor",
    (options, device) => {
      options[name] = Object.create(device.tensor(arrayFor(dtype, length)));
    },
    new RegExp(`expected ${name} to be ${escaped(kind)}, got `),
  );
  if (plain) {
    const bad: [unknown, string][] = [
      ["1", '"1"'],
      [null, "null"],
      [undefined, "undefined"],
      [1n, "1n"],
    ];
    const integers: [unknown, string][] = [
      [0.5, "0.5"],
      [Number.NaN, "NaN"],
      [2 ** 31, "2147483648"],
    ];
    const item = dtype === "float32" ? "a number" : "an integer in -2147483648..2147483647";
    for (const [value, got] of dtype === "float32" ? bad : [...bad, ...integers]) {
      add(
        `with ${got} in it`,
        (options) => {
          options[name] = Array.from({ length }, (_, i) => (i === 1 ? value : 0));
        },
        `expected ${name}[1] to be ${item}, got ${got}`,
      );
    }
  }
  return table;
}

export interface ScalarArgument {
  name: string;
  expected: string;
  /** Numbers that are refused, besides what is never taken. */
  refused: readonly number[];
  /** Whether infinity is a value of the option. */
  infinite?: boolean;
}

export function badNumbers({ name, expected, refused, infinite }: ScalarArgument): BadInput[] {
  const values: [unknown, string][] = [
    [null, "null"],
    ["1", '"1"'],
    [true, "true"],
    [1n, "1n"],
    [[1], "[1]"],
    [{}, "an object (Object)"],
    [Symbol("x"), "Symbol(x)"],
    [Number.NaN, "NaN"],
    [Number.NEGATIVE_INFINITY, "-Infinity"],
    ...(infinite ? [] : [[Number.POSITIVE_INFINITY, "Infinity"] as [unknown, string]]),
    ...refused.map((value): [unknown, string] => [value, Object.is(value, -0) ? "-0" : String(value)]),
  ];
  return values.map(([value, got]) => ({
    name: `${name} ${got}`,
    change: (options) => {
      options[name] = value;
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `expected ${name} to be ${expected}, got ${got}`,
  }));
}

/** What is wrong with a temperature or a cap: not positive, or too far from 1 for float32. */
export function badScales(name: string): BadInput[] {
  return [
    ...badNumbers({ name, expected: "a positive number", refused: [0, -0, -1] }),
    ...[5e-324, 1e-40, 9.9e-31, 1.1e30, 1e39, 1e300].map((value) => ({
      name: `${name} ${value}`,
      change: (options: Record<string, unknown>) => {
        options[name] = value;
      },
      code: "ERR_INVALID_ARGUMENT" as const,
      message: `expected ${name} to be in 1e-30..1e30, got ${value}`,
    })),
  ];
}

export function badBooleans(name: string): BadInput[] {
  const values: [unknown, string][] = [
    [null, "null"],
    [0, "0"],
    [1, "1"],
    ["true", '"true"'],
    [{}, "an object (Object)"],
  ];
  return values.map(([value, got]) => ({
    name: `${name} ${got}`,
    change: (options) => {
      options[name] = value;
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `expected ${name} to be true or false, got ${got}`,
  }));
}

export function badChoices(name: string, names: readonly string[]): BadInput[] {
  const values: [unknown, string][] = [
    [null, "null"],
    [0, "0"],
    ["", '""'],
    ["Token-mean", '"Token-mean"'],
    ["__proto__", '"__proto__"'],
    [[names[0]], `["${names[0]}"]`],
  ];
  return values.map(([value, got]) => ({
    name: `${name} ${got}`,
    change: (options) => {
      options[name] = value;
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `expected ${name} to be one of ${names.join(", ")}, got ${got}`,
  }));
}

/** The matrix of logits, [rows, vocab]. */
export function badLogits(rows: number, vocab: number): BadInput[] {
  const set = (
    name: string,
    make: (device: TestDevice) => unknown,
    message: string | RegExp,
    code: FapoErrorCode = "ERR_INVALID_ARGUMENT",
  ): BadInput => ({
    name: `logits ${name}`,
    change: (options, device) => {
      options.logits = make(device);
      delete options.out;
    },
    code,
    message,
  });
  const kind = "expected logits to be a tensor [rows, vocab]; tensor(data, { shape }) makes one, got ";
  const ofDType = (dtype: "int32" | "uint8" | "int8"): BadInput =>
    set(
      dtype,
      (device) => device.tensor(arrayFor(dtype, rows * vocab), { shape: [rows, vocab] }),
      `expected logits.dtype to be float32, bfloat16 or float16, got "${dtype}"`,
      "ERR_UNSUPPORTED_DTYPE",
    );
  const shaped = (shape: number[], text: string): BadInput =>
    set(
      `of shape [${shape}]`,
      (device) => device.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), { shape }),
      `expected logits.shape to be ${text}, got [${shape.join(", ")}]`,
    );
  return [
    set("undefined", () => undefined, `${kind}undefined`),
    set("null", () => null, `${kind}null`),
    set("a number", () => 1, `${kind}1`),
    set("a typed array", () => new Float32Array(6), `${kind}Float32Array(6)`),
    set("arrays of arrays", () => [[1, 2]], /expected logits to be a tensor \[rows, vocab\].*, got \[…\]$/),
    set(
      "an imitation",
      () => ({ dtype: "float32", shape: [3, 2], data: new Float32Array(6) }),
      `${kind}an object (Object)`,
    ),
    set(
      "an object made from a tensor",
      (device) => Object.create(device.tensor(new Float32Array(6))),
      /expected logits to be a tensor/,
    ),
    set(
      "a Proxy of a tensor",
      (device) => new Proxy(device.tensor(new Float32Array(6)), {}),
      /expected logits to be a tensor/,
    ),
    ofDType("int32"),
    ofDType("uint8"),
    ofDType("int8"),
    shaped([rows * vocab], "[rows, vocab]"),
    shaped([], "[rows, vocab]"),
    shaped([rows, vocab, 1], "[rows, vocab]"),
    shaped([rows, 0], "[rows, vocab] with a vocab of at least 1"),
    {
      name: "logits of another number of rows",
      change: (options, device) => {
        options.logits = device.tensor(new Float32Array((rows + 1) * vocab), { shape: [rows + 1, vocab] });
        delete options.out;
      },
      code: "ERR_INVALID_ARGUMENT",
      message: `expected tokenIds to be of length ${rows + 1}, got Int32Array(${rows})`,
    },
    {
      name: "logits disposed",
      change: (options) => options.logits.dispose(),
      code: "ERR_DISPOSED",
      message: "logits has been disposed",
    },
  ];
}

/** Memory that went away after the tensor over it was made: on the CPU alone a tensor is a view. */
export function badLogitsMemory(rows: number, vocab: number): BadInput[] {
  const needed = rows * vocab;
  return [
    {
      name: "logits over a buffer that was transferred",
      change: (options) => detach(options.logits.data),
      code: "ERR_INVALID_ARGUMENT",
      message: new RegExp(`expected logits.data to be of at least ${needed} elements, got \\w+\\(0\\)`),
    },
    {
      name: "logits over a buffer that was shrunk",
      change: (options) => {
        const Resizable = ArrayBuffer as unknown as new (size: number, options: object) => ArrayBuffer;
        const buffer = new Resizable(4 * needed, { maxByteLength: 4 * needed });
        options.logits = tensor(new Float32Array(buffer), { shape: [rows, vocab] });
        (buffer as unknown as { resize(size: number): void }).resize(4);
        delete options.out;
      },
      code: "ERR_INVALID_ARGUMENT",
      message: `expected logits.data to be of at least ${needed} elements, got Float32Array(1)`,
    },
    {
      name: "logits over a fixed view that was shrunk away",
      change: (options) => {
        const Resizable = ArrayBuffer as unknown as new (size: number, options: object) => ArrayBuffer;
        const buffer = new Resizable(4 * needed, { maxByteLength: 4 * needed });
        options.logits = tensor(new Float32Array(buffer, 0, needed), { shape: [rows, vocab] });
        (buffer as unknown as { resize(size: number): void }).resize(4);
        delete options.out;
      },
      code: "ERR_INVALID_ARGUMENT",
      message: `expected logits.data to be of at least ${needed} elements, got Float32Array(0)`,
    },
  ];
}

export interface OutputOf {
  name: string;
  dtype: DType;
  shape: readonly number[];
}

/** Everything that can be wrong with `out`. */
export function badOutputs(op: string, outputs: readonly OutputOf[]): BadInput[] {
  const table: BadInput[] = [];
  const whole: [unknown, string][] = [
    [null, "null"],
    [1, "1"],
    ["out", '"out"'],
    [[], "[]"],
  ];
  for (const [value, got] of whole) {
    table.push({
      name: `out ${got}`,
      change: (options) => {
        options.out = value;
      },
      code: "ERR_INVALID_ARGUMENT",
      message: new RegExp(`expected out(\\.metrics)? to be the (result|metrics) of an earlier ${op}, got .*`),
    });
  }
  table.push({
    name: "out with a name of no output",
    change: (options) => {
      options.out.probabilities = options.out[outputs[0]!.name];
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `expected out to be the result of an earlier ${op}, got "one with probabilities"`,
  });
  for (const { name, dtype, shape } of outputs) {
    const kind = `expected out.${name} to be a ${dtype} tensor [${shape.join(", ")}], got `;
    const add = (
      what: string,
      change: BadInput["change"],
      message: BadInput["message"],
      code?: FapoErrorCode,
    ): void => {
      table.push({ name: `out.${name} ${what}`, change, message, code: code ?? "ERR_INVALID_ARGUMENT" });
    };
    add("absent", (options) => delete options.out[name], `${kind}undefined`);
    add(
      "null",
      (options) => {
        options.out[name] = null;
      },
      `${kind}null`,
    );
    const count = shape.reduce((product, size) => product * size, 1);
    add(
      "an array",
      (options) => {
        options.out[name] = arrayFor(dtype, count);
      },
      `${kind}${arrayFor(dtype, count).constructor.name}(${count})`,
    );
    const other = dtype === "int32" ? "uint8" : "int32";
    add(
      "of another dtype",
      (options, device) => {
        options.out[name] = device.tensor(arrayFor(other, count), { shape });
      },
      new RegExp(`expected out\\.${name} to be a ${dtype} tensor .*, got an? ${other} tensor`),
      "ERR_UNSUPPORTED_DTYPE",
    );
    const shapes = [[...shape, 1], shape.length > 0 ? [shape[0]! + 1, ...shape.slice(1)] : [2]];
    if (shape.length > 0) shapes.push(shape.map((size, i) => (i === shape.length - 1 ? size - 1 : size)));
    for (const wrong of shapes) {
      add(
        `of shape [${wrong}]`,
        (options, device) => {
          const data = arrayFor(
            dtype,
            wrong.reduce((product, size) => product * size, 1),
          );
          options.out[name] = device.tensor(data, { shape: wrong, dtype });
        },
        new RegExp(
          `expected out\\.${name} to be a ${dtype} tensor .*, got a ${dtype} tensor \\[${wrong.join(", ")}\\]`,
        ),
      );
    }
    add("disposed", (options) => options.out[name].dispose(), `out.${name} has been disposed`, "ERR_DISPOSED");
  }
  return table;
}

export function unknownOption(name: string): BadInput {
  return {
    name: `an option called ${name}`,
    change: (options) => {
      Object.defineProperty(options, name, { value: undefined, enumerable: true });
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `unknown option ${name}`,
  };
}

export function badDevices(): BadInput[] {
  const refused: [unknown, string][] = [
    ["gpu", '"gpu"'],
    ["cuda", '"cuda"'],
    ["cuda:-1", '"cuda:-1"'],
    [0, "0"],
    [null, "null"],
  ];
  return refused.map(([value, got]) => ({
    name: `device ${got}`,
    change: (options) => {
      options.device = value;
    },
    code: "ERR_INVALID_ARGUMENT",
    message: `expected device to be "cpu" or "cuda:0", "cuda:1", …, got ${got}`,
  }));
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
