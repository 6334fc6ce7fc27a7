/** Adam (arXiv 1412.6980), without weight decay. */

const decay1 = 0.9;
const decay2 = 0.999;
const epsilon = 1e-8;

export class Adam {
  readonly #learningRate: number;
  readonly #mean: Float32Array;
  readonly #square: Float32Array;
  #steps = 0;

  constructor(parameters: number, learningRate: number) {
    this.#learningRate = learningRate;
    this.#mean = new Float32Array(parameters);
    this.#square = new Float32Array(parameters);
  }

  /** Moves the parameters against the gradients, and sets the gradients to 0 for the next step. */
  step(parameters: Float32Array, gradients: Float32Array): void {
    const [mean, square] = [this.#mean, this.#square];
    this.#steps++;
    const correction1 = 1 - decay1 ** this.#steps;
    const correction2 = 1 - decay2 ** this.#steps;
    for (let i = 0; i < parameters.length; i++) {
      const gradient = gradients[i]!;
      mean[i] = decay1 * mean[i]! + (1 - decay1) * gradient;
      square[i] = decay2 * square[i]! + (1 - decay2) * gradient * gradient;
      const size = Math.sqrt(square[i]! / correction2) + epsilon;
      parameters[i]! -= (this.#learningRate * (mean[i]! / correction1)) / size;
    }
    gradients.fill(0);
  }
}
