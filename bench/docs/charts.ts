/** The charts of a report: share of the memory floor, and ratios to other implementations. SVG, for light and dark pages. */
import { percent } from "../bars.ts";
import type { Measurement } from "../harness.ts";
import type { Report } from "../report.ts";

const dtypes = ["float32", "bfloat16", "float16"] as const;
const left = 290;
const row = 22;

/** What came of buffers beyond the caches, one row per op and variant, one panel per shape, one dot per dtype. */
export function floorChart(report: Report, file: string): string {
  const results = report.results.filter(({ floor, bytes }) => floor && bytes >= 64e6);
  const shapes = distinct(results.filter(({ shape }) => vocabShape(shape)).map(({ shape }) => shape));
  const most = Math.max(...results.map(({ threads }) => threads ?? 1));
  const panel = Math.floor(600 / Math.max(1, shapes.length)) - 24;
  const names = distinct(results.filter(({ shape }) => shapes.includes(shape)).map(plainName));
  const top = 96;
  const bottom = top + names.length * row;
  const x = (share: number): number => (Math.min(share, 1.2) / 1.2) * panel;
  const parts: string[] = [];
  names.forEach((name, i) => {
    parts.push(text(left - 14, top + i * row + 15, name, "label", "end"));
  });
  shapes.forEach((shape, p) => {
    const at = left + p * (panel + 24);
    parts.push(text(at + panel / 2, top - 28, shape.replace("x", " x "), "head", "middle"));
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      parts.push(line(at + x(share), top - 6, at + x(share), bottom, share === 1 ? "floor" : "grid"));
      if (share !== 0.25 && share !== 0.75) {
        parts.push(text(at + x(share), top - 11, percent(share), "tick", "middle"));
      }
    }
    names.forEach((name, i) => {
      const y = top + i * row + 11;
      parts.push(line(at, y, at + panel, y, "rule"));
      for (const result of results.filter((one) => one.shape === shape && plainName(one) === name)) {
        const all = (result.threads ?? 1) === most;
        const k = (dtypes as readonly string[]).indexOf(result.dtype);
        const hint = `${name}, ${shape}, ${result.dtype}, ${threadsOf(result)}: ${percent(result.floor!.share)}`;
        const cy = y + (k - 1) * 4;
        const cx = at + x(result.floor!.share);
        parts.push(circle(cx, cy, `dot ${result.dtype}${all ? "" : " open"}`, hint));
      }
    });
  });
  const legend: string[] = [];
  dtypes.forEach((dtype, i) => {
    legend.push(circle(left + 6 + i * 100, 42, `dot ${dtype}`), text(left + 18 + i * 100, 46, dtype, "tick"));
  });
  legend.push(circle(left + 330, 42, "dot open"), text(left + 342, 46, "1 thread", "tick"));
  if (most > 1) legend.push(circle(left + 430, 42, "dot all"), text(left + 442, 46, `${most} threads`, "tick"));
  return svg("Share of the memory floor, rows x vocabulary", [...legend, ...parts], bottom + 14, report, file);
}

