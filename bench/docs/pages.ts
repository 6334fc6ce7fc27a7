/** Everything in the docs that is made of the files in bench/results. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type Report, root } from "../report.ts";
import { chartFile, chartsOf, floorChart, peersChart } from "./charts.ts";
import { withCharts, withTables } from "./table.ts";

const isas = ["baseline", "avx2", "avx512"] as const;

/** File name to text, as it should be; `read` gives what is there, relative to the root. */
export function pages(read: (file: string) => string | undefined): Record<string, string> {
  const reports = new Map<string, Report>();
  for (const name of readdirSync(join(root, "bench/results")).sort()) {
    if (name.endsWith(".json")) reports.set(name, JSON.parse(read(`bench/results/${name}`)!) as Report);
  }
  const charts: Record<string, string> = {};
  for (const [name, report] of reports) {
    for (const chart of chartsOf(report)) {
      const draw = chart === "floor" ? floorChart : peersChart;
      charts[`docs/${chartFile(name, chart)}`] = draw(report, name);
    }
  }
  // The README shows the newest results with the widest instruction set.
  const widest = [...isas].reverse().find((isa) => [...reports.values()].some(({ machine }) => machine.isa === isa));
  const best = [...reports].filter(([, { machine }]) => machine.isa === widest).at(-1);
  return {
    ...charts,
    "docs/performance.md": withTables(read("docs/performance.md")!, reports),
    "README.md": withCharts(read("README.md")!, best ? [best] : [], "docs/"),
  };
}
