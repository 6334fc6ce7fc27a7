/** Everything in the docs that is made of the files in bench/results. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type Report, root } from "../report.ts";
import { withTables } from "./table.ts";

/** File name to text, as it should be; `read` gives what is there, relative to the root. */
export function pages(read: (file: string) => string | undefined): Record<string, string> {
  const reports = new Map<string, Report>();
  for (const name of readdirSync(join(root, "bench/results")).sort()) {
    if (name.endsWith(".json")) reports.set(name, JSON.parse(read(`bench/results/${name}`)!) as Report);
  }
  const page = "docs/performance.md";
  return { [page]: withTables(read(page)!, reports) };
}
