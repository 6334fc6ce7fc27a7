// Runs every ```js example of the README and docs/, and keeps the ```text block after it true.
//   node scripts/docs-output.mjs           writes the outputs
//   node scripts/docs-output.mjs --check   fails where an output differs
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
process.chdir(root);
const check = process.argv.includes("--check");
const pages = readdirSync("docs", { recursive: true }).map((file) => path.join("docs", String(file)));
const example = /```js\n([\s\S]*?)```\n\n```text\n([\s\S]*?)```/g;
let examples = 0;
let wrong = 0;

for (const page of ["README.md", ...pages.filter((file) => file.endsWith(".md"))]) {
  const text = readFileSync(page, "utf8");
  const updated = text.replaceAll(example, (block, source, shown) => {
    examples++;
    const printed = execFileSync(process.execPath, ["--input-type=module", "--eval", source], { encoding: "utf8" });
    if (same(printed, shown)) return block;
    wrong++;
    if (check) console.error(`${page}: the example prints\n${printed}\nnot\n${shown}`);
    return `\`\`\`js\n${source}\`\`\`\n\n\`\`\`text\n${printed}\`\`\``;
  });
  if (!check && updated !== text) writeFileSync(page, updated);
}

// Instruction sets differ in the last digits of a float32.
function same(printed, shown) {
  const number = /-?\d+\.\d+(?:e[-+]?\d+)?/g;
  const [a, b] = [printed, shown].map((text) => (text.match(number) ?? []).map(Number));
  if (printed.replaceAll(number, "#") !== shown.replaceAll(number, "#")) return false;
  return a.every((value, i) => Math.abs(value - b[i]) <= 1e-9 + 1e-6 * Math.abs(b[i]));
}

if (check) {
  console.log(`${examples - wrong} examples print what the docs show, ${wrong} do not`);
} else {
  console.log(`${examples} examples, ${wrong} outputs written`);
}
if (examples === 0 || (check && wrong > 0)) process.exitCode = 1;
