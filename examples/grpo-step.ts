/** One FAPO step on made-up data: two problems, four replies to each, five tokens a reply, a vocabulary of 1,000. */
import { cast, fapoAdvantage, fusedPolicyLoss, learningProgress, tensor, tokenLogprob } from "fapo-kernels";

const [groupSize, replies, replyLength, vocab] = [4, 8, 5, 1000];
const tokens = replies * replyLength;

// The verdicts: is the final answer right (a rule knows), and is a right answer flawed (a judge says)?
const correct = Uint8Array.of(1, 1, 1, 0, /**/ 1, 0, 0, 0);
const flawed = Int8Array.of(0, 0, 1, 0, /**/ 1, 0, 0, 0);

// Rewards 1 (right), 0 (right but flawed) and -1 (wrong), then relative to the replies to the same problem.
const { rewards, advantages } = fapoAdvantage({ correct, flawed, groupSize, flawedPenalty: 1 });
const { groups } = learningProgress({ correct, flawed, groupSize, flawedPenalty: 1 });
for (const [g, { rho, shiftPoint, pastShift }] of groups.entries()) {
  const own = [g * groupSize, (g + 1) * groupSize] as const;
  console.log(`problem ${g}: rho ${rho.toFixed(2)}, ${pastShift ? "past" : "not past"} ${shiftPoint}`);
  console.log(`  rewards    ${table(rewards.data.subarray(...own), 0)}`);
  console.log(`  advantages ${table(advantages.data.subarray(...own), 3)}`);
}

// The logits of the policy that sampled, and those after it has moved a little; bfloat16, as a model would give them.
const sampled = madeUp(tokens * vocab, 0);
const moved = madeUp(tokens * vocab, 0.5);
const shape = [tokens, vocab];
const tokenIds = Int32Array.from({ length: tokens }, (_, i) => (i * 37) % vocab);
const { logprobs: oldLogprobs } = tokenLogprob({ logits: cast(tensor(sampled, { shape }), "bfloat16"), tokenIds });

// The loss, its gradient and what happened on the way, in one pass over the logits.
const { loss, gradLogits, metrics } = fusedPolicyLoss({
  logits: cast(tensor(moved, { shape }), "bfloat16"),
  tokenIds,
  oldLogprobs,
  advantages,
  cuSeqlens: Int32Array.from({ length: replies + 1 }, (_, i) => i * replyLength),
});
console.log(`loss ${loss.item().toFixed(6)} over ${metrics.tokens.item()} tokens`);
console.log(`gradient: a ${gradLogits.dtype} tensor of ${gradLogits.shape.join(" x ")}`);
console.log(`ratio: mean ${metrics.ratioMean.item().toFixed(4)}, largest ${metrics.ratioMax.item().toFixed(4)}`);
console.log(`clipped: ${(100 * metrics.clipFractionHigh.item()).toFixed(1)} % above`);

/** Smooth numbers in place of a model; `drift` moves them. */
function madeUp(length: number, drift: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => 2 * Math.sin(i * 0.7 + (drift * (i % 11)) / 11));
}

function table(values: Iterable<number>, digits: number): string {
  return Array.from(values, (value) => value.toFixed(digits).padStart(7)).join("");
}
