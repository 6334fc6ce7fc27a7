/** Curves in the terminal, in braille: two dots across and four down per character. */
import { type Chart, height, type Series, stepTicks } from "./charts.ts";
import type { AlgorithmName } from "./experiment.ts";

export interface PlotOptions {
  /** Columns of the terminal. */
  columns: number;
  /** Lines of the curves alone. */
  lines?: number;
  /** ANSI colours. Without them the names at the end of the curves tell them apart. */
  color: boolean;
}

type Style = AlgorithmName | "faint" | "bold";
const ansi: Record<Style, string> = { FAPO: "36", GRPO: "33", faint: "2", bold: "1" };
// By row and column of the dot within its character.
const dots = [
  [0x01, 0x08],
  [0x02, 0x10],
  [0x04, 0x20],
  [0x40, 0x80],
] as const;

interface Cell {
  bits: number;
  style: Style;
}

export function plot(chart: Chart, { columns, lines = 9, color }: PlotOptions): string {
  const paint = (style: Style, text: string): string => (color ? `\x1b[${ansi[style]}m${text}\x1b[0m` : text);
  const axis = Math.max(...chart.ticks.map(({ label }) => label.length)) + 1;
  const width = Math.max(20, Math.min(72, columns - axis - 8));
  const cells: Cell[][] = Array.from({ length: lines }, () =>
    Array.from({ length: width }, () => ({ bits: 0, style: "faint" })),
  );
  const dotRow = (value: number): number => Math.round((1 - height(chart, value)) * (lines * 4 - 1));
  const set = (x: number, y: number, style: Style): void => {
    const cell = cells[y >> 2]![x >> 1]!;
    cell.bits |= dots[y & 3]![x & 1]!;
    cell.style = style;
  };

  if (chart.reference) {
    for (let x = 0; x < width * 2; x += 4) set(x, dotRow(chart.reference.value), "faint");
  }
  if (chart.crossing) {
    const x = Math.round((chart.crossing.step / chart.steps) * (width * 2 - 1));
    for (let y = 0; y < lines * 4; y += 3) set(x, y, "faint");
  }
  // The first series is drawn last and owns the characters that it shares.
  for (const one of [...chart.series].reverse()) drawCurve(one, width * 2, dotRow, set);

  const tickAt = new Map(chart.ticks.map(({ value, label }) => [dotRow(value) >> 2, label]));
  const rows = cells.map((row, y) => {
    const label = tickAt.get(y);
    // A division, not a shift, which would make row 0 of a curve without a number.
    const names = chart.series.filter((one) => Math.floor(dotRow(lastNumber(one.smooth)) / 4) === y);
    const ends = names.map(({ name }) => ` ${paint(name, name)}`).join("");
    return `${(label ?? "").padStart(axis)} ${label ? "┤" : "│"}${paintRow(row, paint)}${ends}`;
  });
  const left = " ".repeat(axis + 1);
  return [
    `${left} ${paint("bold", chart.title)} ${paint("faint", `(${chart.unit})`)}`,
    ...rows,
    `${left}└${"─".repeat(width)}`,
    `${left} ${stepLabels(chart, width)}`,
    ...(chart.crossing ? [`${left} ${paint("faint", crossingNote(chart, width))}`] : []),
  ].join("\n");
}

/** Neighbours of one style are painted as one. */
function paintRow(row: readonly Cell[], paint: (style: Style, text: string) => string): string {
  let [line, text] = ["", ""];
  for (const [i, { bits, style }] of row.entries()) {
    text += bits === 0 ? " " : String.fromCharCode(0x2800 + bits);
    if (row[i + 1]?.style === style) continue;
    line += text.trim() === "" ? text : paint(style, text);
    text = "";
  }
  return line;
}

function drawCurve(
  { name, smooth }: Series,
  width: number,
  dotRow: (value: number) => number,
  set: (x: number, y: number, style: AlgorithmName) => void,
): void {
  let before: number | undefined;
  for (let x = 0; x < width; x++) {
    // The axis begins at step 0, the curve at step 1.
    const step = Math.max(1, Math.round((x / (width - 1)) * smooth.length));
    const value = smooth[step - 1]!;
    if (Number.isNaN(value)) {
      before = undefined;
      continue;
    }
    const y = dotRow(value);
    // A steep curve fills the dots between its neighbours.
    const from = before === undefined || before === y ? y : before + Math.sign(y - before);
    for (let at = Math.min(from, y); at <= Math.max(from, y); at++) set(x, at, name);
    before = y;
  }
}

function stepLabels(chart: Chart, width: number): string {
  const line = Array.from({ length: width + 8 }, () => " ");
  for (const step of stepTicks(chart.steps, 6)) {
    const at = Math.round((step / chart.steps) * (width - 1));
    for (const [i, letter] of [...String(step)].entries()) line[at + i] = letter;
  }
  return `${line.join("").trimEnd()} step`;
}

function crossingNote({ crossing, steps }: Chart, width: number): string {
  const at = Math.round((crossing!.step / steps) * (width - 1));
  return `${" ".repeat(at)}↑ rho passes 2/lambda - 1 at ${crossing!.label}`;
}

function lastNumber(values: readonly number[]): number {
  return values.findLast((value) => !Number.isNaN(value)) ?? Number.NaN;
}
