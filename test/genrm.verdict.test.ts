import assert from "node:assert/strict";
import { test } from "node:test";
import { fapoPrompt, parseVerdict, splitSteps } from "fapo-kernels/genrm";
import fc from "fast-check";

/** The definition, character by character: find the last box, match its braces, read an integer, check its range. */
function reference(text: string, steps: number): number | null {
  const start = text.lastIndexOf("\\boxed{");
  if (start < 0) return null;
  let depth = 0;
  for (let i = start + "\\boxed".length; i < text.length; i++) {
    if (text[i] === "{") depth++;
    if (text[i] === "}" && --depth === 0) {
      const content = text.slice(start + "\\boxed{".length, i).trim();
      if (!/^[+-]?[0-9]+$/.test(content)) return null;
      const value = BigInt(content.replace("+", ""));
      return value >= -1n && value < BigInt(steps) ? Number(value) : null;
    }
  }
  return null;
}

test("reads the last box, an integer from -1 to the last step, and nothing else", () => {
  const cases: [string, number | null][] = [
    ["The answer is \\boxed{2}.", 2],
    ["\\boxed{-1}", -1],
    ["\\boxed{ 0 }", 0],
    ["\\boxed{+3}", 3],
    ["\\boxed{-0}", 0],
    ["\\boxed{007}", null],
    ["\\boxed{003}", 3],
    ["a \\boxed{2} b \\boxed{-1}", -1],
    ["\\boxed{2} and then \\boxed{3", null],
    ["\\boxed{\\boxed{4}}", 4],
    ["\\boxed{\\text{3}}", null],
    ["\\boxed{{3}}", null],
    ["\\boxed{3}}", 3],
    ["\\boxed{6}", null],
    ["\\boxed{-2}", null],
    ["\\boxed{3.0}", null],
    ["\\boxed{1e0}", null],
    ["\\boxed{0x1}", null],
    ["\\boxed{1_0}", null],
    ["\\boxed{１}", null],
    ["\\boxed{}", null],
    ["\\boxed{None}", null],
    ["\\boxed 3", null],
    ["\\boxed {3}", null],
    ["boxed{3}", null],
    [`\\boxed{${"9".repeat(400)}}`, null],
    ["\\boxed{__import__('os').system('true')}", null],
    ["\\boxed{process.exit(1)}", null],
    ["", null],
  ];
  for (const [text, expected] of cases) assert.equal(parseVerdict(text, 6), expected, text);
  assert.ok(Object.is(parseVerdict("\\boxed{-0}", 6), 0));
  assert.equal(parseVerdict("\\boxed{99}"), 99);
  assert.equal(parseVerdict("\\boxed{0}", 0), null);
  assert.equal(parseVerdict("\\boxed{-1}", 0), -1);
});

test("agrees with the definition on texts of boxes, braces, digits and anything else", () => {
  const piece = fc.oneof(
    { weight: 4, arbitrary: fc.constantFrom("\\boxed{", "}", "{", "\\boxed", "-1", "-", "+", " ", "\n", "\\text{") },
    { weight: 3, arbitrary: fc.integer({ min: -3, max: 12 }).map(String) },
    { weight: 2, arbitrary: fc.integer({ min: -2, max: 9 }).map((n) => `\\boxed{${n}}`) },
    { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 6 }) },
  );
  const text = fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join(""));
  fc.assert(
    fc.property(text, fc.integer({ min: 1, max: 10 }), (value, steps) => {
      assert.equal(parseVerdict(value, steps), reference(value, steps));
    }),
    { numRuns: 3000, seed: 5 },
  );
});

test("what comes after a verdict without a box changes nothing; what is inside is never run", () => {
  const plain = fc.string({ unit: "binary", maxLength: 200 }).filter((text) => !text.includes("\\boxed{"));
  fc.assert(
    fc.property(plain, plain, fc.integer({ min: -1, max: 7 }), (before, after, step) => {
      // A text that ends in "\boxed" would join the brace that follows.
      fc.pre(!before.endsWith("\\"));
      assert.equal(parseVerdict(`${before}\\boxed{${step}}${after}`, 8), step);
    }),
    { numRuns: 500, seed: 5 },
  );
  const evil = ["globalThis.pwned = 1", "(() => { globalThis.pwned = 1; return 1 })()", "import('node:fs')"];
  for (const code of evil) assert.equal(parseVerdict(`\\boxed{${code}}`, 8), null);
  assert.equal("pwned" in globalThis, false);
});

test("a very long text is read in no time", () => {
  const text = "\\boxed{".repeat(200_000) + " ".repeat(500_000);
  const started = performance.now();
  assert.equal(parseVerdict(text, 8), null);
  assert.equal(parseVerdict(`\\boxed{${"1".repeat(1_000_000)}`, 8), null);
  assert.ok(performance.now() - started < 500);
});

test("the prompt numbers the steps from 0 and says how many there are", () => {
  const { messages, steps } = fapoPrompt({ problem: "1 + 1?", answer: "2", solution: "One.\n\n  \nTwo.\n\n\n\n" });
  assert.equal(steps, 2);
  assert.equal(messages.length, 1);
  const { role, content } = messages[0]!;
  assert.equal(role, "user");
  assert.match(
    content,
    /\[Math Problem\]\n\n1 \+ 1\?\n\n\[Ground Truth\]\n\n2\n\n\[AI Solution\]\n\n<paragraph_0>\nOne\.\n/,
  );
  assert.ok(content.endsWith("put your final answer (i.e., the index) in \\boxed{}."));
  assert.deepEqual(splitSteps("a\nb\n\nc"), ["a\nb", "c"]);
  assert.deepEqual(splitSteps(" \n\n "), []);
  assert.doesNotMatch(fapoPrompt({ problem: "p", solution: ["s"] }).messages[0]!.content, /Ground Truth|ground truth/);
  assert.throws(() => fapoPrompt({ problem: "p", solution: [3] } as never), {
    message: "fapoPrompt: expected solution to be a string or an array of strings, got [3]",
  });
});
