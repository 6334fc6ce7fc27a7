/** All benchmarks, and the shapes they run on. */
import type { BenchCase, OpBench, VocabShape } from "./case.ts";
import { castBench } from "./cast.bench.ts";
import { fapoAdvantageBench } from "./fapoAdvantage.bench.ts";
import { fapoPenaltyBench } from "./fapoPenalty.bench.ts";
import { fusedPolicyLossBench } from "./fusedPolicyLoss.bench.ts";
import { groupAdvantageBench } from "./groupAdvantage.bench.ts";
import { policyLossBench } from "./policyLoss.bench.ts";
import { tokenLogprobBench } from "./tokenLogprob.bench.ts";

export const ops: readonly OpBench[] = [
  tokenLogprobBench,
  fusedPolicyLossBench,
  castBench,
  policyLossBench,
  fapoPenaltyBench,
  groupAdvantageBench,
  fapoAdvantageBench,
];

/** Vocabularies of Qwen 2.5, Llama 3 and Llama 2; buffers beyond the caches, then few rows. */
export const shapes: readonly VocabShape[] = [
  [512, 151936],
  [512, 128256],
  [2048, 32000],
  [8, 151936],
  [4, 151936],
  [2, 151936],
  [1, 151936],
];
/** For GPUs: micro-batches of 4,096 and 16,384 tokens, then few rows. */
export const cudaShapes: readonly VocabShape[] = [
  [16384, 151936],
  [4096, 151936],
  [8192, 128256],
  [16384, 32000],
  [64, 151936],
  [8, 151936],
  [1, 151936],
];
/** For emulated GPUs, which take seconds for what a GPU does in microseconds. */
export const emulatedShapes: readonly VocabShape[] = [
  [17, 1003],
  [1, 512],
];
export const quickShapes: readonly VocabShape[] = [
  [32, 32000],
  [1, 151936],
];

/** Cases on the same logits one after the other: they are made once, and only one batch is held. */
export function inOrderOfData(cases: readonly BenchCase[]): BenchCase[] {
  const groups = new Map<string, BenchCase[]>();
  for (const one of cases) {
    const key = `${one.shape} ${one.dtype}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()].flat();
}
