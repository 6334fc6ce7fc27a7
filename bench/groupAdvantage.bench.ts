/** groupAdvantage on one group, on a step (512 prompts of 16 responses), and on more than a cache holds. */
import { type Device, groupAdvantage } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import { type BenchCase, type CaseOptions, expectClose, type OpBench, type Prepared, plainTypeScript } from "./case.ts";
import { verdicts } from "./data.ts";
import { put, read } from "./place.ts";
import { groupSize, responseCounts } from "./responses.ts";

export const groupAdvantageBench: OpBench = { op: "groupAdvantage", cases };

function cases({ quick, device }: CaseOptions): BenchCase[] {
  return responseCounts(quick).map((responses) => ({
    op: "groupAdvantage",
    variant: "",
    shape: `${responses / groupSize}x${groupSize}`,
    dtype: "float32",
    device,
    bytes: responses * (4 + 4) + (responses / groupSize) * (4 + 4 + 1), // rewards, read; four outputs, written
    ...(responses >= 1 << 20 && { floor: "copy" as const }),
    ...(responses === groupSize && { overhead: true as const }),
    prepare: () => prepare(responses, device),
  }));
}

function prepare(responses: number, device: Device): Prepared {
  const { correct, flawed } = verdicts(responses);
  const rewards = new Float32Array(responses).map((_, i) => (correct[i] ? (flawed[i] === 1 ? 0 : 1) : -1));
  const options = { rewards: put(rewards, device), groupSize };
  const out = groupAdvantage(options);
  const again = { ...options, out };
  const call = (): void => void groupAdvantage(again);

  const groups = responses / groupSize;
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
        call: () => baseline.groupAdvantage(rewards, groupSize, advantages, mean, std, zeroVariance),
        check() {
          call();
          this.call();
          expectClose("advantages", read(out.advantages), advantages, { atol: 1e-6, rtol: 1e-6 });
          expectClose("groupMean", read(out.groupMean), mean, { atol: 1e-7, rtol: 1e-6 });
          expectClose("groupStd", read(out.groupStd), std, { atol: 1e-7, rtol: 1e-6 });
          expectClose("zeroVariance", read(out.zeroVariance), zeroVariance, { atol: 0, rtol: 0 });
        },
      },
    ],
  };
}
