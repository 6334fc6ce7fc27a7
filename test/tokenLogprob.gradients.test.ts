/** tokenLogprobBackward against central differences of the float64 definition. */
import { tokenLogprob, tokenLogprobBackward } from "fapo-kernels";
import { gradientOfRow, logprobOf, type Scaling, softmaxRow } from "./reference/softmax.ts";
import { logitsTensor, normalBatch, rowOf } from "./support/logits.ts";
import { assertClose, forEachDevice, rng } from "./support.ts";
import { differenceTolerance, gradientBound } from "./tolerances.ts";

const step = 1e-5;

/** d f / d row, by central differences. */
function differences(row: ArrayLike<number>, f: (row: Float64Array) => number): number[] {
  return Array.from({ length: row.length }, (_, j) => {
    const [up, down] = [Float64Array.from(row), Float64Array.from(row)];
    up[j] = row[j]! + step;
    down[j] = row[j]! - step;
    return (f(up) - f(down)) / (up[j] - down[j]);
  });
}

const cases: Scaling[] = [];
for (const temperature of [0.3, 0.7, 1, 2]) {
  for (const logitSoftcap of [undefined, 5, 30]) cases.push({ temperature, logitSoftcap });
}

forEachDevice(
  "gradients are those of central differences, for every temperature, cap and upstream gradient",
  (device) => {
    const random = rng(11);
    let checked = 0;
    for (const scaling of cases) {
      for (const vocab of [1, 2, 5, 17, 40]) {
        for (let seed = 0; seed < 8; seed++) {
          const batch = normalBatch(3, vocab, "float32", { sigma: 1.5, seed });
          const gradLogprobs = Float32Array.from({ length: 3 }, () => 4 * random() - 2);
          const gradEntropy = Float32Array.from({ length: 3 }, () => (seed === 0 ? 0 : 2 * random() - 1));
          const { temperature = 1, logitSoftcap } = scaling;
          const options = {
            logits: logitsTensor(device, batch),
            tokenIds: batch.tokenIds,
            temperature,
            ...(logitSoftcap === undefined ? {} : { logitSoftcap }),
          };
          const forward = tokenLogprob({ ...options, entropy: true });
          const inputs = { ...options, ...forward, entropy: forward.entropy!, gradLogprobs, gradEntropy };
          const gradient = device.floats(tokenLogprobBackward(inputs).gradLogits);
          for (let i = 0; i < 3; i++) {
            const id = batch.tokenIds[i]!;
            const [g, gH] = [gradLogprobs[i]!, gradEntropy[i]!];
            const loss = (x: ArrayLike<number>): number => {
              const softmax = softmaxRow(x, scaling);
              return g * logprobOf(softmax, id) + gH * softmax.entropy;
            };
            const expected = differences(rowOf(batch, i), loss);
            const what = JSON.stringify({ ...scaling, vocab, seed, i });
            assertClose(
              gradientOfRow(rowOf(batch, i), id, scaling, g, gH),
              expected,
              differenceTolerance,
              `definition ${what}`,
            );
            const softmax = softmaxRow(rowOf(batch, i), scaling);
            const bounds = {
              gradLogprob: g / temperature,
              gradEntropy: gH / temperature,
              savedLogprob: logprobOf(softmax, id),
              largestCapped: (logitSoftcap ?? 0) / temperature,
              entropy: softmax.entropy,
            };
            for (let j = 0; j < vocab; j++) {
              const p = softmax.probabilities[j]!;
              const atol = gradientBound(bounds, p, Math.log(p)) + differenceTolerance.atol;
              const { rtol } = differenceTolerance;
              assertClose([gradient[i * vocab + j]!], [expected[j]!], { atol, rtol }, `gradient ${what} [${j}]`);
              checked++;
            }
          }
        }
      }
    }
    if (checked < 15_000) throw new Error(`${checked} derivatives`);
  },
);
