/** The tables of docs/performance.md. */

import { barOf, percent } from "../bars.ts";
import { plainTypeScript } from "../case.ts";
import { milliseconds, type Report } from "../report.ts";
import { chartFile, chartsOf } from "./charts.ts";

const begin = "<!-- begin: npm run bench:docs -->";
const end = "<!-- end -->";

export function withTables(page: string, reports: ReadonlyMap<string, Report>): string {
  const sections = [...reports].map(([name, report]) => section(report, name));
  return between(page, sections.length === 0 ? "No result is committed yet." : sections.join("\n"));
}

/** `folder` is the way from the page to docs. */
export function withCharts(page: string, reports: Iterable<[name: string, Report]>, folder: string): string {
  return between(page, [...reports].flatMap(([name, report]) => images(report, name, folder)).join("\n\n"));
}

/** The page with what is between the two comments made anew. */
function between(page: string, body: string): string {
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`the comments "${begin}" and "${end}" are missing`);
  return `${page.slice(0, from)}${begin}\n\n${body.trim()}\n\n${page.slice(to)}`;
}

function images(report: Report, name: string, folder: string): string[] {
  const words = { floor: "Share of the memory floor of each op", peers: "Times of other implementations" };
  return chartsOf(report).map((chart) => `![${words[chart]}](${folder}${chartFile(name, chart)})`);
}

export function section(report: Report, file: string): string {
  const { machine, versions, commit } = report;
  const source = `${commit?.slice(0, 10) ?? "no repository"}${report.dirty ? ", with changes" : ""}`;
  const others = report.results.some(({ peers }) => peers.some(({ name }) => name !== plainTypeScript));
  const title = `### ${machine.cpu}, ${machine.isa}${others ? ", beside other implementations" : ""}`;
  const about =
    `${machine.cores} cores, ${machine.memoryGiB} GiB, ${machine.os} ${machine.arch}, Node ${versions.node}; ` +
    `${report.date.slice(0, 10)}, commit ${source}; \`${report.command}\`; ` +
    `[bench/results/${file}](../bench/results/${file})`;
  const large = report.results.filter(({ overhead }) => !overhead);
  const small = report.results.filter(({ overhead }) => overhead);
  const charts = images(report, file, "").flatMap((image) => [image, ""]);
  return [
    title,
    "",
    about,
    "",
    ...charts,
    ...largeTable(large),
    "",
    ...peersTable(large),
    ...smallTable(small),
    "",
  ].join("\n");
}

function largeTable(results: Report["results"]): string[] {
  return [
    "| op | shape | dtype | threads or GPU | ms | GB/s | share of the floor | bar | extra MB | x plain TypeScript |",
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ...results.map((result) => {
      const { shape, dtype, device, threads, gbPerSecond, floor, leastShare } = result;
      const bar = barOf(result, leastShare);
      const share = floor ? `${percent(floor.share)} (${floor.kind})` : "";
      return cells(
        name(result),
        shape,
        dtype,
        threads ? `${threads}` : device,
        time(result),
        gbPerSecond.toFixed(1),
        share,
        bar,
        megabytes(result.peakExtraBytes),
        plain(result),
      );
    }),
  ];
}

/** Everything but plain TypeScript, which the other tables have. */
function peersTable(results: Report["results"]): string[] {
  const rows = results.flatMap((result) =>
    result.peers
      .filter((peer) => peer.name !== plainTypeScript)
      .map((peer) => {
        const { shape, dtype, device, threads } = result;
        const where = threads ? `${threads}` : device;
        const extra = megabytes(peer.peakExtraBytes);
        return cells(
          name(result),
          shape,
          dtype,
          where,
          peer.name,
          milliseconds(peer.ms),
          peer.ratio.toPrecision(3),
          extra,
        );
      }),
  );
  if (rows.length === 0) return [];
  return [
    "Other implementations, in the same rounds; their memory is that of the rows that they took:",
    "",
    "| op | shape | dtype | threads or GPU | other | ms | x the op | extra MB |",
    "| --- | ---: | --- | ---: | --- | ---: | ---: | ---: |",
    ...rows,
    "",
  ];
}

function smallTable(results: Report["results"]): string[] {
  if (results.length === 0) return [];
  return [
    "Overhead of a call, on inputs so small that nothing else counts:",
    "",
    "| op | shape | time | x plain TypeScript |",
    "| --- | ---: | ---: | ---: |",
    ...results
      .filter(({ threads }) => threads === 1)
      .map((result) => cells(name(result), result.shape, time(result), plain(result))),
  ];
}

function cells(...texts: string[]): string {
  return `| ${texts.join(" | ")} |`;
}

function name({ op, variant }: Report["results"][number]): string {
  return variant ? `\`${op}\`, ${variant}` : `\`${op}\``;
}

function time({ clock, cpuMs, wallMs }: Report["results"][number]): string {
  return milliseconds((clock === "cpu" ? cpuMs : wallMs).median);
}

function megabytes(bytes: number | undefined): string {
  return bytes === undefined ? "" : (bytes / 1e6).toFixed(1);
}

function plain({ peers }: Report["results"][number]): string {
  return peers.find((peer) => peer.name === plainTypeScript)?.ratio.toPrecision(3) ?? "";
}
