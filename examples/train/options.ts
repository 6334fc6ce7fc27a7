/** The command line: flags, their defaults and bounds. */
import { parseArgs } from "node:util";
import { type Device, FapoError, synchronize, type UnknownVerdict } from "fapo-kernels";
import type { Settings } from "./experiment.ts";
import { type JudgeSettings, serverJudge } from "./judge.ts";

export interface Options {
  settings: Settings;
  /** Folder of the report. */
  out: string;
  /** File for the picture alone. */
  svg: string | undefined;
  plot: boolean;
}

/** One sentence about a flag that cannot be used. */
export class UsageError extends Error {}

export const help = `Trains a tiny policy twice from the same start, with FAPO and with GRPO, on the kernels of fapo-kernels.

Usage: npm start -- [flags]

  --seed N          random seed, an integer of at least 0 (default 1)
  --lambda X        what a flawed positive loses under FAPO, above 0 (default 1)
  --group-size N    replies per problem, at least 2 (default 8)
  --judge JUDGE     exact: checks the steps; noisy: errs now and then; or the URLs, with commas between them, of
                    OpenAI-compatible servers that are asked (default exact)
  --judge-noise X   share of the noisy judge's verdicts that are flipped, 0 to 1 (default 0.2); means --judge noisy
  --judge-model M   the model that servers are asked for (default FAPO-GenRM-4B)
  --unknown KIND    what counts where servers have no verdict: sound, flawed or exclude (default sound)
  --prompts N       problems per step (default 32)
  --steps N         training steps (default 300)
  --device NAME     cpu, or cuda:0, cuda:1, ... (default cpu)
  --out FOLDER      where train.html and train.json go (default report)
  --svg FILE        also writes the charts as one SVG
  --no-plot         no curves in the terminal
  --quick           a smoke run of a few seconds, too short to learn: 40 steps of 8 problems
  --help            this text

Ctrl-C finishes the step, writes the report of what was done, and exits with code 130.`;

const flags = {
  seed: { type: "string" },
  lambda: { type: "string" },
  "group-size": { type: "string" },
  judge: { type: "string" },
  "judge-noise": { type: "string" },
  "judge-model": { type: "string" },
  unknown: { type: "string" },
  prompts: { type: "string" },
  steps: { type: "string" },
  device: { type: "string" },
  out: { type: "string" },
  svg: { type: "string" },
  "no-plot": { type: "boolean" },
  quick: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;
type Flag = keyof typeof flags;

/** @returns "help" when help is asked for */
export function readOptions(args: readonly string[]): Options | "help" {
  const given = readFlags(args);
  if (given.has("help")) return "help";
  const quick = given.has("quick");

  const number = (flag: Flag, fallback: number, expected: string, accepts: (value: number) => boolean): number => {
    const value = given.get(flag);
    if (value === undefined) return fallback;
    const read = value.trim() === "" ? Number.NaN : Number(value);
    if (!accepts(read)) throw new UsageError(`expected --${flag} to be ${expected}, got ${JSON.stringify(value)}`);
    return read;
  };
  const count = (flag: Flag, fallback: number, least: number, most: number): number =>
    number(flag, fallback, `an integer in ${least}..${most}`, (n) => Number.isInteger(n) && n >= least && n <= most);
  const path = (flag: "out" | "svg"): string | undefined => {
    const value = given.get(flag);
    if (value === "") throw new UsageError(`expected --${flag} to be a path, got ""`);
    return value;
  };

  return {
    settings: {
      seed: count("seed", 1, 0, 2 ** 32 - 1),
      lambda: number("lambda", 1, "a number above 0", (x) => x > 0 && x < Number.POSITIVE_INFINITY),
      groupSize: count("group-size", 8, 2, 1024),
      judge: readJudge(
        given,
        number("judge-noise", 0.2, "a number in 0..1", (x) => x >= 0 && x <= 1),
      ),
      prompts: count("prompts", quick ? 8 : 32, 1, 4096),
      steps: count("steps", quick ? 40 : 300, 1, 1_000_000),
      warmSteps: quick ? 200 : 800,
      device: usableDevice(given.get("device") ?? "cpu"),
      quick,
    },
    out: path("out") ?? "report",
    svg: path("svg"),
    plot: !given.has("no-plot"),
  };
}

/** @param noise `--judge-noise`, or its default */
function readJudge(given: Map<Flag, string>, noise: number): JudgeSettings {
  const judge = given.get("judge") ?? (given.has("judge-noise") ? "noisy" : "exact");
  if (judge !== "noisy" && given.has("judge-noise"))
    throw new UsageError(`--judge-noise goes with --judge noisy alone, got --judge ${judge}`);
  if (judge !== "exact" && judge !== "noisy") return readServers(given, judge);
  for (const flag of ["judge-model", "unknown"] as const)
    if (given.has(flag)) throw new UsageError(`--${flag} goes with the URL of a server alone, got --judge ${judge}`);
  return judge === "exact" ? { kind: "exact" } : { kind: "noisy", noise };
}

function readServers(given: Map<Flag, string>, judge: string): JudgeSettings {
  const servers = judge.split(",").map((url) => url.trim());
  if (!servers.every((url) => /^https?:\/\//.test(url)))
    throw new UsageError(`expected --judge to be exact, noisy or http URLs, got ${JSON.stringify(judge)}`);
  const unknown = given.get("unknown") ?? "sound";
  if (!unknownVerdicts.some((verdict) => verdict === unknown))
    throw new UsageError(`expected --unknown to be sound, flawed or exclude, got ${JSON.stringify(unknown)}`);
  const model = given.get("judge-model") ?? "FAPO-GenRM-4B";
  try {
    // The client knows what is wrong with a URL; making one asks nothing.
    void serverJudge(servers, model).close?.();
  } catch (error) {
    if (error instanceof FapoError) throw new UsageError(error.message);
    throw error;
  }
  return { kind: "servers", servers, model, unknownVerdict: unknown as UnknownVerdict };
}

const unknownVerdicts: readonly UnknownVerdict[] = ["sound", "flawed", "exclude"];

function readFlags(args: readonly string[]): Map<Flag, string> {
  // Not strict: its messages run over several sentences, and it refuses the value in "--seed -1" as ambiguous.
  const { tokens } = parseArgs({
    args: [...args],
    options: flags,
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const given = new Map<Flag, string>();
  for (const token of tokens) {
    if (token.kind === "positional")
      throw new UsageError(`unexpected argument ${JSON.stringify(token.value)}; see --help`);
    if (token.kind !== "option") continue;
    const { name, rawName, value } = token;
    if (!Object.hasOwn(flags, name)) throw new UsageError(`unknown flag ${rawName}; see --help`);
    const flag = name as Flag;
    const takesValue = flags[flag].type === "string";
    if (takesValue && value === undefined) throw new UsageError(`${rawName} needs a value; see --help`);
    if (!takesValue && value !== undefined) throw new UsageError(`${rawName} takes no value; see --help`);
    given.set(flag, value ?? "");
  }
  return given;
}

/** The package knows which devices there are, and says why one is not. */
function usableDevice(name: string): Device {
  try {
    synchronize(name as Device);
  } catch (error) {
    if (error instanceof FapoError) throw new UsageError(error.message);
    throw error;
  }
  return name as Device;
}
