/** The definitions over a vocabulary, in float64, with no cleverness. */

export interface Scaling {
  temperature?: number | undefined;
  logitSoftcap?: number | undefined;
}

export interface SoftmaxRow {
  /** z = cap tanh(x / cap) / T, or x / T. */
  z: Float64Array;
  /** Of the softmax of z. */
  probabilities: Float64Array;
  max: number;
  /** ln sum exp(z - max) */
  logSum: number;
  lse: number;
  /** In nats. */
  entropy: number;
}

/** z of a row. -Infinity stays what it is, with a cap, too: it marks an entry that cannot be sampled. */
export function scaledLogits(row: ArrayLike<number>, { temperature = 1, logitSoftcap }: Scaling): Float64Array {
  const z = new Float64Array(row.length);
  for (let j = 0; j < z.length; j++) {
    const x = row[j]!;
    if (x === Number.POSITIVE_INFINITY) {
      z[j] = Number.NaN;
    } else if (x === Number.NEGATIVE_INFINITY || logitSoftcap === undefined) {
      z[j] = x / temperature;
    } else {
      z[j] = (logitSoftcap * Math.tanh(x / logitSoftcap)) / temperature;
    }
  }
  return z;
}

export function softmaxRow(row: ArrayLike<number>, scaling: Scaling): SoftmaxRow {
  const z = scaledLogits(row, scaling);
  let max = Number.NEGATIVE_INFINITY;
  for (const value of z) max = value > max || Number.isNaN(value) ? value : max;
  const probabilities = new Float64Array(z.length);
  let sum = 0;
  for (let j = 0; j < z.length; j++) {
    probabilities[j] = Math.exp(z[j]! - max);
    sum += probabilities[j]!;
  }
  const logSum = Math.log(sum);
  let entropy = 0;
  for (let j = 0; j < z.length; j++) {
    probabilities[j] = probabilities[j]! / sum;
    // p ln p is 0 at p = 0.
    if (probabilities[j] !== 0) entropy -= probabilities[j]! * (z[j]! - max - logSum);
  }
  return { z, probabilities, max, logSum, lse: max + logSum, entropy };
}

export function logprobOf({ z, max, logSum }: SoftmaxRow, id: number): number {
  return z[id]! - max - logSum;
}

/** d(gradLogprob * logprob[id] + gradEntropy * entropy) / d(row). */
export function gradientOfRow(
  row: ArrayLike<number>,
  id: number,
  scaling: Scaling,
  gradLogprob: number,
  gradEntropy = 0,
): Float64Array {
  const { temperature = 1, logitSoftcap } = scaling;
  const softmax = softmaxRow(row, scaling);
  const { probabilities, z, max, logSum, entropy } = softmax;
  const gradient = new Float64Array(row.length);
  for (let j = 0; j < gradient.length; j++) {
    const x = row[j]!;
    if (x === Number.NEGATIVE_INFINITY && !Number.isNaN(entropy)) continue;
    const p = probabilities[j]!;
    let dz = gradLogprob * ((j === id ? 1 : 0) - p);
    if (gradEntropy !== 0 && p !== 0) dz -= gradEntropy * p * (z[j]! - max - logSum + entropy);
    const capped = logitSoftcap === undefined ? 1 : 1 - Math.tanh(x / logitSoftcap) ** 2;
    gradient[j] = (dz * capped) / temperature;
  }
  return gradient;
}
