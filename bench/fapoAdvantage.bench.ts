/** fapoAdvantage on one group, on a step (512 prompts of 16 responses), and on more than a cache holds. */
import { type Device, fapoAdvantage } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import { type BenchCase, type CaseOptions, expectClose, type OpBench, type Prepared, plainTypeScript } from "./case.ts";
import { verdicts } from "./data.ts";
import { put, read } from "./place.ts";
import { groupSize, responseCounts } from "./responses.ts";

export const fapoAdvantageBench: OpBench = { op: "fapoAdvantage", cases };

function cases({ quick, device }: CaseOptions): BenchCase[] {
  return responseCounts(quick).map((responses) => ({
    op: "fapoAdvantage",
    variant: "",
    shape: `${responses / groupSize}x${groupSize}`,
    dtype: "float32",
    device,
    // correct and flawed, read; rewards, fapoRewards, valid and advantages, and three per group, written
    bytes: responses * (1 + 1 + 4 + 4 + 1 + 4) + (responses / groupSize) * (4 + 4 + 1),
    ...(responses >= 1 << 20 && { floor: "copy" as const }),
    ...(responses === groupSize && { overhead: true as const }),
    prepare: () => prepare(responses, device),
  }));
}

function prepare(responses: number, device: Device): Prepared {
  const { correct, flawed } = verdicts(responses);
  const options = { correct: put(correct, device), flawed: put(flawed, device), groupSize };
  const out = fapoAdvantage(options);
  const again = { ...options, out };
  const call = (): void => void fapoAdvantage(again);

  const groups = responses / groupSize;
  const rewards = new Float32Array(responses);
  const fapoRewards = new Float32Array(responses);
  const valid = new Uint8Array(responses);
  const advantages = new Float32Array(responses);
  const mean = new Float32Array(groups);
  const std = new Float32Array(groups);
  const zeroVariance = new Uint8Array(groups);
  return {
    call,
    peers: [
      {
        name: plainTypeScript,
        scale: 1,
        call() {
          baseline.fapoPenalty(correct, flawed, rewards, fapoRewards, valid);
          baseline.groupAdvantage(rewards, groupSize, advantages, mean, std, zeroVariance);
        },
        check() {
          call();
          this.call();
          expectClose("rewards", read(out.rewards), rewards, { atol: 0, rtol: 0 });
          expectClose("advantages", read(out.advantages), advantages, { atol: 1e-6, rtol: 1e-6 });
          expectClose("zeroVariance", read(out.zeroVariance), zeroVariance, { atol: 0, rtol: 0 });
        },
      },
    ],
  };
}
