import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

test("every example in the README and the docs prints what they show", () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["scripts/docs-output.mjs", "--check"], {
    cwd: root,
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^\d+ examples print what the docs show, 0 do not$/m);
});

test("every relative link in the README and the docs leads to a file", () => {
  const pages = [
    "README.md",
    "CONTRIBUTING.md",
    ...readdirSync(path.join(root, "docs"), { recursive: true }).map((f) => `docs/${f}`),
  ];
  for (const page of pages.filter((file) => file.endsWith(".md"))) {
    for (const [, link] of readFileSync(path.join(root, page), "utf8").matchAll(/\]\((?!https?:|#)([^)#]+)/g)) {
      assert.ok(existsSync(path.join(root, path.dirname(page), link!)), `${page} links ${link}, which is not there`);
    }
  }
});
