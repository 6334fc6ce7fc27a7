/**
 * The base model: supervised steps on noisy demonstrations. Reinforcement learning needs a policy that is right
 * sometimes; this one adds correctly in about one step of three and copies the crib now and then.
 */
import { type FusedPolicyLossResult, fusedPolicyLoss, tensor } from "fapo-kernels";
import { Adam } from "./adam.ts";
import { backward, newPolicy, parameterCount } from "./policy.ts";
import { integer, type Random, randomStream } from "./random.ts";
import { type Choose, Rollouts } from "./rollout.ts";
import { nextTotal, replyLength, vocab } from "./task.ts";

/** Share of demonstrated steps that add correctly, and share of last steps that copy the crib; the rest is random. */
const rightStep = 0.3;
const copiedCrib = 0.1;
const demonstrationsPerStep = 256;

export interface WarmStartOptions {
  seed: number;
  steps: number;
  learningRate: number;
  cribRate: number;
  /** Called after every step; false stops. Awaited, so that signals are heard. */
  onStep: (step: number) => Promise<boolean>;
}

/** @returns the parameters */
export async function warmStart({
  seed,
  steps,
  learningRate,
  cribRate,
  onStep,
}: WarmStartOptions): Promise<Float32Array> {
  const random = randomStream(seed, "demonstrations");
  const parameters = newPolicy(randomStream(seed, "policy"));
  const gradients = new Float32Array(parameterCount);
  const adam = new Adam(parameterCount, learningRate);
  const rollouts = new Rollouts(demonstrationsPerStep, 1);
  const tokens = rollouts.tokenIds.length;
  const batch = {
    logits: tensor(rollouts.activations.logits, { shape: [tokens, vocab] }),
    tokenIds: rollouts.tokenIds,
    // With advantage 1 and no old log-probs the policy loss has the gradient of the cross-entropy: supervised learning.
    advantages: new Float32Array(tokens).fill(1),
  };
  let loss: FusedPolicyLossResult | undefined;

  for (let step = 0; step < steps; step++) {
    rollouts.sample(parameters, random, cribRate, demonstration(random));
    loss = fusedPolicyLoss({ ...batch, ...(loss && { out: loss }) });
    backward(parameters, rollouts.activations, loss.gradLogits.data as Float32Array, 0, tokens, gradients);
    adam.step(parameters, gradients);
    if (!(await onStep(step + 1))) break;
  }
  return parameters;
}

function demonstration(random: Random): Choose {
  return (_logits, _at, problem, total, step) => {
    const kind = random();
    if (kind < rightStep) return nextTotal(total, problem, step);
    if (step === replyLength - 1 && kind < rightStep + copiedCrib) return problem.crib;
    return integer(random, vocab);
  };
}
