/** `npx fapo-kernels bench`: every op, on shapes of real models, beside the memory floor and plain TypeScript. */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { type Device, devices } from "fapo-kernels";
import { actionBenchmark } from "./action.ts";
import { type CaseOptions, type FloatDType, floatDTypes, type VocabShape } from "./case.ts";
import { agree, exposeGc, type Measurement, measure, overhead, type RoundOptions } from "./harness.ts";
import { Peers } from "./peers.ts";
import { defaultFile, defaultFileOf, header, makeReport, peerRows, row, shown, title, writeJson } from "./report.ts";
import { cudaShapes, emulatedShapes, inOrderOfData, ops, quickShapes, shapes } from "./suite.ts";

const full: RoundOptions = { rounds: 21, maxSeconds: 8, minSampleMs: 5, warmupMs: 200 };
const quick: RoundOptions = { rounds: 3, maxSeconds: 1, minSampleMs: 0.5, warmupMs: 10 };

const help = `Usage: fapo-kernels bench [options]

  --ops a,b         ${ops.map(({ op }) => op).join(", ")}
  --shapes NxV,…    logits of N rows and a vocabulary of V (default ${shapes.map((shape) => shape.join("x")).join(",")})
  --dtypes a,b      of the logits: ${floatDTypes.join(", ")}
  --devices a,b     cpu, cuda:0, … (default cpu, and cuda:0 where it is real); an emulated GPU is compared, never timed
  --threads 1,2     on the CPU a run for each (default 1 and all cores)
  --filter text     only cases with this text in "op (variant) shape dtype"
  --rounds n        how often floor, op and peers take turns (default ${full.rounds}; for the cost of a call ${overhead.rounds})
  --quick           small and short, to see that it works; its numbers mean little
  --peers           also beside PyTorch, onnxruntime-node and TensorFlow.js, where they are; in the repository only
  --json [file]     also write a report (default ${shown(defaultFile("<date>", "<cpu>", "<isa>"))})
  --github-action-benchmark file
                    also write what github-action-benchmark reads as customSmallerIsBetter
  --help

Every op is timed beside the memory floor of this machine and a plain TypeScript loop.
The environment variable FAPO_ISA (baseline, avx2, avx512) asks for a lesser instruction set.
`;

