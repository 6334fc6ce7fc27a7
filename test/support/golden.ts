/** The golden numbers that scripts/golden.py writes. */
import { readFileSync } from "node:fs";

type Matrix = number[][];

export type Convention = "paper" | "verl" | "trl" | "mlx" | "openrlhf" | "drgrpo" | "rloo";

export interface GoldenGroup extends Record<Convention, (number | null)[]> {
  rewards: number[];
  mean: number;
  std0: number;
  std1: number | null;
}

export interface GoldenLoss {
  loss: number;
  dlogp: Matrix;
  per_token: Matrix;
  ratio: Matrix;
  clipfrac: number;
  kl?: Matrix;
}

export interface Golden {
  /** Seven steps; a prediction of null is an answer that could not be parsed. */
  genrm_n7: { gt: number; pred: number | null; reward: number }[];
  overlong_8192_4096: { L: number; pen: number }[];
  overlong_20480_4096: { L: number; pen: number }[];
  /** By `${group}|lam=${lambda}`. */
  advantages: Record<string, GoldenGroup>;
  policy_loss_inputs: { old: Matrix; logp: Matrix; A: number[]; mask: Matrix; ref: Matrix };
  policy_loss: Record<string, GoldenLoss>;
  end_to_end: {
    logits: Matrix;
    labels: number[];
    old: number[];
    rewards: number[];
    adv: number[];
    logp: number[];
    ratio: number[];
    loss: number;
    dlogp: number[];
    dlogits: Matrix;
  };
}

export const golden = readJson<Golden>("fapo_golden.json");

/** A file of test/fixtures. */
export function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../../../test/fixtures/${name}`, import.meta.url), "utf8")) as T;
}
