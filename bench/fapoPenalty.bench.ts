/** fapoPenalty on the verdicts of one group, of a step (512 prompts of 16 responses), and of more than a cache holds. */
import { type Device, fapoPenalty } from "fapo-kernels";
import * as baseline from "./baseline.ts";
import { type BenchCase, type CaseOptions, expectClose, type OpBench, type Prepared, plainTypeScript } from "./case.ts";
import { verdicts } from "./data.ts";
import { put, read } from "./place.ts";
import { responseCounts } from "./responses.ts";

export const fapoPenaltyBench: OpBench = { op: "fapoPenalty", cases };

function cases({ quick, device }: CaseOptions): BenchCase[] {
  return responseCounts(quick).map((responses) => ({
    op: "fapoPenalty",
    variant: "",
    shape: `${responses}`,
    dtype: "float32",
    device,
    bytes: responses * (1 + 1 + 4 + 4 + 1), // correct and flawed, read; rewards, fapoRewards and valid, written
    ...(responses >= 1 << 20 && { floor: "copy" as const }),
    ...(responses === 16 && { overhead: true as const }),
    prepare: () => prepare(responses, device),
  }));
}

function prepare(responses: number, device: Device): Prepared {
  const { correct, flawed } = verdicts(responses);
  const options = { correct: put(correct, device), flawed: put(flawed, device) };
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
          expectClose("rewards", read(out.rewards), rewards, { atol: 0, rtol: 0 });
          expectClose("fapoRewards", read(out.fapoRewards), fapoRewards, { atol: 0, rtol: 0 });
          expectClose("valid", read(out.valid), valid, { atol: 0, rtol: 0 });
        },
      },
    ],
  };
}
