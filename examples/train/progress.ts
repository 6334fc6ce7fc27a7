/** The progress line: rewritten in place on a terminal, a line now and then elsewhere. */
import type { Progress } from "./experiment.ts";

export interface Output {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

export class ProgressLine {
  readonly #output: Output;
  #last = 0;

  constructor(output: Output) {
    this.#output = output;
  }

  show(progress: Progress): void {
    const { done, of } = progress;
    if (this.#output.isTTY) {
      // More often than the eye can follow is only slower.
      const now = performance.now();
      if (done < of && now - this.#last < 50) return;
      this.#last = now;
      this.#output.write(`\r\x1b[K${describe(progress).slice(0, (this.#output.columns ?? 80) - 1)}`);
      return;
    }
    const every = progress.phase === "training" ? Math.min(25, Math.ceil(of / 12)) : of;
    if (done === 1 || done === of || done % every === 0) this.#output.write(`${describe(progress)}\n`);
  }

  /** Takes the line away, so that something else can be written. */
  clear(): void {
    if (this.#output.isTTY) this.#output.write("\r\x1b[K");
  }
}

function describe({ phase, done, of, records }: Progress): string {
  const percent = (share: number): string => `${(share * 100).toFixed(0)} %`.padStart(5);
  const runs = records.map(({ name, record: { alpha, flawedPositiveRatio, rho, log } }) => {
    const progress = rho === null ? "inf" : rho.toFixed(2);
    const unknown = log.judgeUnknown! > 0 ? `no verdict ${log.judgeUnknown}/${log.judged}, ` : "";
    return `${name}: ${unknown}reliable ${percent(alpha)}, flawed ${percent(flawedPositiveRatio)} of right, rho ${progress.padStart(5)}`;
  });
  return [`${phase} ${String(done).padStart(String(of).length)}/${of}`, ...runs].join("   ");
}
