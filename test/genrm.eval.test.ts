import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { GenRM } from "fapo-kernels/genrm";
import { fakeJudge } from "./support/genrm-server.ts";

// The command is no export of the package: it is reached as `fapo-kernels genrm-eval` alone.
const { genrmEval } = await import(new URL("./cli.js", import.meta.resolve("fapo-kernels/genrm")).href);

const labels = fileURLToPath(new URL("../../test/fixtures/fapo-critic-labels.jsonl", import.meta.url));
const folder = await mkdtemp(join(tmpdir(), "genrm-eval-"));
after(() => rm(folder, { recursive: true }));

const truth: number[] = (await readFile(labels, "utf8"))
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line).reward_model.ground_truth);

async function file(name: string, rows: readonly object[]): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  return path;
}

async function run(...argv: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = "";
  let stderr = "";
  const code = await genrmEval(argv, {
    stdout: { write: (text: string) => (stdout += text) },
    stderr: { write: (text: string) => (stderr += text) },
  });
  return { code, stdout, stderr };
}

test("the labels as verdicts are perfect on the 100 critic rows", async () => {
  const { code, stdout, stderr } = await run(labels, "--labels");
  assert.deepEqual([code, stderr], [0, ""]);
  const [head, row] = stdout.split("\n");
  assert.match(head!, /^subset +rows +flawed +unknown +FPB precision +FPB recall +FPB F1 +PB error +PB sound +PB F1$/);
  assert.match(row!, /^fapo_critic +100 +50 +0 +100\.0 \[92\.9, 100\.0\] +100\.0 \[92\.9, 100\.0\] .* 100\.0$/);
  assert.match(stdout, /shift of FAPO with this judge \(lambda 1\): rho 1\.000/);
});

test("planted errors show in the table and in the JSON, and an over-critic judge is called so", async () => {
  let alarms = 0;
  let misses = 0;
  const outputs = truth.map((label, i) => {
    if (i === 7) return { response: "I cannot tell" };
    if (label === -1 && alarms < 15) return { response: `step ${alarms++} is vague: \\boxed{0}` };
    if (label !== -1 && misses < 2) return { predicted: -1 - misses++ };
    return { responses: [`\\boxed{${label}}`, "\\boxed{0", `so \\boxed{${label}}`, "\\boxed{0}"] };
  });
  const path = await file("outputs.jsonl", outputs);
  const { code, stdout } = await run(labels, "--outputs", path, "--json", join(folder, "metrics.json"));
  assert.equal(code, 0);
  assert.match(stdout, /warning: over-critic, flags more than there is/);
  const { all, subsets, quality, votes, judgedShiftPoint } = JSON.parse(
    await readFile(join(folder, "metrics.json"), "utf8"),
  );
  assert.deepEqual(Object.keys(subsets), ["fapo_critic"]);
  assert.equal(votes, 4);
  assert.deepEqual(all.flawedPositive.falsePositives, 15);
  // No verdict: the one who cannot tell, and the second miss, which names -2. Both count as "not flawed".
  assert.equal(all.unknown, 2);
  const flawedAt7 = Number(truth[7] !== -1);
  assert.equal(all.flawedPositive.falseNegatives, 2 + flawedAt7);
  assert.equal(all.flawedPositive.trueNegatives, 50 - 15);
  assert.equal(quality.overCritic, true);
  assert.ok(judgedShiftPoint > 1.2);
  const excluded = JSON.parse((await run(labels, "--outputs", path, "--unknown", "exclude", "--json", "-")).stdout);
  assert.equal(excluded.all.flawedPositive.count, 98);
});

