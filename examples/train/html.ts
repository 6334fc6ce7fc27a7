/** The report as one page that needs nothing else: no script, no font, no network. */
import type { Chart } from "./charts.ts";
import { fewestOfAKind, labelledPerStep } from "./monitor.ts";
import type { Results } from "./results.ts";
import { finalTable, findings, logTable, type Table } from "./summary.ts";
import { chartMarkup, chartStyle, escapeXml, fontFamily, palette } from "./svg.ts";

const chartSize = { width: 520, height: 310 };

export function htmlReport(results: Results, charts: Chart[] | undefined): string {
  const sentences = findings(results);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>FAPO and GRPO from the same start</title>
<style>
${palette(":root")}
${pageStyle}
${chartStyle}
</style>
</head>
<body>
<main>
<h1>FAPO and GRPO from the same start</h1>
<p class="lead">${sentenceMarkup(sentences[0]!)}</p>
${sentences
  .slice(1)
  .map((sentence) => `<p>${sentenceMarkup(sentence)}</p>`)
  .join("\n")}
${charts ? chartSection(charts, results) : ""}
<section class="columns">
<div><h2>Outcome</h2>${tableMarkup(finalTable(results))}</div>
<div><h2>Settings</h2>${tableMarkup({ head: [], rows: settingRows(results) })}</div>
<div><h2>Where and how long</h2>${tableMarkup({ head: [], rows: environmentRows(results) })}</div>
</section>
${results.stepsDone > 0 ? logSection(results) : ""}
<footer>Made by ${results.environment.package}; FAPO: <a href="https://arxiv.org/abs/2510.22543">arXiv 2510.22543</a>. All numbers of this page, step by step, are in train.json beside it.</footer>
</main>
</body>
</html>
`;
}

/** No line may end between a number and its percent sign. */
function sentenceMarkup(sentence: string): string {
  return escapeXml(sentence).replaceAll(" %", "&nbsp;%");
}

function chartSection(charts: Chart[], { settings }: Results): string {
  const { width, height } = chartSize;
  const cards = charts.map(
    (chart) =>
      `<figure><svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeXml(`${chart.title}: ${chart.unit}`)}">\n${chartMarkup(chart, width, height)}\n</svg></figure>`,
  );
  return `<p class="legend"><span class="key fapo-key"></span>FAPO <span class="key grpo-key"></span>GRPO
<span class="note">bold: ${settings.smoothing} steps pooled; faint: each step of ${settings.prompts * settings.groupSize} replies</span></p>
<section class="charts">
${cards.join("\n")}
<figure class="words">
<h2>How to read it</h2>
<p>A problem is a start digit, three addends and a crib; the reply is three partial sums. The reward of GRPO sees the last digit alone. The crib is that digit ${Math.round(settings.cribRate * 100)} % of the time, so copying it pays: right answers over wrong steps, flawed positives.</p>
<p>FAPO takes λ = ${settings.lambda} from a right answer whose steps are flawed. While ρ is small a flawed positive is still better than its group and helps; past 2/λ − 1 it is worse than its group and is unlearnt.</p>
<p>${settings.quick ? quickWords : fullWords(settings.cribRate)}</p>
</figure>
</section>`;
}

const quickWords = "This was a smoke run (--quick): too short for any of these curves to mean something.";

function fullWords(cribRate: number): string {
  return `With the default settings outcome accuracy is about the same for both only at first, while flawed positives carry it. Afterwards GRPO stays at what the crib is worth, about ${Math.round(cribRate * 100)} %. What tells them apart is reliable accuracy.`;
}