/** The command `fapo-kernels bench`; returns its exit code. Throws what is wrong with the arguments. */
export async function bench(argv: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: withJsonDefault(argv),
    options: {
      ops: { type: "string" },
      shapes: { type: "string" },
      dtypes: { type: "string" },
      devices: { type: "string" },
      threads: { type: "string" },
      filter: { type: "string" },
      rounds: { type: "string" },
      json: { type: "string" },
      "github-action-benchmark": { type: "string" },
      peers: { type: "boolean", default: false },
      quick: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(help);
    return 0;
  }

  const names = list(
    "ops",
    values.ops,
    ops.map(({ op }) => op),
  );
  const dtypes = list("dtypes", values.dtypes, floatDTypes);
  const isDevice = (name: string): name is Device => /^(cpu|cuda:\d+)$/.test(name);
  const { cpu, cuda } = devices();
  const everywhere: Device[] = cuda.available && !cuda.emulated ? ["cpu", "cuda:0"] : ["cpu"];
  const where = (list("devices", values.devices, isDevice) as Device[] | undefined) ?? everywhere;
  const wanted = {
    shapes: list("shapes", values.shapes, (text) => /^[1-9]\d*x[1-9]\d*$/.test(text))?.map(vocabShape),
    dtypes: (dtypes as FloatDType[] | undefined) ?? floatDTypes,
    quick: values.quick,
  };
  const optionsOn = (device: Device): CaseOptions => {
    if (device !== "cpu" && cuda.emulated)
      return { ...wanted, shapes: wanted.shapes ?? emulatedShapes, quick: true, device };
    const usual = values.quick ? quickShapes : device === "cpu" ? shapes : cudaShapes;
    return { ...wanted, shapes: wanted.shapes ?? usual, device };
  };
  const count = (text: string): boolean => /^[1-9]\d*$/.test(text);
  const threads = list("threads", values.threads, count)?.map(Number) ?? [...new Set([1, availableParallelism()])];
  const [rounds] = list("rounds", values.rounds, count)?.map(Number) ?? [];
  const roundOptions = { ...(values.quick ? quick : full), ...(rounds !== undefined && { rounds }) };

  const wantedOps = ops.filter(({ op }) => names?.includes(op) ?? true);
  const cases = where.flatMap((device) => inOrderOfData(wantedOps.flatMap((op) => op.cases(optionsOn(device)))));
  const chosen = cases.filter((one) => title(one).includes(values.filter ?? ""));
  if (chosen.length === 0) throw new Error("no benchmark matches");

  exposeGc();
  const { isa } = cpu;
  console.log(
    `${isa}, Node ${process.versions.node}; ms of one call: CPU time with one thread, wall time with more and for calls on almost nothing\n`,
  );
  const results: Measurement[] = [];
  const others = values.peers ? await Peers.start(where, console.log) : undefined;
  try {
    console.log(header());
    for (const one of chosen) {
      if (one.device !== "cpu" && cuda.emulated) {
        agree(one);
        console.log(`${title(one)}, ${one.device}, emulated: agrees with plain TypeScript; not timed`);
        continue;
      }
      for (const n of threads) {
        // A call too small to be shared among threads is the same with any number of them.
        if ((one.overhead || one.device !== "cpu") && n !== threads[0]) continue;
        const result = await measure(one, n, roundOptions, others);
        results.push(result);
        console.log([row(result, isa), ...peerRows(result)].join("\n"));
      }
    }
  } finally {
    others?.close();
  }

  const report = makeReport(results, commandLine(argv), values.quick);
  const write = (file: string, content: unknown): void => {
    writeJson(file, content);
    console.log(`written: ${shown(file)}`);
  };
  if (values.json !== undefined) write(values.json || defaultFileOf(report, values.peers ? "-peers" : ""), report);
  const action = values["github-action-benchmark"];
  if (action !== undefined) write(action, actionBenchmark(report));
  return 0;
}

/** What someone has to type for the same run. */
function commandLine(argv: readonly string[]): string {
  const isa = process.env.FAPO_ISA;
  const script = process.env.npm_lifecycle_event ?? "";
  const npm = /^bench(:peers)?$/.test(script);
  const given = argv.filter((arg) => !(script === "bench:peers" && arg === "--peers"));
  const start = npm ? [`npm run ${script}`, ...(given.length > 0 ? ["--"] : [])] : ["npx fapo-kernels bench"];
  return [...(isa ? [`FAPO_ISA=${isa}`] : []), ...start, ...given].join(" ");
}

function vocabShape(text: string): VocabShape {
  const [rows, vocab] = text.split("x").map(Number);
  return [rows!, vocab!];
}

/** Items of a flag: each one of some names, or accepted. */
function list(
  flag: string,
  text: string | undefined,
  accepted: readonly string[] | ((item: string) => boolean),
): string[] | undefined {
  const [accepts, names] =
    typeof accepted === "function"
      ? [accepted, ""]
      : [(item: string) => accepted.includes(item), ` of ${accepted.join(", ")}`];
  const items = text?.split(",");
  const wrong = items?.find((item) => !accepts(item));
  if (wrong !== undefined) throw new Error(`--${flag}: ${JSON.stringify(wrong)} is none${names}; see --help`);
  return items;
}

/** parseArgs has no optional values: a bare --json becomes --json= */
function withJsonDefault(argv: readonly string[]): string[] {
  return argv.map((arg, i) => (arg === "--json" && (argv[i + 1] ?? "--").startsWith("--") ? "--json=" : arg));
}
