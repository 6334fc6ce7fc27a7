/**
 * `fapo-kernels genrm-eval file.jsonl`: how good a judge is, from its outputs or by asking it.
 */
import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { expect, FapoError } from "../check.ts";
import { GenRM } from "./client.ts";
import { GenRMError } from "./errors.ts";
import type { GenRMStats } from "./events.ts";
import type { GenRMOptions } from "./options.ts";
import { formatReport, makeReport } from "./report.ts";
import { addOutputs, type EvalRow, parseRows } from "./rows.ts";

/** Where a command writes. `process.stdout` and `process.stderr` are such. */
export interface CommandOutput {
  stdout: { write(text: string): unknown };
  stderr: { write(text: string): unknown; isTTY?: boolean };
  /** Aborting it ends the questions to servers, and the command with exit code 1. */
  signal?: AbortSignal;
}

const op = "genrm-eval";

const usage = `Usage: fapo-kernels genrm-eval FILE.jsonl [options]

Compares a judge's verdicts with the labels of FILE (FAPO critic data, ProcessBench, or rows with truth and steps) and
prints FlawedPositiveBench and ProcessBench metrics per subset. The verdicts come from the rows themselves (response,
responses or predicted), from a second file, or from servers.

  --outputs FILE         judge outputs, one line per row: {"responses": [...]} or {"predicted": 3}
  --labels               take the labels as verdicts: a check of the file
  --server URL           ask this OpenAI-compatible server; may be repeated
  --model NAME           its model
  --flavor NAME          openai or sglang (default openai)
  --votes N              answers per row, majority vote (default 1)
  --temperature T        default: the server's
  --top-p P              default: the server's
  --max-tokens N         default 16384
  --max-in-flight N      requests in flight per server (default 32)
  --idle-timeout MS      default 60000
  --timeout MS           default 1800000
  --api-key-env NAME     environment variable that holds the API key
  --save FILE            write the judge's answers, as rows that can be read again
  --limit N              the first N rows only
  --unknown KIND         what no verdict counts as in FlawedPositiveBench: sound, flawed or exclude (default sound)
  --json FILE            write the metrics as JSON; - for standard output, instead of the table
  --help

Exit code: 0, 1 when it fails or no verdict could be had, 2 when the arguments are wrong.
`;

const flags = {
  outputs: { type: "string" },
  labels: { type: "boolean", default: false },
  server: { type: "string", multiple: true, default: [] as string[] },
  model: { type: "string" },
  flavor: { type: "string", default: "openai" },
  votes: { type: "string", default: "1" },
  temperature: { type: "string" },
  "top-p": { type: "string" },
  "max-tokens": { type: "string" },
  "max-in-flight": { type: "string" },
  "idle-timeout": { type: "string" },
  timeout: { type: "string" },
  "api-key-env": { type: "string" },
  save: { type: "string" },
  limit: { type: "string" },
  unknown: { type: "string", default: "sound" },
  json: { type: "string" },
  help: { type: "boolean", default: false },
} as const;

type Values = ReturnType<typeof parse>["values"];

/**
 * Runs the command.
 * @param argv what follows `genrm-eval` on the command line
 * @returns the exit code
 */
export async function genrmEval(argv: readonly string[], output: CommandOutput = process): Promise<number> {
  let command: Command;
  try {
    const { values, positionals } = parse(argv);
    if (values.help) {
      output.stdout.write(usage);
      return 0;
    }
    command = readCommand(values, positionals);
  } catch (error) {
    // parseArgs throws TypeErrors with codes of its own; all of them are about what was typed.
    output.stderr.write(`${error instanceof Error ? error.message : error}\nTry: fapo-kernels ${op} --help\n`);
    return 2;
  }
  try {
    return await evaluate(command, output);
  } catch (error) {
    if (!(error instanceof FapoError) && !isSystemError(error) && !output.signal?.aborted) throw error;
    output.stderr.write(`${error instanceof Error ? error.message : error}\n`);
    return 1;
  }
}

interface Command {
  file: string;
  values: Values;
  votes: number;
  limit: number;
  unknownVerdict: "sound" | "flawed" | "exclude";
  judge: GenRMOptions<EvalRow> | null;
}

async function evaluate(
  { file, values, votes, limit, unknownVerdict, judge }: Command,
  output: CommandOutput,
): Promise<number> {
  let rows = parseRows(await readFile(file, "utf8"), file);
  if (values.outputs !== undefined) rows = addOutputs(rows, await readFile(values.outputs, "utf8"), values.outputs);
  rows = rows.slice(0, limit);
  expect(rows.length > 0, op, file, "a file with rows", "none");

  let stats: GenRMStats | null = null;
  if (values.labels) rows = rows.map((row) => ({ ...row, votes: [row.truth] }));
  if (judge) ({ rows, stats } = await askJudge(rows, votes, judge, output));
  const bare = rows.findIndex((row) => row.votes === null);
  if (bare >= 0) {
    const message = `${op}: row ${bare + 1} of ${file} has no verdict; give --outputs, --server or --labels`;
    throw new FapoError("ERR_INVALID_ARGUMENT", message);
  }

  if (values.save !== undefined) await writeFile(values.save, rows.map(savedRow).join(""));
  const report = makeReport(rows, unknownVerdict);
  const json = `${JSON.stringify({ file, ...report, judge: stats }, null, 2)}\n`;
  if (values.json === "-") output.stdout.write(json);
  else output.stdout.write(formatReport(report));
  if (values.json !== undefined && values.json !== "-") await writeFile(values.json, json);
  if (stats) output.stderr.write(`${summary(stats)}\n`);
  return report.all.unknown === report.all.rows ? 1 : 0;
}

