/**
 * Deterministic inputs that look like those of training.
 *
 * Logits: per row, background N(0, 1), and 20 candidates at random places whose logits fall from a level that is uniform
 * in 12..18, by 1.2 from one to the next. With a vocabulary of 151,936 the background weighs e^12.4, so rows lie between
 * open and nearly certain, as a language model's do. Token ids are sampled from the softmax of their row, as a policy
 * samples them: the chosen token is then rarely far below the top.
 */
import { cast, type Device, type Tensor, tensor, toDevice, tokenLogprob, zeros } from "fapo-kernels";
import type { FloatDType, VocabShape } from "./case.ts";
import { overwrite, read } from "./place.ts";

/** Uniform in [0, 1): mulberry32. */
export function rng(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** N(0, 1): Box and Muller. */
export function normal(random: () => number): () => number {
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

export interface VocabBatch {
  /** On the device. */
  logits: Tensor;
  tokenIds: Int32Array;
  /** Undoes what an op in place did to the logits. */
  restore(): void;
}

/** Everything that the loss takes besides the logits. */
export interface PolicyBatch {
  oldLogprobs: Float32Array;
  /** Per response. */
  advantages: Float32Array;
  cuSeqlens: Int32Array;
}

const candidates = 20;
/** Of more rows, the first ones come again: a GPU gets more than one would want to wait for. */
const distinctRows = 2048;
const poolSize = 1 << 20;
let pool: Float32Array | undefined;

let wide: { key: string; values: Float32Array; tokenIds: Int32Array } | undefined;
let current: { key: string; batch: VocabBatch } | undefined;

/** The batch of a shape, dtype and device; the last one is kept, for cases come in that order. */
export function vocabBatch(shape: VocabShape, dtype: FloatDType, device: Device): VocabBatch {
  const key = `${shape} ${dtype} ${device}`;
  if (current?.key === key) {
    current.batch.restore();
    return current.batch;
  }
  current = undefined;
  globalThis.gc?.();
  const [rows, vocab] = shape;
  const distinct: VocabShape = [Math.min(rows, distinctRows), vocab];
  const { values, tokenIds } = wideBatch(distinct);
  const pristine = toDevice(repeated(cast(tensor(values, { shape: distinct }), dtype), rows), device);
  const logits = cast(pristine, dtype);
  const restore = (): void => overwrite(logits, pristine);
  const batch = { logits, tokenIds: new Int32Array(rows).map((_, row) => tokenIds[row % distinctRows]!), restore };
  current = { key, batch };
  return batch;
}

/** Responses of 64 tokens, with advantages of both signs and none of zero: no row may be skipped. */
export function policyBatch({ logits, tokenIds }: VocabBatch): PolicyBatch {
  const { logprobs } = tokenLogprob({ logits, tokenIds });
  return policyBatchAround(read(logprobs) as Float32Array, Math.min(tokenIds.length, 64));
}

/** Every other token: as a batch whose prompts or whose padding weigh as much as its responses. */
export function halfMask(rows: number): Uint8Array {
  return new Uint8Array(rows).map((_, row) => (row % 2 ? 0 : 1));
}

/**
 * The old policy differs from the current one by N(0, 0.02) in logprob: the ratio stays inside the clip range, so that
 * every token has a gradient and no work is saved.
 */
export function policyBatchAround(logprobs: Float32Array, length: number): PolicyBatch {
  const random = normal(rng(5));
  const responses = Math.ceil(logprobs.length / length);
  return {
    oldLogprobs: logprobs.map((logprob) => logprob + 0.02 * random()),
    advantages: Float32Array.from({ length: responses }, (_, i) => (i % 2 ? -0.8 : 1.1)),
    cuSeqlens: Int32Array.from({ length: responses + 1 }, (_, i) => Math.min(i * length, logprobs.length)),
  };
}

/** The rows of a matrix, over and over. */
function repeated(matrix: Tensor, rows: number): Tensor {
  const [own, columns] = matrix.shape as [number, number];
  if (own === rows) return matrix;
  const all = zeros([rows, columns], { dtype: matrix.dtype });
  for (let row = 0; row < rows; row += own) {
    all.data.set(matrix.data.subarray(0, (rows - row) * columns), row * columns);
  }
  return all;
}

function wideBatch(shape: VocabShape): { values: Float32Array; tokenIds: Int32Array } {
  const key = `${shape}`;
  if (wide?.key === key) return wide;
  wide = undefined;
  const [rows, vocab] = shape;
  const random = rng(1);
  const gauss = normal(random);
  pool ??= new Float32Array(poolSize).map(gauss);
  const values = new Float32Array(rows * vocab);
  const tokenIds = new Int32Array(rows);
  for (let row = 0; row < rows; row++) {
    const logits = values.subarray(row * vocab, (row + 1) * vocab);
    // A slice of the pool from a random place, wrapped around: as good as fresh numbers, and quick to make.
    for (let done = 0, from = Math.floor(random() * poolSize); done < vocab; from = 0) {
      const part = pool.subarray(from, from + vocab - done);
      logits.set(part, done);
      done += part.length;
    }
    const level = 12 + 6 * random();
    for (let k = 0; k < Math.min(candidates, vocab); k++) {
      logits[Math.floor(random() * vocab)] = level - 1.2 * k + 0.3 * gauss();
    }
    tokenIds[row] = sample(logits, random());
  }
  wide = { key, values, tokenIds };
  return wide;
}

/** A token of the softmax of the logits, none of which is far above 20, at `u` of its cumulative distribution. */
function sample(logits: Float32Array, u: number): number {
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit);
  let rest = u * sum;
  for (let token = 0; token < logits.length; token++) {
    rest -= Math.exp(logits[token]!);
    if (rest <= 0) return token;
  }
  return logits.length - 1;
}

/** Verdicts of `responses` sampled answers: 60 % right, a third of those flawed, some without a verdict. */
export function verdicts(responses: number): { correct: Uint8Array; flawed: Int8Array; responseLengths: Int32Array } {
  const random = rng(9);
  return {
    correct: new Uint8Array(responses).map(() => (random() < 0.6 ? 1 : 0)),
    flawed: new Int8Array(responses).map(() => (random() < 1 / 3 ? 1 : random() < 0.05 ? -1 : 0)),
    responseLengths: new Int32Array(responses).map(() => Math.floor(500 + 7600 * random())),
  };
}