/** How many times as long others take, on the first shape, with as many threads as there are cores. */
export function peersChart(report: Report, file: string): string {
  const most = Math.max(...report.results.map(({ threads }) => threads ?? 1));
  const large = report.results.filter(
    ({ shape, bytes, peers }) => vocabShape(shape) && bytes >= 64e6 && peers.length > 0,
  );
  const shape = large[0]?.shape ?? "";
  const chosen = large.filter((one) => one.shape === shape && (one.threads ?? most) === most && isMain(one));
  const end = 880;
  const highest =
    10 ** Math.ceil(Math.log10(Math.max(10, ...chosen.flatMap(({ peers }) => peers.map((p) => p.ratio)))));
  const x = (ratio: number): number =>
    left + (Math.log10(Math.max(1, ratio)) / Math.log10(highest)) * (end - left - 50);
  const top = 66;
  const parts: string[] = [];
  let y = top;
  for (const one of chosen) {
    const ms = (one.clock === "cpu" ? one.cpuMs : one.wallMs).median;
    parts.push(text(20, y + 15, `${plainName(one)}, ${one.dtype}: ${ms.toPrecision(3)} ms`, "head"));
    y += row;
    for (const { name, ratio, ms: theirs } of one.peers.toSorted((a, b) => a.ratio - b.ratio)) {
      const hint = `${name}: ${theirs.toPrecision(3)} ms, ${ratio.toPrecision(3)} times`;
      parts.push(text(left - 10, y + 14, short(name), "label", "end"));
      parts.push(bar(left, y + 3, x(ratio) - left, row - 8, one.dtype, hint));
      parts.push(text(x(ratio) + 6, y + 14, `${ratio.toPrecision(ratio < 10 ? 2 : 3)}x`, "tick"));
      y += row - 2;
    }
    y += 8;
  }
  const grid: string[] = [];
  for (let ratio = 1; ratio <= highest; ratio *= 10) {
    grid.push(line(x(ratio), top - 6, x(ratio), y, ratio === 1 ? "floor" : "grid"));
    grid.push(text(x(ratio), top - 11, ratio === 1 ? "the op" : `${ratio}x`, "tick", "middle"));
  }
  const title = `Time of others by that of the op, ${shape.replace("x", " x ")}, ${most} threads`;
  return svg(title, [...grid, ...parts], y + 6, report, file);
}

/** Op and variant. */
function plainName({ op, variant }: Measurement): string {
  return variant ? `${op}, ${variant}` : op;
}

export type Chart = "floor" | "peers";

export function chartsOf(report: Report): Chart[] {
  return hasPeers(report) ? ["floor", "peers"] : ["floor"];
}

/** Relative to docs. */
export function chartFile(name: string, chart: Chart): string {
  return `charts/${name.replace(/\.json$/, "")}-${chart}.svg`;
}

/** Whether anything but plain TypeScript was beside the ops. */
function hasPeers(report: Report): boolean {
  return report.results.some(({ peers, shape }) => vocabShape(shape) && peers.length > 1);
}

function isMain({ op, variant, dtype }: Measurement): boolean {
  if (dtype === "float16") return false;
  return (op === "tokenLogprob" && variant === "") || (op === "fusedPolicyLoss" && variant === "in place");
}

/** Rows and vocabulary, not groups and their size. */
function vocabShape(shape: string): boolean {
  const [rows, columns] = shape.split("x").map(Number);
  return rows! > 1 && (columns ?? 0) >= 1000;
}

function threadsOf({ threads, device }: Measurement): string {
  return threads === undefined ? device : `${threads} thread${threads === 1 ? "" : "s"}`;
}

/** Without the versions, which the caption has; two of them know one thread alone. */
function short(name: string): string {
  return name
    .replace(/^PyTorch [^:]*: /, "PyTorch: ")
    .replace(/^onnxruntime-node .*$/, "onnxruntime-node")
    .replace(/^TensorFlow\.js .*$/, "TensorFlow.js (wasm, 1 thread)")
    .replace(/^plain TypeScript$/, "plain TypeScript (1 thread)");
}

function distinct(values: readonly string[]): string[] {
  return [...new Set(values)];
}

// ---- SVG

