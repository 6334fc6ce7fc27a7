/** More than 2^31 and 2^32 logits in one call, and more rows than 65,535: sampled rows against the CPU. */
import assert from "node:assert/strict";
import {
  cast,
  cudaMemory,
  fusedPolicyLoss,
  type Tensor,
  type TensorData,
  tensor,
  tokenLogprob,
  tokenLogprobBackward,
  zeros,
} from "fapo-kernels";
import { devicePointer, fromDevicePointer } from "fapo-kernels/unsafe";
import { normalBatch } from "../support/logits.ts";
import { assertClose, rng } from "../support.ts";
import { entropyTolerance, logprobTolerance, lseTolerance } from "../tolerances.ts";
import { count, cpu, emulated, gpu, report, test } from "./parts.ts";

const dtype = "bfloat16";

/**
 * Logits made of few chunks of rows, uploaded once and copied on the GPU: row i is row i % chunk of one of them, which
 * one changes from chunk to chunk without a period that a lost bit of an offset could match.
 */
class Chunked {
  readonly #chunk: number;
  readonly #hosts: TensorData[];
  readonly vocab: number;
  readonly rows: number;
  readonly logits: Tensor;

  constructor(rows: number, vocab: number, chunk: number) {
    this.rows = rows;
    this.vocab = vocab;
    this.#chunk = chunk;
    this.#hosts = [1, 2, 3].map((seed) => normalBatch(chunk, vocab, dtype, { seed }).data);
    this.logits = zeros([rows, vocab], { dtype, device: gpu.name });
    const sources = this.#hosts.map((data) => gpu.tensor(data, { shape: [chunk, vocab], dtype }));
    for (let first = 0; first < rows; first += chunk) {
      const height = Math.min(chunk, rows - first);
      const part = fromDevicePointer({ ...devicePointer(sources[this.#source(first)]!), shape: [height, vocab] });
      const to = rowsOf(this.logits, first, height);
      cast(part, dtype, { out: to });
      part.dispose();
      to.dispose();
    }
    for (const source of sources) source.dispose();
  }

  #source(row: number): number {
    const number = Math.floor(row / this.#chunk);
    return (number * number + (number >> 3)) % this.#hosts.length;
  }

  /** Row i as it is on the host. */
  row(i: number): Tensor {
    const at = (i % this.#chunk) * this.vocab;
    const data = this.#hosts[this.#source(i)]!.slice(at, at + this.vocab) as Uint16Array;
    return tensor(data, { shape: [1, this.vocab], dtype });
  }

  /** The first and the last, those around every 2^31st element, and others. */
  sample(): number[] {
    const random = rng(this.rows);
    const around = [2 ** 31, 2 ** 32, 2 ** 33].map((element) => Math.floor(element / this.vocab));
    const drawn = Array.from({ length: 20 }, () => Math.floor(random() * this.rows));
    const all = [0, 1, ...around.flatMap((i) => [i - 1, i, i + 1]), 65_535, 65_536, this.rows - 1, ...drawn];
    return [...new Set(all)].filter((i) => i < this.rows);
  }
}

/** Rows of a tensor, as a tensor that shares its memory. */
function rowsOf(source: Tensor, first: number, height: number): Tensor {
  const { address, stream: _, ...rest } = devicePointer(source);
  const vocab = source.shape[1]!;
  return fromDevicePointer({ ...rest, address: address + BigInt(first) * BigInt(vocab * 2), shape: [height, vocab] });
}

function rowOf(source: Tensor, i: number): number[] {
  using one = rowsOf(source, i, 1);
  return gpu.floats(one);
}

function check(rows: number, vocab: number, chunk: number): void {
  const batch = new Chunked(rows, vocab, chunk);
  const { logits } = batch;
  const random = rng(vocab);
  const ids = Int32Array.from({ length: rows }, () => Math.floor(random() * vocab));
  const draw = (): Float32Array => Float32Array.from({ length: rows }, () => 4 * random() - 2);
  const [gradLogprobs, gradEntropy, advantages] = [draw(), draw(), draw()];
  const one = (values: Float32Array, i: number): Float32Array => values.subarray(i, i + 1);
  const rounding = { atol: 1e-6, rtol: 2 ** -7 }; // one step of bfloat16

  const { logprobs, lse, entropy } = tokenLogprob({ logits, tokenIds: ids, entropy: true });
  const saved = { logprobs, lse, entropy: entropy! };
  const [gotLogprobs, gotLse, gotEntropy] = [logprobs, lse, entropy!].map((each) => gpu.read(each)) as Float32Array[];
  const backward = tokenLogprobBackward({ logits, tokenIds: ids, ...saved, gradLogprobs, gradEntropy });
  for (const i of batch.sample()) {
    const call = { logits: batch.row(i), tokenIds: ids.subarray(i, i + 1) };
    const expected = tokenLogprob({ ...call, entropy: true });
    assertClose(one(gotLogprobs!, i), cpu.floats(expected.logprobs), logprobTolerance, `logprob of row ${i}`);
    assertClose(one(gotLse!, i), cpu.floats(expected.lse), lseTolerance({}), `lse of row ${i}`);
    assertClose(one(gotEntropy!, i), cpu.floats(expected.entropy!), entropyTolerance, `entropy of row ${i}`);
    const { gradLogits } = tokenLogprobBackward({
      ...call,
      logprobs: expected.logprobs,
      lse: expected.lse,
      entropy: expected.entropy!,
      gradLogprobs: one(gradLogprobs, i),
      gradEntropy: one(gradEntropy, i),
    });
    assertClose(rowOf(backward.gradLogits, i), cpu.floats(gradLogits), rounding, `gradient of row ${i}`);
  }
  for (const each of [logprobs, lse, entropy!, backward.gradLogits]) each.dispose();

  const gradScale = 1024; // keeps the gradient of a mean over many tokens away from the smallest numbers
  const globalTokens = 1024;
  const fused = fusedPolicyLoss({ logits, tokenIds: ids, advantages, inPlace: true, gradScale, globalTokens });
  const fusedLogprobs = gpu.read(fused.logprobs) as Float32Array;
  for (const i of batch.sample()) {
    const call = { logits: batch.row(i), tokenIds: ids.subarray(i, i + 1), advantages: one(advantages, i) };
    const expected = fusedPolicyLoss({ ...call, gradScale, globalTokens });
    assertClose(one(fusedLogprobs, i), cpu.floats(expected.logprobs), logprobTolerance, `logprob of row ${i}`);
    assertClose(rowOf(fused.gradLogits, i), cpu.floats(expected.gradLogits), rounding, `gradient of row ${i}`);
  }
  report(`${rows} x ${vocab}`, { logits: rows * vocab, sampledRows: batch.sample().length });
  logits.dispose();
}

const free = emulated ? 0 : cudaMemory(gpu.name).free;
/** A test that takes two batches of logits, and some. */
function large(rows: number, vocab: number, chunk: number, what: string): void {
  const skip = !emulated && 4.2 * rows * vocab > free ? `${free} bytes are free` : false;
  test(`${rows} x ${vocab} in bfloat16: ${what}`, { skip }, () => check(rows, vocab, chunk));
}

large(count(28_300, 50), count(151_936, 8200), count(61, 7), "beyond 2^32 logits, through rings");
large(count(16_400, 20), count(131_071, 4099), count(61, 7), "beyond 2^31, rows that are not aligned");
large(count(70_001, 70), count(1003, 35), count(61, 7), "beyond 65,535 rows, short ones");

test("nothing is left of it", () => {
  assert.ok(cudaMemory(gpu.name).used < 2 ** 30);
});
