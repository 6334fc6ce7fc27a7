/**
 * What the judge is asked. The prompt is that of the FAPO authors' critic data (arXiv 2510.22543, appendix F).
 */
import { expect } from "../check.ts";
import type { ChatMessage } from "./request.ts";

/** A response to be judged. */
export interface JudgeItem {
  problem: string;
  /** The right final answer. Without one the judge is not shown any. */
  answer?: string;
  /** The response: its steps, or a text, which is split at blank lines. */
  solution: string | readonly string[];
}

export interface JudgePrompt {
  messages: readonly ChatMessage[];
  /** How many steps the judge may choose from: an index of `steps` or more is no verdict. */
  steps: number;
}

/**
 * Problem, right answer and the solution in `<paragraph_i>` blocks from 0; asks for the index of the earliest error, or
 * -1, in `\boxed{}`.
 */
export function fapoPrompt(item: JudgeItem): JudgePrompt {
  const op = "fapoPrompt";
  expect(typeof item === "object" && item !== null, op, "the item", "{ problem, answer, solution }", item);
  const { problem, answer, solution } = item;
  expect(typeof problem === "string", op, "problem", "a string", problem);
  expect(answer === undefined || typeof answer === "string", op, "answer", "a string", answer);
  const steps = typeof solution === "string" ? splitSteps(solution) : solution;
  const strings = Array.isArray(steps) && steps.every((step) => typeof step === "string");
  expect(strings, op, "solution", "a string or an array of strings", solution);

  const given = answer === undefined ? "a math problem" : "a math problem with its ground truth answer";
  const blocks = [
    `The following is ${given}, along with an AI solution (split into paragraphs, enclosed with tags and indexed from 0):`,
    `[Math Problem]\n\n${problem}`,
    ...(answer === undefined ? [] : [`[Ground Truth]\n\n${answer}`]),
    "[AI Solution]",
    ...steps.map((step, i) => `<paragraph_${i}>\n${step}\n</paragraph_${i}>`),
    "Your task is to review and critique the solution paragraph by paragraph. Once you identify an error in a paragraph, return the index of the paragraph where the earliest error occurs. Otherwise, return the index of -1 (which typically denotes 'not found').",
    "Please reason step by step, put your final answer (i.e., the index) in \\boxed{}.",
  ];
  return { messages: [{ role: "user", content: blocks.join("\n\n") }], steps: steps.length };
}

/** The paragraphs of a response: what blank lines part, without space around; empty ones are left out. */
export function splitSteps(solution: string): string[] {
  return solution
    .split(/\n[^\S\n]*\n/)
    .map((step) => step.trim())
    .filter((step) => step !== "");
}
