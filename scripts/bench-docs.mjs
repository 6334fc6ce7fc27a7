// `npm run bench:docs`: the tables and charts of README and docs, made of bench/results.
//   node scripts/bench-docs.mjs           writes them
//   node scripts/bench-docs.mjs --check   fails where they differ
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { pages } from "../dist/bench/docs/pages.js";

process.chdir(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
const check = process.argv.includes("--check");
const read = (file) => {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
};
mkdirSync("docs/charts", { recursive: true });
const wanted = pages(read);
// Charts of results that are gone go, too.
for (const name of readdirSync("docs/charts")) wanted[`docs/charts/${name}`] ??= undefined;
const differing = Object.entries(wanted).filter(([file, text]) => read(file) !== text);
for (const [file, text] of check ? [] : differing) {
  if (text === undefined) rmSync(file);
  else writeFileSync(file, text);
}
for (const [file] of differing) console.log(check ? `${file} is not what bench/results says` : `written: ${file}`);
if (check && differing.length > 0) process.exitCode = 1;
if (differing.length === 0) console.log("all as bench/results says");