/** Asks every row `votes` times; the answers of a row keep their order. */
async function askJudge(rows: EvalRow[], votes: number, options: GenRMOptions<EvalRow>, output: CommandOutput) {
  const silent = rows.findIndex(({ messages }) => messages === null);
  expect(silent < 0, op, `row ${silent + 1}`, "a prompt or a problem with steps", "neither");
  const verdicts = rows.map(() => new Array<number | null>(votes).fill(null));
  const texts = rows.map(() => new Array<string>(votes).fill(""));
  const signal = output.signal ? { signal: output.signal } : {};
  const judge = new GenRM<EvalRow>(options);
  try {
    // Known at once, rather than after the outage timeout.
    const health = await judge.health(signal);
    if (!health.some(({ well }) => well)) {
      const urls = health.map(({ url }) => url).join(", ");
      throw new GenRMError("ERR_GENRM_NETWORK", `${op}: no server answers: ${urls}`);
    }
    function* questions() {
      for (const row of rows) for (let vote = 0; vote < votes; vote++) yield row;
    }
    const total = rows.length * votes;
    let done = 0;
    for await (const { index, verdict } of judge.judgeAll(questions(), signal)) {
      const row = Math.floor(index / votes);
      verdicts[row]![index % votes] = verdict.step;
      texts[row]![index % votes] = verdict.text;
      showProgress(++done, total, output.stderr);
    }
    const asked = rows.map((row, i) => ({ ...row, votes: verdicts[i]!, responses: texts[i]! }));
    return { rows: asked, stats: judge.stats() };
  } finally {
    await judge.close();
  }
}

/** One line that is written over on a terminal; elsewhere one line for every tenth. */
function showProgress(done: number, total: number, stderr: CommandOutput["stderr"]): void {
  if (stderr.isTTY) stderr.write(`\r${done}/${total}${done === total ? "\n" : ""}`);
  else if (Math.floor((10 * done) / total) > Math.floor((10 * (done - 1)) / total)) stderr.write(`${done}/${total}\n`);
}

function savedRow({ subset, truth, steps, correct, votes, responses }: EvalRow): string {
  return `${JSON.stringify({ subset, truth, steps, correct, predicted: votes, ...(responses && { responses }) })}\n`;
}

function summary({ done, unknown, codes, tokens, latency, requests }: GenRMStats): string {
  const failed = Object.entries(codes).map(([code, count]) => `${code} ${count}`);
  const times = `p50 ${latency.p50.toFixed(0)} ms, p99 ${latency.p99.toFixed(0)} ms`;
  return `${done} answers in ${requests} requests, ${unknown} unknown${failed.length ? ` (${failed.join(", ")})` : ""}; ${times}; ${tokens} tokens`;
}

function parse(argv: readonly string[]) {
  return parseArgs({ args: [...argv], options: flags, allowPositionals: true, strict: true });
}

function readCommand(values: Values, positionals: string[]): Command {
  const [file] = positionals;
  expect(file !== undefined && positionals.length === 1, op, "the arguments", "one file", positionals);
  const sources = [values.labels, values.outputs !== undefined, values.server.length > 0].filter(Boolean).length;
  expect(sources <= 1, op, "the verdicts", "from one of --labels, --outputs and --server", `${sources} of them`);
  const { unknown } = values;
  const kind = unknown === "sound" || unknown === "flawed" || unknown === "exclude";
  expect(kind, op, "--unknown", "sound, flawed or exclude", unknown);
  const asked = values.server.length > 0;
  const votes = integer("--votes", values.votes, 1);
  expect(asked || votes === 1, op, "--votes", "given with --server", values.votes);
  return {
    file,
    values,
    votes,
    limit: values.limit === undefined ? Number.POSITIVE_INFINITY : integer("--limit", values.limit, 1),
    unknownVerdict: unknown,
    judge: asked ? judgeOptions(values) : null,
  };
}

function judgeOptions(values: Values): GenRMOptions<EvalRow> {
  expect(values.model !== undefined, op, "--model", "given with --server", values.model);
  const sampling: Record<string, number> = {};
  if (values.temperature !== undefined) sampling.temperature = number("--temperature", values.temperature);
  if (values["top-p"] !== undefined) sampling.top_p = number("--top-p", values["top-p"]);
  const limits: Partial<Record<"maxTokens" | "maxInFlight" | "idleTimeout" | "timeout", number>> = {};
  const names = {
    "max-tokens": "maxTokens",
    "max-in-flight": "maxInFlight",
    "idle-timeout": "idleTimeout",
    timeout: "timeout",
  } as const;
  for (const [flag, name] of Object.entries(names) as [keyof typeof names, (typeof names)[keyof typeof names]][]) {
    const given = values[flag];
    if (given !== undefined) limits[name] = integer(`--${flag}`, given, 1);
  }
  const variable = values["api-key-env"];
  const apiKey = variable === undefined ? undefined : process.env[variable];
  expect(variable === undefined || apiKey !== undefined, op, "--api-key-env", "a variable that is set", variable);
  const options: GenRMOptions<EvalRow> = {
    servers: values.server,
    model: values.model,
    flavor: values.flavor as "openai" | "sglang",
    body: sampling,
    prompt: ({ messages, steps }) => ({ messages: messages!, steps }),
    ...limits,
    ...(apiKey !== undefined && { apiKey }),
  };
  // Wrong servers and flavors are wrong arguments: say so before a file is read.
  void new GenRM(options).close();
  return options;
}

function integer(name: string, text: string, least: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  expect(Number.isSafeInteger(value) && value >= least, op, name, `an integer of at least ${least}`, text);
  return value;
}

function number(name: string, text: string): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  expect(Number.isFinite(value) && value >= 0, op, name, "a non-negative number", text);
  return value;
}

function isSystemError(error: unknown): boolean {
  return error instanceof Error && "syscall" in error;
}
