/** `npm run bench`: every op, on shapes of real models, beside the memory floor and plain TypeScript. */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { devices } from "fapo-kernels";
import { type BenchCase, type FloatDType, floatDTypes, type VocabShape } from "./case.ts";
import { type Measurement, measure, type RoundOptions } from "./harness.ts";
import { defaultFile, header, makeReport, row, writeReport } from "./report.ts";
import { ops, quickShapes, shapes } from "./suite.ts";
import { writeTables } from "./table.ts";

const full: RoundOptions = { rounds: 21, maxSeconds: 8, minSampleMs: 5, warmupMs: 200 };
const quick: RoundOptions = { rounds: 3, maxSeconds: 1, minSampleMs: 0.5, warmupMs: 10 };

const help = `npm run bench -- [options]

  --ops a,b         ${ops.map(({ op }) => op).join(", ")}
  --shapes NxV,…    logits of N rows and a vocabulary of V (default ${shapes.map((shape) => shape.join("x")).join(",")})
  --dtypes a,b      of the logits: ${floatDTypes.join(", ")}
  --threads 1,2     a run for each (default 1 and all cores)
  --filter text     only cases with this text in "op (variant) shape dtype"
  --rounds n        how often floor, op and peers take turns (default ${full.rounds})
  --quick           small and short, to see that it works; its numbers mean little
  --json [file]     also write a report (default bench/results/<date>-<cpu>-<isa>.json)
  --table           make the tables of docs/performance.md from bench/results, and measure nothing
  --help

The environment variable FAPO_ISA (baseline, avx2, avx512) asks for a lesser instruction set.`;

function main(argv: readonly string[]): void {
  const { values } = parseArgs({
    args: withJsonDefault(argv),
    options: {
      ops: { type: "string" },
      shapes: { type: "string" },
      dtypes: { type: "string" },
      threads: { type: "string" },
      filter: { type: "string" },
      rounds: { type: "string" },
      json: { type: "string" },
      quick: { type: "boolean", default: false },
      table: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(help);
    return;
  }
  if (values.table) {
    console.log(`docs/performance.md: tables of ${writeTables().join(", ") || "no file"}`);
    return;
  }

  const names = list("ops", values.ops, (name) => ops.some(({ op }) => op === name));
  const dtypes = list("dtypes", values.dtypes, (name) => (floatDTypes as readonly string[]).includes(name));
  const wanted = {
    shapes: list("shapes", values.shapes, (text) => /^[1-9]\d*x[1-9]\d*$/.test(text))?.map(vocabShape),
    dtypes: (dtypes as FloatDType[] | undefined) ?? floatDTypes,
    quick: values.quick,
  };
  const options = { ...wanted, shapes: wanted.shapes ?? (values.quick ? quickShapes : shapes) };
  const count = (text: string): boolean => /^[1-9]\d*$/.test(text);
  const threads = list("threads", values.threads, count)?.map(Number) ?? [...new Set([1, availableParallelism()])];
  const [rounds] = list("rounds", values.rounds, count)?.map(Number) ?? [];
  const roundOptions = { ...(values.quick ? quick : full), ...(rounds !== undefined && { rounds }) };

  const cases = inOrderOfData(ops.filter(({ op }) => names?.includes(op) ?? true).flatMap((op) => op.cases(options)));
  const chosen = cases.filter((one) => title(one).includes(values.filter ?? ""));
  if (chosen.length === 0) throw new Error("no benchmark matches");

  const { isa } = devices().cpu;
  console.log(`${isa}, Node ${process.versions.node}; ms of one call: CPU time with one thread, wall time with more\n`);
  console.log(header());
  const results: Measurement[] = [];
  for (const one of chosen) {
    for (const n of threads) {
      // A call too small to be shared among threads is the same with any number of them.
      if (one.overhead && n !== threads[0]) continue;
      const result = measure(one, n, roundOptions);
      results.push(result);
      console.log(row(result, isa));
    }
  }

  if (values.json === undefined) return;
  const command = ["npm run bench", ...(argv.length > 0 ? ["--", ...argv] : [])].join(" ");
  const report = makeReport(results, command, values.quick);
  const file = values.json || defaultFile(report);
  writeReport(report, file);
  console.log(`\nwritten: ${file}`);
}

/** Cases on the same logits one after the other: they are made once, and only one batch is held. */
function inOrderOfData(cases: readonly BenchCase[]): BenchCase[] {
  const groups = new Map<string, BenchCase[]>();
  for (const one of cases) {
    const key = `${one.shape} ${one.dtype}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()].flat();
}

function title({ op, variant, shape, dtype }: BenchCase): string {
  return `${op}${variant && ` (${variant})`} ${shape} ${dtype}`;
}

function vocabShape(text: string): VocabShape {
  const [rows, vocab] = text.split("x").map(Number);
  return [rows!, vocab!];
}

function list(flag: string, text: string | undefined, accepts: (item: string) => boolean): string[] | undefined {
  const items = text?.split(",");
  const wrong = items?.find((item) => !accepts(item));
  if (wrong !== undefined) throw new Error(`--${flag}: ${JSON.stringify(wrong)} is none; see --help`);
  return items;
}

/** parseArgs has no optional values: a bare --json becomes --json= */
function withJsonDefault(argv: readonly string[]): string[] {
  return argv.map((arg, i) => (arg === "--json" && (argv[i + 1] ?? "--").startsWith("--") ? "--json=" : arg));
}

try {
  main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
