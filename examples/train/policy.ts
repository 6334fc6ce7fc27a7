/**
 * The policy: 2,762 parameters, forward and backward by hand. The logits of a token are
 * `W relu(total[a] + addend[b] + crib[c] + step[d]) + bias`; the three steps of a reply share all weights but the last
 * embedding. Where its gradient comes from is the trainer's business.
 */
import { normal, type Random } from "./random.ts";
import { replyLength, vocab } from "./task.ts";

const hidden = 64;
/** Embedding rows that one token adds up. */
export const inputsPerToken = 4;
const embeddings = 3 * vocab + replyLength;

const outputStart = embeddings * hidden; // W: [vocab, hidden]
const biasStart = outputStart + vocab * hidden;
export const parameterCount: number = biasStart + vocab;

/** What one forward pass over some tokens reads and leaves for the backward pass. */
export interface Activations {
  /** `[tokens, inputsPerToken]`: rows of the embedding table. */
  inputs: Int32Array;
  /** `[tokens, hidden]`, after the ReLU. */
  hidden: Float32Array;
  /** `[tokens, vocab]` */
  logits: Float32Array;
}

export function newActivations(tokens: number): Activations {
  return {
    inputs: new Int32Array(tokens * inputsPerToken),
    hidden: new Float32Array(tokens * hidden),
    logits: new Float32Array(tokens * vocab),
  };
}

/** Writes what the policy sees at `step` of a reply: the total so far, the next addend, the crib, the step itself. */
export function setInputs(
  { inputs }: Activations,
  token: number,
  total: number,
  addend: number,
  crib: number,
  step: number,
): void {
  const at = token * inputsPerToken;
  inputs[at] = total;
  inputs[at + 1] = vocab + addend;
  inputs[at + 2] = 2 * vocab + crib;
  inputs[at + 3] = 3 * vocab + step;
}

export function newPolicy(random: Random): Float32Array {
  const parameters = new Float32Array(parameterCount);
  for (let i = 0; i < biasStart; i++) parameters[i] = normal(random) * (i < outputStart ? 0.4 : 0.1);
  return parameters;
}

/** Logits of tokens `begin` to `end`. */
export function forward(parameters: Float32Array, activations: Activations, begin: number, end: number): void {
  const { inputs, hidden: units, logits } = activations;
  for (let token = begin; token < end; token++) {
    const [a, b, c, d] = embeddingStarts(inputs, token);
    const unit = token * hidden;
    for (let j = 0; j < hidden; j++) {
      const sum = parameters[a + j]! + parameters[b + j]! + parameters[c + j]! + parameters[d + j]!;
      units[unit + j] = Math.max(sum, 0);
    }
    for (let v = 0; v < vocab; v++) {
      const weight = outputStart + v * hidden;
      let sum = parameters[biasStart + v]!;
      for (let j = 0; j < hidden; j++) sum += units[unit + j]! * parameters[weight + j]!;
      logits[token * vocab + v] = sum;
    }
  }
}

const gradUnits = new Float32Array(hidden);

/**
 * Adds to `gradients` what tokens `begin` to `end` contribute.
 *
 * @param gradLogits `[end - begin, vocab]`, as an op returned it
 */
export function backward(
  parameters: Float32Array,
  activations: Activations,
  gradLogits: Float32Array,
  begin: number,
  end: number,
  gradients: Float32Array,
): void {
  const { inputs, hidden: units } = activations;
  for (let token = begin; token < end; token++) {
    const unit = token * hidden;
    gradUnits.fill(0);
    for (let v = 0; v < vocab; v++) {
      const grad = gradLogits[(token - begin) * vocab + v]!;
      const weight = outputStart + v * hidden;
      gradients[biasStart + v]! += grad;
      for (let j = 0; j < hidden; j++) {
        gradients[weight + j]! += grad * units[unit + j]!;
        gradUnits[j]! += grad * parameters[weight + j]!;
      }
    }
    const [a, b, c, d] = embeddingStarts(inputs, token);
    for (let j = 0; j < hidden; j++) {
      if (units[unit + j]! <= 0) continue;
      const grad = gradUnits[j]!;
      gradients[a + j]! += grad;
      gradients[b + j]! += grad;
      gradients[c + j]! += grad;
      gradients[d + j]! += grad;
    }
  }
}

function embeddingStarts(inputs: Int32Array, token: number): [number, number, number, number] {
  const at = token * inputsPerToken;
  return [inputs[at]! * hidden, inputs[at + 1]! * hidden, inputs[at + 2]! * hidden, inputs[at + 3]! * hidden];
}
