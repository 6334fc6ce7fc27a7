// `npm run test:schedules`: the tests that exercise the kernels most, on the emulated GPU, once per further schedule of
// its threads, streams and copies, as an older GPU, and with every launch waited for. `npm test` runs everything once.
//   node scripts/test-schedules.mjs [test file ...]
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { buildEmulated, kernelTests, notTheSlowest } from "./emulated.mjs";

process.chdir(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
const { library, why } = buildEmulated();
if (!library) throw new Error(why);

const schedules = [
  { CUDA_EMU_SEED: "1" },
  { CUDA_EMU_SEED: "2" },
  { CUDA_EMU_SEED: "3" },
  { CUDA_EMU_STREAM: "lazy", CUDA_EMU_SEED: "4" },
  { CUDA_EMU_COMPUTE: "8.0" },
  { FAPO_CUDA_DEBUG: "1" },
];
const folder = "build-ts/test";
const gpu = /^(compare|large|memory|repeats|sanitized)\.gpu\.js$/;
const filesOf = (from, pattern) =>
  readdirSync(from)
    .filter((file) => pattern.test(file))
    .map((file) => path.join(from, file));
const given = process.argv.slice(2);
const tests = given.length > 0 ? given : [...filesOf(path.join(folder, "gpu"), gpu), ...filesOf(folder, kernelTests)];

const env = {
  ...process.env,
  FAPO_TEST_DEVICES: "cuda:0",
  FAPO_KERNELS_CUDA: library,
  FAPO_TEST_EMULATED: library,
  FAPO_TEST_SCALE: "0.1",
};
// Where every launch is waited for, what data does wrong is told by the call, and not by the next wait.
const testsUnder = ({ FAPO_CUDA_DEBUG }) => tests.filter((file) => !(FAPO_CUDA_DEBUG && /cuda\.data/.test(file)));

for (const schedule of schedules) {
  const started = performance.now();
  const args = ["--test", "--test-reporter=tap", "--test-concurrency=2", notTheSlowest, ...testsUnder(schedule)];
  const run = spawnSync(process.execPath, args, { env: { ...env, ...schedule }, encoding: "utf8", maxBuffer: 1 << 28 });
  const count = (what) => Number(new RegExp(`^# ${what} (\\d+)$`, "m").exec(run.stdout)?.[1] ?? Number.NaN);
  const ok = run.status === 0 && count("pass") > 0 && count("fail") === 0;
  if (!ok) {
    process.exitCode = 1;
    console.log(run.stdout.replace(/^ok .*\n {2}---\n(.*\n)*? {2}\.\.\.\n/gm, "").replace(/^# Subtest: .*\n/gm, ""));
  }
  const name = Object.entries(schedule).map(([key, value]) => `${key}=${value}`);
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(
    `${ok ? "ok  " : "FAIL"} ${name.join(" ")}: ${count("pass")} passed, ${count("fail")} failed (${seconds} s)`,
  );
}