const style = `
svg { --page: #ffffff; --text: #1c2330; --muted: #5a6472; --line: #d9dde3;
  --float32: #0b63c5; --bfloat16: #b94a00; --float16: #6b3fa0; }
@media (prefers-color-scheme: dark) {
  svg { --page: #10141a; --text: #e8ecf2; --muted: #9aa6b5; --line: #333c48;
    --float32: #66b0ff; --bfloat16: #ff9d52; --float16: #c3a1f2; }
}
text { font-size: 12px; fill: var(--text); }
.title { font-size: 16px; font-weight: 600; }
.head { font-weight: 600; }
.head, .tick { stroke: var(--page); stroke-width: 4px; paint-order: stroke; }
.tick, .caption { fill: var(--muted); font-size: 11px; }
.grid { stroke: var(--line); }
.rule { stroke: var(--line); stroke-dasharray: 1 4; }
.floor { stroke: var(--text); stroke-dasharray: 5 4; }
.float32 { fill: var(--float32); stroke: var(--float32); }
.bfloat16 { fill: var(--bfloat16); stroke: var(--bfloat16); }
.float16 { fill: var(--float16); stroke: var(--float16); }
.dot { stroke-width: 1.6; }
.all { fill: var(--muted); stroke: var(--muted); }
.open { fill: var(--page); stroke: var(--muted); }
.open.float32 { stroke: var(--float32); } .open.bfloat16 { stroke: var(--bfloat16); } .open.float16 { stroke: var(--float16); }
`;

function svg(title: string, parts: readonly string[], bottom: number, report: Report, file: string): string {
  const width = 920;
  const captions = caption(report, file);
  const height = bottom + captions.length * 16 + 16;
  const lines = captions.map((words, i) => text(20, bottom + 16 + i * 16, words, "caption"));
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" font-family="system-ui, -apple-system, &quot;Segoe UI&quot;, Roboto, &quot;Helvetica Neue&quot;, Arial, sans-serif">
<title>${escaped(title)}</title>
<style>${style}</style>
<rect width="100%" height="100%" fill="var(--page)"/>
${[text(20, 24, title, "title"), ...parts, ...lines].join("\n")}
</svg>
`;
}

/** Machine, date, versions, commit, command and file, in lines that fit. */
function caption({ machine, versions, date, commit, dirty, command, results }: Report, file: string): string[] {
  const others = distinct(results.flatMap(({ peers }) => peers.map(({ name }) => name.split(": ")[0]!)));
  const gpus = (machine.gpus ?? []).map(({ name }) => `, ${name}, driver ${machine.driver}`).join("");
  return [
    `${machine.cpu}, ${machine.isa}, ${machine.cores} cores, ${machine.memoryGiB} GiB${gpus}, ${machine.os} ${machine.arch}`,
    `fapo-kernels ${versions["fapo-kernels"]}, Node ${versions.node}; beside ${others.join(", ")}`,
    `${date.slice(0, 10)}, commit ${commit?.slice(0, 10) ?? "unknown"}${dirty ? ", with changes" : ""}; bench/results/${file}`,
    ...wrapped(command),
  ];
}

function wrapped(words: string): string[] {
  const lines: string[] = [];
  for (let rest = words; rest !== ""; ) {
    const cut = rest.length <= 140 ? rest.length : Math.max(rest.lastIndexOf(" ", 140), rest.lastIndexOf(",", 140)) + 1;
    lines.push(rest.slice(0, cut || 140));
    rest = rest.slice(cut || 140);
  }
  return lines;
}

function escaped(words: string): string {
  return words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}

function text(x: number, y: number, words: string, kind: string, anchor = "start"): string {
  return `<text class="${kind}" x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">${escaped(words)}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, kind: string): string {
  return `<line class="${kind}" x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}"/>`;
}

function circle(cx: number, cy: number, kind: string, hint?: string): string {
  const title = hint === undefined ? "" : `<title>${escaped(hint)}</title>`;
  return `<circle class="${kind}" cx="${round(cx)}" cy="${round(cy)}" r="4">${title}</circle>`;
}

function bar(x: number, y: number, width: number, height: number, kind: string, hint: string): string {
  const box = `x="${round(x)}" y="${round(y)}" width="${round(Math.max(1, width))}" height="${height}"`;
  return `<rect class="${kind}" ${box} rx="2"><title>${escaped(hint)}</title></rect>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
