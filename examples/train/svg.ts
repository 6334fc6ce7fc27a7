/** Charts as SVG. Colours are CSS variables, so that a page or the picture itself can turn dark. */
import { type Chart, height, type Series, stepTicks } from "./charts.ts";

const margin = { top: 70, right: 52, bottom: 44, left: 54 };

/** The colours of charts in a light and in a dark surrounding, as CSS for `selector`. */
export function palette(selector: string): string {
  return `${selector} {
  --page: #ffffff; --card: #f7f8fa; --text: #1c2330; --muted: #5a6472; --line: #d9dde3;
  --fapo: #0b63c5; --grpo: #b94a00; --mark: #6b3fa0;
}
@media (prefers-color-scheme: dark) {
  ${selector} {
    --page: #10141a; --card: #181e26; --text: #e8ecf2; --muted: #9aa6b5; --line: #333c48;
    --fapo: #66b0ff; --grpo: #ff9d52; --mark: #c3a1f2;
  }
}`;
}

/** How the parts of a chart look. */
export const chartStyle = `.title { font-size: 16px; font-weight: 600; fill: var(--text); }
.unit, .tick, .end { font-size: 12px; fill: var(--muted); }
.end { font-weight: 600; }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.raw { fill: none; stroke-width: 1; opacity: 0.28; }
.fapo { stroke: var(--fapo); } .grpo { stroke: var(--grpo); }
text.fapo { fill: var(--fapo); stroke: none; } text.grpo { fill: var(--grpo); stroke: none; }
.reference { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 6 4; }
.crossing { stroke: var(--mark); stroke-width: 1.2; stroke-dasharray: 2 3; }
text.crossing { font-size: 12px; fill: var(--mark); stroke: none; }`;

export const fontFamily = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

/** One chart, `width` by `total` units, with its top left corner at the origin. */
export function chartMarkup(chart: Chart, width: number, total: number): string {
  const plot = { width: width - margin.left - margin.right, height: total - margin.top - margin.bottom };
  const bottom = margin.top + plot.height;
  const x = (step: number): number => margin.left + (step / chart.steps) * plot.width;
  const y = (value: number): number => bottom - height(chart, value) * plot.height;
  const right = margin.left + plot.width;

  const parts = [
    text("title", margin.left, 20, chart.title),
    text("unit", margin.left, 38, chart.unit),
    ...chart.ticks.flatMap(({ value, label }) => [
      line("grid", margin.left, y(value), right, y(value)),
      text("tick", margin.left - 8, y(value) + 4, label, "end"),
    ]),
    ...stepTicks(chart.steps, 6).flatMap((step) => [
      line("grid", x(step), bottom, x(step), bottom + 4),
      text("tick", x(step), bottom + 18, String(step), "middle"),
    ]),
    text("unit", margin.left + plot.width / 2, bottom + 36, "training step", "middle"),
  ];
  if (chart.reference) {
    const at = y(chart.reference.value);
    parts.push(line("reference", margin.left, at, right, at));
    // Zero is a tick already.
    if (chart.reference.value !== 0) parts.push(text("tick", margin.left + 6, at - 6, chart.reference.label));
  }
  if (chart.crossing) {
    const at = x(chart.crossing.step);
    // The label stands over the curves, and leans inwards near the edges.
    const share = (at - margin.left) / plot.width;
    const anchor = share < 0.2 ? "start" : share > 0.8 ? "end" : "middle";
    parts.push(
      line("crossing", at, margin.top - 6, at, bottom),
      text("crossing", at, margin.top - 11, `ρ crosses at ${chart.crossing.label}`, anchor),
    );
  }
  for (const one of chart.series) parts.push(polyline(`raw ${one.name.toLowerCase()}`, one.raw, x, y));
  for (const one of chart.series) parts.push(polyline(`curve ${one.name.toLowerCase()}`, one.smooth, x, y));
  return [...parts, ...endLabels(chart.series, x, y)].filter((part) => part !== "").join("\n");
}

/** A picture of some charts in two columns, on a ground of its own. */
export function figure(charts: Chart[], caption: string): string {
  const [width, total, gap] = [480, 300, 16];
  const rows = Math.ceil(charts.length / 2);
  const size = { width: 2 * width + 3 * gap, height: rows * (total + gap) + 56 };
  const cells = charts.map((chart, i) => {
    const left = gap + (i % 2) * (width + gap);
    const top = 44 + Math.floor(i / 2) * (total + gap);
    return `<g transform="translate(${left} ${top})">\n${chartMarkup(chart, width, total)}\n</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" width="${size.width}" height="${size.height}" role="img" font-family="${escapeXml(fontFamily)}">
<title>${escapeXml(caption)}</title>
<style>
${palette("svg")}
${chartStyle}
</style>
<rect width="100%" height="100%" fill="var(--page)"/>
${text("unit", gap + margin.left, 28, caption)}
${cells.join("\n")}
</svg>
`;
}

export function escapeXml(value: string): string {
  return value.replace(/[&<>"]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[letter]!);
}

function text(className: string, x: number, y: number, value: string, anchor = "start"): string {
  return `<text class="${className}" x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">${escapeXml(value)}</text>`;
}

function line(className: string, x1: number, y1: number, x2: number, y2: number): string {
  return `<line class="${className}" x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}"/>`;
}

/** A path with a gap wherever there is no number. */
function polyline(
  className: string,
  values: readonly number[],
  x: (step: number) => number,
  y: (value: number) => number,
): string {
  let path = "";
  let drawing = false;
  for (const [i, value] of values.entries()) {
    if (!Number.isNaN(value)) path += `${drawing ? "L" : "M"}${round(x(i + 1))} ${round(y(value))}`;
    drawing = !Number.isNaN(value);
  }
  return path === "" ? "" : `<path class="${className}" d="${path}"/>`;
}

/** Each name beside the end of its curve, and no two on one another. */
function endLabels(series: Series[], x: (step: number) => number, y: (value: number) => number): string[] {
  const labels = series
    .map(({ name, smooth }) => {
      const last = smooth.findLastIndex((value) => !Number.isNaN(value));
      return { name, x: x(last + 1) + 7, y: y(smooth[last] ?? Number.NaN) + 4 };
    })
    .filter((label) => Number.isFinite(label.y))
    .sort((a, b) => a.y - b.y);
  for (const [i, label] of labels.entries()) {
    const above = labels[i - 1];
    if (above && Math.abs(above.x - label.x) < 40) label.y = Math.max(label.y, above.y + 14);
  }
  return labels.map(({ name, x, y }) => text(`end ${name.toLowerCase()}`, x, y, name));
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