test("ProcessBench rows: subsets, their mean, and wrong answers outside FlawedPositiveBench", async () => {
  const row = (id: string, label: number, predicted: number, right: boolean) => {
    return { id, problem: "p", steps: ["a", "b", "c"], label, final_answer_correct: right, predicted };
  };
  const path = await file("bench.jsonl", [
    row("gsm8k-0", -1, -1, true),
    row("gsm8k-1", 1, 1, true),
    row("gsm8k-2", 0, 2, false),
    row("omnimath-0", -1, 0, true),
    row("omnimath-1", 2, 2, false),
  ]);
  const { code, stdout } = await run(path, "--json", "-");
  assert.equal(code, 0);
  const { subsets, all, meanProcessF1 } = JSON.parse(stdout);
  assert.deepEqual(Object.keys(subsets), ["gsm8k", "omnimath"]);
  assert.deepEqual([subsets.gsm8k.rows, subsets.gsm8k.flawedPositive.count, all.flawedPositive.count], [3, 2, 3]);
  assert.equal(subsets.gsm8k.process.errorAccuracy, 0.5);
  assert.equal(meanProcessF1, 2 / 3 / 2);
  assert.match((await run(path)).stdout, /^all +5 +3 +0 .*\n\nPB F1, mean of the subsets: 33\.3 %/m);
});

test("asks servers, votes, saves what they said, and reads that again", async () => {
  const servers = await Promise.all([fakeJudge(), fakeJudge((n) => (n % 5 === 0 ? "500" : undefined))]);
  const rows = truth.slice(0, 20).map((label, i) => {
    const verdict = i === 3 ? "none" : label;
    return {
      prompt: [{ role: "user", content: `verdict=${verdict}` }],
      truth: label,
      steps: 40,
      subset: i % 2 ? "odd" : "even",
    };
  });
  const path = await file("ask.jsonl", rows);
  const saved = join(folder, "saved.jsonl");
  const urls = servers.flatMap(({ url }) => ["--server", url]);
  const asked = await run(path, ...urls, "--model", "judge", "--votes", "3", "--temperature", "0.6", "--save", saved);
  assert.equal(asked.code, 0);
  assert.match(
    asked.stderr,
    /^6\/60\n12\/60\n.*60\/60\n60 answers in \d+ requests, 3 unknown \(ERR_GENRM_UNPARSED 3\); p50/s,
  );
  assert.equal(servers[0]!.bodies[0]!.temperature, 0.6);
  const again = await run(saved);
  assert.equal(again.stdout, asked.stdout);
  assert.match(again.stdout, /^odd +10 +\d+ +1 /m);
  await Promise.all(servers.map((server) => server.close()));
});

test("no verdict at all is a failure, and so is a judge that is not there", async () => {
  const gone = await fakeJudge();
  await gone.close();
  const path = await file("one.jsonl", [{ problem: "p", solution: "a\n\nb", truth: 1 }]);
  const dead = await run(path, "--server", gone.url, "--model", "m");
  assert.deepEqual(dead, { code: 1, stdout: "", stderr: `genrm-eval: no server answers: ${gone.url}\n` });

  const server = await fakeJudge(() => "400");
  const refused = await run(path, "--server", server.url, "--model", "m");
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /1 unknown \(ERR_GENRM_HTTP 1\)/);
  assert.match(refused.stdout, /^all +1 +1 +1 /m);
  await server.close();
});

