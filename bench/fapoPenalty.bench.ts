/** fapoPenalty on the verdicts of one group, of a step (512 prompts of 16 responses), and of more than a cache holds. */
import { fapoPenalty } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import { type BenchCase, type CaseOptions, expectClose, type OpBench, type Prepared, plainTypeScript } from "./case.ts";
import { verdicts } from "./data.ts";
import { responseCounts } from "./responses.ts";

export const fapoPenaltyBench: OpBench = { op: "fapoPenalty", cases };

function cases({ quick }: CaseOptions): BenchCase[] {
  return responseCounts(quick).map((responses) => ({
    op: "fapoPenalty",
    variant: "",
    shape: `${responses}`,
    dtype: "float32",
    bytes: responses * (1 + 1 + 4 + 4 + 1), // correct and flawed, read; rewards, fapoRewards and valid, written
    ...(responses >= 1 << 20 && { floor: "copy" as const }),
    ...(responses === 16 && { overhead: true as const }),
    prepare: () => prepare(responses),
  }));
}

function prepare(responses: number): Prepared {
  const { correct, flawed } = verdicts(responses);
  const options = { correct, flawed };
  const out = fapoPenalty(options);
  const again = { ...options, out };
  const call = (): void => void fapoPenalty(again);

  const rewards = new Float32Array(responses);
  const fapoRewards = new Float32Array(responses);
  const valid = new Uint8Array(responses);
  return {
    call,
    peers: [
      {
        name: plainTypeScript,
        scale: 1,
        call: () => baseline.fapoPenalty(correct, flawed, rewards, fapoRewards, valid),
        check() {
          call();
          this.call();
          expectClose("rewards", out.rewards.data, rewards, { atol: 0, rtol: 0 });
          expectClose("fapoRewards", out.fapoRewards.data, fapoRewards, { atol: 0, rtol: 0 });
          expectClose("valid", out.valid.data, valid, { atol: 0, rtol: 0 });
        },
      },
    ],
  };
}
