/** The worst errors a test file saw, printed when it ends: a tolerance nobody comes near tests nothing. */
import { devices } from "fapo-kernels";

interface Worst {
  error: number;
  share: number;
}

const seen = new Map<string, Worst>();

/** `share` is the error divided by its bound. */
export function record(what: string, error: number, share: number): void {
  const worst = seen.get(what);
  if (worst === undefined) {
    if (seen.size === 0) process.once("exit", print);
    seen.set(what, { error, share });
  } else {
    worst.error = Math.max(worst.error, error);
    worst.share = Math.max(worst.share, share);
  }
}

function print(): void {
  const lines = [...seen].map(([what, { error, share }]) => {
    const note = share > 0.8 ? ", near its bound" : share < 0.01 ? ", far below its bound" : "";
    return `  ${what}: |error| ${error.toExponential(2)}, ${(100 * share).toFixed(1)} % of the tolerance${note}`;
  });
  console.log(`worst on ${devices().cpu.isa}:\n${lines.join("\n")}`);
}
