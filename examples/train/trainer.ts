/**
 * One step of FAPO, or of GRPO, which is FAPO with a penalty of 0: sample, judge, turn verdicts into advantages, and
 * follow the gradient of the clipped loss. What lies between the logits and their gradient is all the package's.
 */
import {
  type Device,
  type FapoAdvantageResult,
  type FusedPolicyLossResult,
  fapoAdvantage,
  fusedPolicyLoss,
  type Tensor,
  type TokenLogprobResult,
  tensor,
  toDevice,
  tokenLogprob,
  type UnknownVerdict,
} from "fapo-kernels";
import type { Flags } from "fapo-kernels/genrm";
import { Adam } from "./adam.ts";
import type { Judge } from "./judge.ts";
import { Monitor } from "./monitor.ts";
import { backward, forward, parameterCount } from "./policy.ts";
import { type Random, randomStream } from "./random.ts";
import { judgedProgress, type StepRecord, trueProgress } from "./record.ts";
import { type Choose, Rollouts, sampling } from "./rollout.ts";
import { replyLength, vocab } from "./task.ts";

export interface TrainerOptions {
  /** Where to start; copied, not changed. */
  parameters: Float32Array;
  seed: number;
  /** Lambda; 0 is GRPO. */
  flawedPenalty: number;
  /** The lambda that `pastShiftShare` is counted for: FAPO's, for GRPO, too. */
  reportedPenalty: number;
  prompts: number;
  groupSize: number;
  learningRate: number;
  minibatches: number;
  cribRate: number;
  judge: Judge;
  /** What counts where the judge has no verdict. */
  unknownVerdict: UnknownVerdict;
  device: Device;
}

/** A part of the batch that gets an update of its own: whole groups. */
interface Minibatch {
  begin: number; // tokens
  end: number;
  logits: Tensor; // [end - begin, vocab], a view of the batch's
  tokenIds: Int32Array;
  cuSeqlens: Int32Array;
  firstSequence: number;
  endSequence: number;
  // What the ops returned the first time is what they write to from then on.
  advantages: FapoAdvantageResult | undefined;
  loss: FusedPolicyLossResult | undefined;
}

export class Trainer {
  readonly parameters: Float32Array;
  readonly rollouts: Rollouts;
  /** `[S]`, int8: what the judge said. */
  readonly verdicts: Int8Array;
  readonly #options: TrainerOptions;
  readonly #problems: Random;
  readonly #choose: Choose;
  readonly #adam: Adam;
  readonly #gradients = new Float32Array(parameterCount);
  readonly #logits: Tensor;
  readonly #minibatches: Minibatch[];
  readonly #monitor: Monitor;
  readonly #advantages: Float32Array; // [S]
  #rolloutLogprobs: TokenLogprobResult | undefined;
  #step = 0;

  constructor(options: TrainerOptions) {
    this.#options = options;
    this.parameters = options.parameters.slice();
    this.rollouts = new Rollouts(options.prompts, options.groupSize);
    this.verdicts = new Int8Array(this.rollouts.sequences);
    this.#monitor = new Monitor(options);
    this.#advantages = new Float32Array(this.rollouts.sequences);
    this.#problems = randomStream(options.seed, "problems");
    this.#choose = sampling(randomStream(options.seed, "sampling"));
    this.#adam = new Adam(parameterCount, options.learningRate);
    const { logits } = this.rollouts.activations;
    this.#logits = tensor(logits, { shape: [logits.length / vocab, vocab] });
    this.#minibatches = splitGroups(this.rollouts, options.prompts, Math.min(options.minibatches, options.prompts));
  }