function logSection({ runs, settings }: Results): string {
  const tables = runs.map(
    (run) => `<div><h2>${run.name}, judge: ${escapeXml(run.judge)}</h2>${tableMarkup(logTable(run))}</div>`,
  );
  return `<section class="log">
<h2>What the trainer logs</h2>
<p>By the judge's verdicts, not by the truth that the charts show. Corrected, and the shift point: what recall and false alarms of the judge make of them, on the latest right answers that the exact checker labelled (${labelledPerStep} of each step); λ = ${settings.lambda} for FAPO, 0 for GRPO, which has no shift point. Every step is in train.json.</p>
<p><code>?</code>: not known, as long as fewer than ${fewestOfAKind} flawed or ${fewestOfAKind} sound ones are labelled, or because the judge cannot tell them apart. <code>inf</code>: under rho, no reply was wrong; under shift point, there is none.</p>
${tables.join("\n")}
</section>`;
}

function settingRows({ settings, runs }: Results): string[][] {
  return [
    ["seed", String(settings.seed)],
    ["λ (flawedPenalty)", `${settings.lambda} for FAPO, 0 for GRPO`],
    ["judge", runs[0]?.judge ?? "exact"],
    ...(settings.judge.kind === "servers" ? [["no verdict counts as", settings.judge.unknownVerdict]] : []),
    ["batch", `${settings.prompts} problems × ${settings.groupSize} replies`],
    ["steps", `${settings.steps}, ${settings.minibatches} minibatches each`],
    ["warm start", `${settings.warmSteps} supervised steps, shared`],
    ["optimiser", `Adam, learning rate ${settings.learningRate}`],
    ["loss", "clip 0.2 / 0.28, dual clip 10, token-mean; no KL, no entropy term"],
    ["policy", `${settings.parameters.toLocaleString("en")} parameters`],
  ];
}

function environmentRows({ environment, timing, settings }: Results): string[][] {
  const seconds = (value: number): string => `${value.toFixed(1)} s`;
  return [
    ["package", `${environment.package} ${environment.version}`],
    ["device", `${settings.device}, ${environment.isa}, ${environment.threads} threads`],
    ["processor", environment.cpu],
    ["Node.js", `${environment.node}, ${environment.platform}`],
    ["warm start", seconds(timing.warmSeconds)],
    ...Object.entries(timing.trainingSeconds).map(([name, value]) => [`training, ${name}`, seconds(value)]),
    ["in all", `${seconds(timing.wallSeconds)}, ${seconds(timing.cpuSeconds)} of processor time`],
  ];
}

function tableMarkup({ head, rows }: Table): string {
  const row = (cells: string[], tag: "td" | "th"): string =>
    `<tr>${cells.map((cell, i) => (i === 0 ? `<th scope="row">${escapeXml(cell)}</th>` : `<${tag}>${escapeXml(cell)}</${tag}>`)).join("")}</tr>`;
  const top = head.length > 0 ? `<thead>${row(head, "th")}</thead>` : "";
  return `<table>${top}<tbody>${rows.map((cells) => row(cells, "td")).join("")}</tbody></table>`;
}

const pageStyle = `body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 ${fontFamily}; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 40px; }
h1 { font-size: 26px; margin: 0 0 8px; }
h2 { font-size: 16px; margin: 0 0 8px; }
p { margin: 0 0 6px; max-width: 120ch; }
.lead { font-size: 18px; margin-bottom: 12px; }
.legend { margin: 22px 0 10px; font-weight: 600; }
.legend .note { margin-left: 14px; font-weight: 400; color: var(--muted); }
.key { display: inline-block; width: 22px; height: 4px; border-radius: 2px; margin: 0 6px 4px 0; vertical-align: middle; }
.grpo-key { margin-left: 14px; background: var(--grpo); } .fapo-key { background: var(--fapo); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
.words { padding: 20px; } .words p { margin-bottom: 12px; }
.columns { display: flex; flex-wrap: wrap; gap: 28px; margin-top: 28px; }
.columns > div, .log > div { overflow-x: auto; max-width: 100%; }
.log { margin-top: 28px; } .log > div { margin-top: 16px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; font-weight: 400; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody th { color: var(--muted); }
thead th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
footer { margin-top: 28px; color: var(--muted); font-size: 13px; }
a { color: inherit; }`;