test("wrong arguments are exit code 2, wrong files exit code 1, both with a sentence", async () => {
  const empty = await file("empty.jsonl", []);
  const noJson = join(folder, "no.jsonl");
  await writeFile(noJson, '{"truth": 0, "steps": 1}\n\n{"truth"\n');
  const badLabel = await file("label.jsonl", [{ truth: 3, steps: 3, predicted: 0 }]);
  const cases: [string[], number, RegExp][] = [
    [[], 2, /^genrm-eval: expected the arguments to be one file, got \[\]\nTry: fapo-kernels genrm-eval --help\n$/],
    [[labels, "--vote", "3"], 2, /Unknown option '--vote'/],
    [
      [labels, "--labels", "--outputs", "x"],
      2,
      /expected the verdicts to be from one of --labels, --outputs and --server/,
    ],
    [[labels, "--server", "http://a"], 2, /expected --model to be given with --server/],
    [[labels, "--server", "a", "--model", "m"], 2, /GenRM\.servers: expected url to be an http or https URL, got "a"/],
    [
      [labels, "--server", "http://a", "--model", "m", "--votes", "0"],
      2,
      /--votes to be an integer of at least 1, got "0"/,
    ],
    [[labels, "--unknown", "maybe"], 2, /--unknown to be sound, flawed or exclude, got "maybe"/],
    [[labels], 1, /row 1 of .* has no verdict; give --outputs, --server or --labels/],
    [
      [labels, "--server", "http://a", "--model", "m"],
      1,
      /expected row 1 to be a prompt or a problem with steps, got "neither"/,
    ],
    [[join(folder, "none.jsonl")], 1, /ENOENT/],
    [[empty], 1, /expected .*empty\.jsonl to be a file with rows/],
    [[noJson], 1, /expected .*no\.jsonl:3 to be JSON, got "\{\\"truth\\""/],
    [[badLabel], 1, /label\.jsonl:1: the label to be an integer from -1 to 2, got 3/],
    [[labels, "--outputs", badLabel], 1, /to be 100 lines, one for each row, got 1/],
  ];
  for (const [argv, expected, message] of cases) {
    const { code, stderr, stdout } = await run(...argv);
    assert.equal(code, expected, `${argv.join(" ")}: ${stderr}`);
    assert.match(stderr, message);
    assert.equal(stdout, "");
  }
  assert.equal((await run("--help")).code, 0);
});

const critic = process.env.FAPO_CRITIC;
const noCritic = critic && existsSync(critic) ? false : "FAPO_CRITIC names no file of the FAPO critic data";
test("the 100 real prompts go through a server as they are", { skip: noCritic }, async () => {
  const rows = (await readFile(critic!, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  // The fake judge takes its verdict from the question.
  const path = await file(
    "critic.jsonl",
    rows.map((row) => {
      const prompt = [...row.prompt, { role: "user", content: `verdict=${row.reward_model.ground_truth}` }];
      return { ...row, prompt };
    }),
  );
  const server = await fakeJudge();
  const { code, stdout } = await run(path, "--server", server.url, "--model", "judge");
  assert.equal(code, 0);
  assert.match(stdout, /^fapo_critic +100 +50 +0 +100\.0 /m);
  await server.close();
});

test("our prompt is that of the critic data, to the letter", { skip: noCritic }, async () => {
  const { fapoPrompt } = await import("fapo-kernels/genrm");
  for (const line of (await readFile(critic!, "utf8")).trim().split("\n")) {
    const row = JSON.parse(line);
    const content: string = row.prompt[0].content;
    const [, problem, answer, solution] =
      /\[Math Problem\]\n\n(.*)\n\n\[Ground Truth\]\n\n(.*?)\n\n\[AI Solution\]\n\n(.*)\n\nYour task is/s.exec(
        content,
      )!;
    const blocks = [...solution!.matchAll(/<paragraph_(\d+)>\n(.*?)\n<\/paragraph_\1>/gs)].map(([, , block]) => block!);
    const prompt = fapoPrompt({ problem: problem!, answer: answer!, solution: blocks });
    assert.equal(prompt.messages[0]!.content, content);
    assert.equal(prompt.steps, row.extra_info.total_steps);
  }
});

const llama = process.env.LLAMA_URL;
test("a real llama-server answers under a grammar", { skip: llama ? false : "LLAMA_URL is not set" }, async () => {
  await using judge = new GenRM({
    servers: [llama!],
    model: "any",
    maxInFlight: 4,
    maxTokens: 32,
    body: { temperature: 1, grammar: 'root ::= "\\\\boxed{" ("-1" | [0-5]) "}"' },
  });
  assert.deepEqual(await judge.health(), [{ url: llama!.replace(/\/$/, ""), well: true }]);
  const items = Array.from({ length: 40 }, (_, i) => ({
    problem: `${i} + 1?`,
    answer: `${i + 1}`,
    solution: [..."abcdef"],
  }));
  const { counts, steps } = await judge.flags({ correct: items.map(() => 1), items });
  assert.deepEqual([counts.judged, counts.unknown], [40, 0]);
  assert.ok(new Set(steps).size > 1);
  assert.ok(judge.stats().tokens > 0);
});
