/** One fixed call of each reward, advantage and loss op, large enough to be shared out to threads, and its bits. */
import { createHash } from "node:crypto";
import { fapoAdvantage, fapoPenalty, groupAdvantage, policyLoss } from "fapo-kernels";
import { normal, rng, type TestDevice } from "../support.ts";
import { bitsOf, integer, offsetsOf, times } from "./ops.ts";

const random = rng(70);
const gaussian = normal(random);
const groups = 1500;
const sizes = times(groups, () => integer(random, 0, 12));
const sequences = sizes.reduce((sum, size) => sum + size, 0);
const groupOffsets = Int32Array.from(offsetsOf(sizes));
const lengths = times(sequences, () => integer(random, 0, 16));
const cuSeqlens = Int32Array.from(offsetsOf(lengths));
const tokens = cuSeqlens[sequences]!;

const correct = Uint8Array.from(times(sequences, () => integer(random, 0, 1)));
const flawed = Int8Array.from(times(sequences, () => integer(random, -1, 1)));
const rewards = Float32Array.from(times(sequences, gaussian));
const groupIds = Int32Array.from(times(sequences, () => integer(random, 0, groups - 1)));
const valid = Uint8Array.from(times(sequences, () => integer(random, 0, 4)));
const logprobs = Float32Array.from(times(tokens, () => -Math.abs(gaussian())));
const oldLogprobs = logprobs.map((value) => value + 0.3 * gaussian());
const refLogprobs = logprobs.map((value) => value + 0.5 * gaussian());
const responseMask = Uint8Array.from(times(tokens, () => integer(random, 0, 5)));
const weights = Float32Array.from(times(sequences, () => Math.exp(gaussian())));

/** A hash of every bit that the ops give, one per call. */
export function digests(device: TestDevice): string[] {
  const shared = { device: device.name };
  const batch = {
    logprobs,
    oldLogprobs,
    refLogprobs,
    responseMask,
    cuSeqlens,
    klEstimator: "k3",
    klCoef: 0.1,
  } as const;
  const results = [
    fapoPenalty({ correct, flawed, responseLengths: lengths, overlong: { maxLength: 16, buffer: 8 }, ...shared }),
    groupAdvantage({ rewards, groupOffsets, valid, ...shared }),
    groupAdvantage({ rewards, groupIds, groups, valid, scale: "batch-std", ...shared }),
    fapoAdvantage({ correct, flawed, groupOffsets, unknownVerdict: "exclude", ...shared }),
    policyLoss({ ...batch, advantages: rewards, ...shared }),
    policyLoss({
      ...batch,
      advantages: rewards,
      importanceWeights: weights,
      lossAggMode: "seq-mean-token-mean",
      ...shared,
    }),
  ];
  return results.map((result) => {
    const hash = createHash("sha256");
    for (const [name, bits] of bitsOf(device, result)) {
      hash.update(name).update(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength));
    }
    return hash.digest("hex");
  });
}
