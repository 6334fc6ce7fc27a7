// `npm run bench:guard`: fails when an op has become slower than bench/guard.json says; see bench/guard.ts.
//   --update        writes what is measured now as the baseline of this class of machines
//   --file <file>   another baseline than bench/guard.json
//   --filter <text> only cases with this text in their name
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { baselineOf, guardedCases, lossesOf, machineClass, sentence } from "../dist/bench/guard.js";
import { exposeGc } from "../dist/bench/harness.js";
import { title } from "../dist/bench/report.js";

const committed = path.join(path.dirname(path.dirname(fileURLToPath(import.meta.url))), "bench/guard.json");
const { values } = parseArgs({
  options: {
    update: { type: "boolean", default: false },
    file: { type: "string", default: committed },
    filter: { type: "string", default: "" },
  },
});

exposeGc();
const started = performance.now();
const machine = machineClass();
const classes = JSON.parse(readFileSync(values.file, "utf8"));
const cases = guardedCases().filter((one) => title(one).includes(values.filter));
if (values.update) {
  const round = (_, value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);
  classes[machine] = { ...classes[machine], ...(await baselineOf(cases)) };
  writeFileSync(values.file, `${JSON.stringify(classes, round, 2)}\n`);
  console.log(`${machine}: ${cases.length} baselines written`);
} else if (!classes[machine]) {
  console.log(`${machine}: no baseline for this class of machines, nothing compared; --update writes one`);
} else {
  const losses = await lossesOf(cases, classes[machine]);
  for (const loss of losses) console.log(sentence(loss));
  const known = cases.filter((one) => title(one) in classes[machine]).length;
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(`${machine}: ${losses.length} of ${known} cases became slower than allowed (${seconds} s)`);
  if (losses.length > 0) process.exitCode = 1;
}
