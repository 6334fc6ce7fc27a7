/** `npm start`: trains a tiny policy with FAPO and with GRPO, and shows where they part. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FapoError } from "fapo-kernels";
import { type Chart, makeCharts } from "./train/charts.ts";
import { runExperiment } from "./train/experiment.ts";
import { htmlReport } from "./train/html.ts";
import { help, type Options, readOptions, UsageError } from "./train/options.ts";
import { plot } from "./train/plot.ts";
import { ProgressLine } from "./train/progress.ts";
import { makeResults, type Results, toJson } from "./train/results.ts";
import { finalTable, findings, textTable } from "./train/summary.ts";
import { figure } from "./train/svg.ts";

const exitCodes = { failed: 1, usage: 2, interrupted: 130 } as const;

async function main(args: readonly string[]): Promise<number> {
  const options = readOptions(args);
  if (options === "help") {
    console.log(help);
    return 0;
  }
  // Before the training: a folder that cannot be written to must not cost a run.
  for (const folder of [options.out, ...(options.svg ? [dirname(options.svg)] : [])])
    mkdirSync(folder, { recursive: true });

  const line = new ProgressLine(process.stdout);
  const interrupt = listenForInterrupt(() => line.clear());
  const experiment = await runExperiment(options.settings, {
    onProgress: (progress) => line.show(progress),
    stopped: () => interrupt.aborted,
    hurry: interrupt,
    onWarning(sentence) {
      line.clear();
      console.log(`warning: ${sentence}`);
    },
  });
  line.clear();

  const { user, system } = process.cpuUsage();
  const results = makeResults(experiment, { wall: performance.now() / 1000, cpu: (user + system) / 1e6 });
  const charts = makeCharts(experiment);
  if (options.plot && charts) printCurves(charts);
  for (const sentence of findings(results)) console.log(sentence);
  console.log(`\n${textTable(finalTable(results))}\n`);
  for (const file of writeReport(results, charts, options)) console.log(`wrote ${file}`);
  const { wallSeconds, cpuSeconds } = results.timing;
  console.log(`${wallSeconds.toFixed(1)} s, ${cpuSeconds.toFixed(1)} s of processor time`);
  return experiment.interrupted ? exitCodes.interrupted : 0;
}

/** Aborts at the first Ctrl-C; the second one ends the program at once. */
function listenForInterrupt(announce: () => void): AbortSignal {
  const controller = new AbortController();
  process.on("SIGINT", () => {
    if (controller.signal.aborted) process.exit(exitCodes.interrupted);
    announce();
    console.log("Finishing this step, then the report; Ctrl-C again to leave at once.");
    controller.abort();
  });
  return controller.signal;
}

function printCurves(charts: Chart[]): void {
  const color = process.stdout.hasColors?.() ?? false;
  const columns = process.stdout.columns ?? 80;
  const shown = charts.filter(({ id }) => id === "flawed" || id === "reliable" || id === "rho");
  console.log(`\n${shown.map((chart) => plot(chart, { columns, color })).join("\n\n")}\n`);
}

function writeReport(results: Results, charts: Chart[] | undefined, { out, svg, settings }: Options): string[] {
  const files = new Map([
    [join(out, "train.html"), htmlReport(results, charts)],
    [join(out, "train.json"), toJson(results)],
  ]);
  if (svg && charts) {
    const shown = charts.filter(({ id }) => id !== "accuracy");
    files.set(
      svg,
      figure(shown, `FAPO (lambda ${settings.lambda}) and GRPO from the same start, seed ${settings.seed}`),
    );
  }
  for (const [file, content] of files) writeFileSync(file, content);
  return [...files.keys()];
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const systemError = error instanceof Error && "syscall" in error;
  // A sentence for what the user can mend; the stack for what is a mistake of ours.
  if (!(error instanceof UsageError || error instanceof FapoError || systemError)) throw error;
  console.error(error.message);
  process.exitCode = error instanceof UsageError ? exitCodes.usage : exitCodes.failed;
}
