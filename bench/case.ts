/** What a benchmark is: one op with one set of options on one shape, what it must beat, and what it is compared with. */
import type { Device, Tensor } from "fapo-kernels";
import type { FloorKind } from "./floor.ts";

export type FloatDType = "float32" | "bfloat16" | "float16";
export const floatDTypes: readonly FloatDType[] = ["float32", "bfloat16", "float16"];

/** Rows and vocabulary of the logits. */
export type VocabShape = readonly [rows: number, vocab: number];

/** Another implementation of the same op, on the same inputs. */
export interface Peer {
  name: string;
  /** The peer does this many times less work than the op: slow ones are timed on a few rows, and scaled by rows. */
  scale: number;
  call(): void;
  /** Makes the inputs fresh again before each call, outside the timed part. */
  restore?: () => void;
  /** Runs the op and the peer and throws where they disagree. */
  check(): void;
}

/** Inputs that other processes can be given, and what the op makes of them. */
export interface Problem {
  kind: "tokenLogprob" | "policyLoss";
  logits: Tensor;
  tokenIds: Int32Array;
  /** Of the loss: per token. */
  oldLogprobs?: Float32Array;
  advantages?: Float32Array;
  gradScale?: number;
  /** Runs the op on fresh inputs. */
  results(): { logprobs: Tensor; gradLogits?: Tensor };
}

export interface Prepared {
  call(): void;
  /** Makes the inputs fresh again before each call, outside the timed part. */
  restore?: () => void;
  /** The large tensors, for the floor: what is read, and what is written where that is another. */
  moves?: { source: Tensor; target?: Tensor };
  peers: readonly Peer[];
  problem?: Problem;
}

export interface BenchCase {
  op: string;
  /** What is special about the options; "" for the defaults. */
  variant: string;
  shape: string;
  dtype: string;
  device: Device;
  /** Memory that has to move: every input read once, every output written once. */
  bytes: number;
  /** The floor that bounds the op; absent where the data are too small for memory to matter. */
  floor?: FloorKind;
  /** The call is so small that what it costs is being called. */
  overhead?: true;
  prepare(): Prepared;
}

export interface CaseOptions {
  device: Device;
  shapes: readonly VocabShape[];
  dtypes: readonly FloatDType[];
  /** Small ones of the cases that do not depend on `shapes`. */
  quick: boolean;
}

export interface OpBench {
  op: string;
  cases(options: CaseOptions): BenchCase[];
}

export const plainTypeScript = "plain TypeScript";

/** Throws unless |actual - expected| <= atol + rtol |expected| everywhere. */
export function expectClose(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { atol, rtol }: { atol: number; rtol: number },
): void {
  for (let i = 0; i < expected.length; i++) {
    const [got, want] = [actual[i]!, expected[i]!];
    if (!(Math.abs(got - want) <= atol + rtol * Math.abs(want))) {
      throw new Error(`${what}[${i}]: the op says ${got}, the other ${want}`);
    }
  }
}
