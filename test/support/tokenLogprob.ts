/** tokenLogprob and tokenLogprobBackward in one go, and what their tests ask of the outputs. */
import assert from "node:assert/strict";
import { type TensorData, tensor, tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { logprobOf, type Scaling, softmaxRow } from "../reference/softmax.ts";
import { assertClose, assertSameBits, type FloatDType, rng, type TestDevice } from "../support.ts";
import { entropyTolerance, logprobTolerance, lseTolerance } from "../tolerances.ts";
import { assertGradient } from "./gradient.ts";
import { type LogitsBatch, logitsTensor, nans, rowOf } from "./logits.ts";

export interface Outputs {
  logprobs: TensorData;
  lse: TensorData;
  entropy: TensorData;
  gradLogits: TensorData;
}

/** What tokenLogprob and its backward pass take besides logits and ids. */
export interface Options {
  temperature?: number;
  logitSoftcap?: number;
  ignoreIndex?: number;
  responseMask?: Uint8Array;
  gradScale?: number;
}

export interface Upstream {
  gradLogprobs: Float32Array;
  gradEntropy: Float32Array;
}

/** 1 for every log-prob and 0.5 for every entropy. */
export function flatUpstream(rows: number): Upstream {
  return { gradLogprobs: new Float32Array(rows).fill(1), gradEntropy: new Float32Array(rows).fill(0.5) };
}

/** Anything between -2 and 2. */
export function upstreamOf(rows: number, seed = 1): Upstream {
  const random = rng(seed);
  const draw = (): Float32Array => Float32Array.from({ length: rows }, () => 4 * random() - 2);
  return { gradLogprobs: draw(), gradEntropy: draw() };
}

/** Forward and backward, all outputs NaN before. */
export function runBoth(
  device: TestDevice,
  batch: LogitsBatch,
  options: Options = {},
  upstream: Upstream = flatUpstream(batch.rows),
): Outputs {
  const { rows, vocab, dtype, tokenIds } = batch;
  const { gradScale = 1, ...rest } = options;
  const common = { logits: logitsTensor(device, batch), tokenIds, ...rest };
  const out = { logprobs: nans(device, [rows]), lse: nans(device, [rows]), entropy: nans(device, [rows]) };
  tokenLogprob({ ...common, entropy: true, out });
  const gradLogits = nans(device, [rows, vocab], dtype);
  tokenLogprobBackward({ ...common, ...out, ...upstream, gradScale, out: { gradLogits } });
  return {
    logprobs: device.read(out.logprobs),
    lse: device.read(out.lse),
    entropy: device.read(out.entropy),
    gradLogits: device.read(gradLogits),
  };
}

export const specials: Record<FloatDType, Record<"nan" | "inf" | "-inf", number>> = {
  float32: { nan: Number.NaN, inf: Number.POSITIVE_INFINITY, "-inf": Number.NEGATIVE_INFINITY },
  bfloat16: { nan: 0x7fc0, inf: 0x7f80, "-inf": 0xff80 },
  float16: { nan: 0x7e00, inf: 0x7c00, "-inf": 0xfc00 },
};

/** The batch with one element replaced by a special value. */
export function withSpecial(
  batch: LogitsBatch,
  row: number,
  column: number,
  what: "nan" | "inf" | "-inf",
): LogitsBatch {
  const [data, values] = [batch.data.slice(), batch.values.slice()];
  data[row * batch.vocab + column] = specials[batch.dtype][what];
  values[row * batch.vocab + column] = specials.float32[what];
  return { ...batch, data, values };
}

export function rowBits(data: TensorData, row: number, width: number): TensorData {
  return data.subarray(row * width, (row + 1) * width);
}

export function assertOtherRowsSame(got: Outputs, clean: Outputs, poisoned: number, rows: number, what: string): void {
  const vocab = clean.gradLogits.length / rows;
  for (let i = 0; i < rows; i++) {
    if (i === poisoned) continue;
    for (const name of ["logprobs", "lse", "entropy"] as const) {
      assertSameBits(rowBits(got[name], i, 1), rowBits(clean[name], i, 1), `${what}: ${name} of row ${i}`);
    }
    const [gradient, before] = [rowBits(got.gradLogits, i, vocab), rowBits(clean.gradLogits, i, vocab)];
    assertSameBits(gradient, before, `${what}: gradient of row ${i}`);
  }
}

export function isNaN16(bits: number, dtype: FloatDType): boolean {
  return dtype === "bfloat16" ? (bits & 0x7fff) > 0x7f80 : (bits & 0x7fff) > 0x7c00;
}

export function assertAllNaN(data: TensorData, dtype: FloatDType, what: string): void {
  const every = Array.from(data).every((value) => (dtype === "float32" ? Number.isNaN(value) : isNaN16(value, dtype)));
  assert.ok(every, `${what}: not all NaN`);
}

export function checkFiniteRow(
  device: TestDevice,
  batch: LogitsBatch,
  scaling: Scaling,
  got: Outputs,
  row: number,
  what: string,
  gradScale = 1,
): void {
  const { vocab, dtype } = batch;
  const reference = softmaxRow(rowOf(batch, row), scaling);
  const id = batch.tokenIds[row]!;
  assertClose([got.logprobs[row]!], [logprobOf(reference, id)], logprobTolerance, `${what}: logprob`);
  assertClose([got.lse[row]!], [reference.lse], lseTolerance(scaling), `${what}: lse`);
  assertClose([got.entropy[row]!], [reference.entropy], entropyTolerance, `${what}: entropy`);
  const one = { ...batch, rows: 1, values: rowOf(batch, row), tokenIds: Int32Array.of(id) };
  const gradient = device.floats(tensor(rowBits(got.gradLogits, row, vocab), { dtype }));
  assertGradient(gradient, one, [reference], scaling, {
    gradLogprobs: [1],
    gradEntropy: [0.5],
    gradScale,
    fromSaved: true,
    name: "gradLogits of special rows",
    what,
  });
}

export const names = ["logprobs", "lse", "entropy", "gradLogits"] as const;

export function assertSameOutputs(got: Outputs, expected: Outputs, what: string): void {
  for (const name of names) assertSameBits(got[name], expected[name], `${name}, ${what}`);
}
