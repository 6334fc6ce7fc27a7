/**
 * The bars: how many times the floor an op may take on one core, per instruction set. They were measured with prototypes
 * of the kernels, out of place against a copy that asks for nothing ahead; 16-bit ops compute two exponentials per element
 * and are bound by arithmetic on one core.
 */
import type { Measurement } from "./harness.ts";

interface Bar {
  op: string;
  variant: string;
  dtype: string;
  avx512: number;
  avx2: number;
}

const bars: readonly Bar[] = [
  { op: "tokenLogprob", variant: "", dtype: "float32", avx512: 1.1, avx2: 1.7 },
  { op: "tokenLogprob", variant: "entropy", dtype: "float32", avx512: 1.25, avx2: 2.1 },
  { op: "tokenLogprob", variant: "", dtype: "bfloat16", avx512: 2.0, avx2: 3.5 },
  { op: "tokenLogprob", variant: "", dtype: "float16", avx512: 2.3, avx2: 3.5 },
  { op: "tokenLogprobBackward", variant: "out", dtype: "float32", avx512: 1.05, avx2: 1.2 },
  { op: "fusedPolicyLoss", variant: "in place", dtype: "float32", avx512: 1.45, avx2: 1.8 },
  { op: "fusedPolicyLoss", variant: "out", dtype: "float32", avx512: 1.5, avx2: 2.0 },
  { op: "fusedPolicyLoss", variant: "in place", dtype: "bfloat16", avx512: 3.3, avx2: 5.5 },
];

/** The bar and where the op is, in words; "" where there is no bar. */
export function barOf(result: Measurement, leastShare: number | undefined): string {
  if (leastShare === undefined) return "";
  const { plainCopy } = result;
  return percent(leastShare) + (plainCopy ? ` (plain copy ${percent(plainCopy.share)})` : "");
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(0)} %`;
}

/** The least share of the floor that is good enough; undefined where there is no bar: more threads, few rows. */
export function leastShare(measurement: Measurement, isa: string): number | undefined {
  const { op, variant, dtype, threads, bytes } = measurement;
  // What fits into a cache is not bound by memory.
  if (threads !== 1 || bytes < 64e6 || (isa !== "avx512" && isa !== "avx2")) return undefined;
  const bar = bars.find((bar) => bar.op === op && bar.variant === variant && bar.dtype === dtype);
  return bar && 1 / bar[isa];
}
