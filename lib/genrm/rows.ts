/**
 * Labelled judgements from JSON lines: the FAPO critic data, ProcessBench, and rows of our own.
 */
import { expect, FapoError } from "../check.ts";
import { fapoPrompt, splitSteps } from "./prompt.ts";
import type { ChatMessage } from "./request.ts";
import { parseVerdict } from "./verdict.ts";

/** A labelled solution. */
export interface EvalRow {
  subset: string;
  /** Index of the first error; -1 for none. */
  truth: number;
  steps: number;
  /** Whether the final answer is right: FlawedPositiveBench counts only these. */
  correct: boolean;
  /** What to ask a judge; null where the row has no text. */
  messages: readonly ChatMessage[] | null;
  /** What judges wrote, and what they decided; one of each per vote. Null where the row has none. */
  responses: readonly string[] | null;
  votes: readonly (number | null)[] | null;
}

const op = "genrm-eval";

/**
 * Reads rows of any of these forms, which may be mixed:
 *
 * - FAPO critic data: `prompt` (messages), `reward_model.ground_truth`, `extra_info.total_steps`, `data_source`
 * - ProcessBench: `id`, `problem`, `steps` (texts), `label`, `final_answer_correct`
 * - ours: `truth`, `steps` (a number, or texts), `subset`, `correct`; `problem`, `answer`, `solution`
 *
 * and with them what judges said: `responses` or `response` (texts), or `predicted` (one index or one per vote).
 */
export function parseRows(text: string, file: string): EvalRow[] {
  return parseLines(text, file).map(({ value, where }) => readRow(value, where));
}

/** Judges' outputs from a file of their own, line by line like the rows they belong to. */
export function addOutputs(rows: readonly EvalRow[], text: string, file: string): EvalRow[] {
  const lines = parseLines(text, file);
  expect(lines.length === rows.length, op, file, `${rows.length} lines, one for each row`, lines.length);
  return rows.map((row, i) => ({ ...row, ...readOutputs(lines[i]!.value, row.steps, lines[i]!.where) }));
}

type Json = Record<string, unknown>;

function parseLines(text: string, file: string): { value: Json; where: string }[] {
  const lines = text.split("\n").map((line, i) => ({ line, where: `${file}:${i + 1}` }));
  return lines
    .filter(({ line }) => line.trim() !== "")
    .map(({ line, where }) => {
      let value: unknown;
      try {
        value = JSON.parse(line);
      } catch (cause) {
        const shown = JSON.stringify(line.slice(0, 60));
        throw new FapoError("ERR_INVALID_ARGUMENT", `${op}: expected ${where} to be JSON, got ${shown}`, { cause });
      }
      expect(isObject(value), op, where, "an object", value);
      return { value, where };
    });
}

function readRow(row: Json, where: string): EvalRow {
  const texts = Array.isArray(row.steps)
    ? row.steps
    : typeof row.solution === "string"
      ? splitSteps(row.solution)
      : null;
  const truth = inside(row.reward_model, "ground_truth") ?? row.label ?? row.truth;
  const steps = inside(row.extra_info, "total_steps") ?? texts?.length ?? row.steps;
  expect(isCount(steps) && steps > 0, op, `${where}: the number of steps`, "a positive integer", steps);
  const label = isCount(truth) || truth === -1;
  expect(label && truth < steps, op, `${where}: the label`, `an integer from -1 to ${steps - 1}`, truth);

  const id = typeof row.id === "string" ? /^(.+?)-\d+$/.exec(row.id)?.[1] : undefined;
  const subset = row.subset ?? row.data_source ?? id ?? "all";
  const correct = row.final_answer_correct ?? row.correct ?? true;
  return {
    subset: String(subset),
    truth,
    steps,
    correct: correct !== false && correct !== 0,
    messages: readMessages(row, texts, where),
    ...readOutputs(row, steps, where),
  };
}

function readMessages(row: Json, texts: unknown[] | null, where: string): readonly ChatMessage[] | null {
  if (row.prompt !== undefined) {
    const { prompt } = row;
    const messages = Array.isArray(prompt) && prompt.every((m) => isObject(m) && typeof m.content === "string");
    expect(messages, op, `${where}: prompt`, "an array of messages", prompt);
    return prompt as ChatMessage[];
  }
  if (typeof row.problem !== "string" || texts === null) return null;
  const { problem, answer } = row;
  return fapoPrompt({ problem, solution: texts as string[], ...(typeof answer === "string" ? { answer } : {}) })
    .messages;
}

function readOutputs(row: Json, steps: number, where: string): Pick<EvalRow, "responses" | "votes"> {
  const responses = row.responses ?? row.response ?? null;
  if (responses !== null) {
    const texts = Array.isArray(responses) ? responses : [responses];
    const strings = texts.every((text) => typeof text === "string");
    expect(strings, op, `${where}: responses`, "a text or an array of texts", responses);
    return { responses: texts, votes: texts.map((text) => parseVerdict(text, steps)) };
  }
  if (row.predicted === undefined) return { responses: null, votes: null };
  const votes: unknown[] = Array.isArray(row.predicted) ? row.predicted : [row.predicted];
  const numbers = votes.every((vote) => vote === null || typeof vote === "number");
  expect(numbers, op, `${where}: predicted`, "an index, null, or an array of these", row.predicted);
  const inRange = (vote: unknown) => (isCount(vote) || vote === -1) && vote < steps;
  return { responses: null, votes: votes.map((vote) => (inRange(vote) ? (vote as number) : null)) };
}

function inside(value: unknown, name: string): unknown {
  return isObject(value) ? value[name] : undefined;
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