  async step(): Promise<StepRecord> {
    const { judge, device, reportedPenalty, cribRate } = this.#options;
    const { rollouts, verdicts } = this;
    rollouts.sample(this.parameters, this.#problems, cribRate, this.#choose);
    const judged = judge.judge(rollouts);
    this.#rolloutLogprobs = tokenLogprob({
      logits: toDevice(this.#logits, device),
      tokenIds: rollouts.tokenIds,
      device,
      ...(this.#rolloutLogprobs && { out: this.#rolloutLogprobs }),
    });

    const oldLogprobs = floats(this.#rolloutLogprobs.logprobs);
    const flags: Flags[] = [];
    for (const minibatch of this.#minibatches) {
      // Its verdicts alone are waited for: the others are still being judged while it is learnt from. The order is
      // always the same, so that it is no matter who answers first.
      while (flags.length * rollouts.groupSize < minibatch.endSequence) {
        const group = await judged[flags.length]!;
        verdicts.set(group.flawed, flags.length * rollouts.groupSize);
        flags.push(group);
      }
      this.#setAdvantages(minibatch);
      this.#update(minibatch, oldLogprobs);
    }

    const { metrics } = this.#minibatches.at(-1)!.loss!;
    const { progress, ...monitored } = this.#monitor.step(rollouts, flags, verdicts);
    return {
      step: ++this.#step,
      ...trueProgress(rollouts, this.#advantages, reportedPenalty),
      ...judgedProgress(rollouts, verdicts, this.#advantages, progress),
      entropy: metrics.entropy.item(),
      clipFraction: metrics.clipFractionLow.item() + metrics.clipFractionHigh.item(),
      ...monitored,
    };
  }

  #setAdvantages(minibatch: Minibatch): void {
    const { device, groupSize, flawedPenalty, unknownVerdict } = this.#options;
    const { firstSequence, endSequence } = minibatch;
    minibatch.advantages = fapoAdvantage({
      correct: this.rollouts.correct.subarray(firstSequence, endSequence),
      flawed: this.verdicts.subarray(firstSequence, endSequence),
      unknownVerdict,
      groupSize,
      flawedPenalty,
      device,
      ...(minibatch.advantages && { out: minibatch.advantages }),
    });
    this.#advantages.set(floats(minibatch.advantages.advantages), firstSequence);
  }

  #update(minibatch: Minibatch, oldLogprobs: Float32Array): void {
    const { device } = this.#options;
    const { begin, end, cuSeqlens, firstSequence, endSequence } = minibatch;
    const { activations } = this.rollouts;
    // The policy has moved since the rollout, for all but the first minibatch.
    forward(this.parameters, activations, begin, end);
    minibatch.loss = fusedPolicyLoss({
      logits: toDevice(minibatch.logits, device),
      tokenIds: minibatch.tokenIds,
      oldLogprobs: oldLogprobs.subarray(begin, end),
      advantages: this.#advantages.subarray(firstSequence, endSequence),
      cuSeqlens,
      entropy: true,
      device,
      ...(minibatch.loss && { out: minibatch.loss }),
    });
    backward(this.parameters, activations, floats(minibatch.loss.gradLogits), begin, end, this.#gradients);
    this.#adam.step(this.parameters, this.#gradients);
  }
}

function splitGroups(rollouts: Rollouts, prompts: number, parts: number): Minibatch[] {
  return Array.from({ length: parts }, (_, part) => {
    const firstSequence = Math.floor((part * prompts) / parts) * rollouts.groupSize;
    const endSequence = Math.floor(((part + 1) * prompts) / parts) * rollouts.groupSize;
    const [begin, end] = [firstSequence * replyLength, endSequence * replyLength];
    return {
      begin,
      end,
      logits: tensor(rollouts.activations.logits.subarray(begin * vocab, end * vocab), { shape: [end - begin, vocab] }),
      tokenIds: rollouts.tokenIds.subarray(begin, end),
      cuSeqlens: Int32Array.from({ length: endSequence - firstSequence + 1 }, (_, i) => i * replyLength),
      firstSequence,
      endSequence,
      advantages: undefined,
      loss: undefined,
    };
  });
}

/** The elements of a float32 tensor, on the host. */
function floats(source: Tensor): Float32Array {
  return toDevice(source, "cpu").data as Float32Array;
}
