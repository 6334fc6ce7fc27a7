import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";

// Tests run compiled, from build-ts/test.
const root = new URL("../../", import.meta.url);
const read = (file: string): string => readFileSync(new URL(file, root), "utf8");

const cmake = read("CMakeLists.txt").match(/set\(OPS ([a-z_ ]+)\)/);
const ops = (cmake?.[1] ?? "").split(" ");

test("every op of CMakeLists.txt has its files, found from its name", () => {
  assert.ok(ops.length >= 7, "set(OPS …) was found");
  for (const op of ops) {
    const camel = op.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    for (const file of [
      `native/ops/${op}.h`,
      `native/ops/${op}.cpp`,
      `cuda/${op}.cu`,
      `lib/ops/${camel}.ts`,
      `test/${camel}.test.ts`,
      `bench/${camel}.bench.ts`,
      `docs/ops/${camel}.md`,
    ]) {
      assert.ok(existsSync(new URL(file, root)), `${file} is missing`);
    }
  }
});

test("every op is documented in the README and exported by the package", async () => {
  const api: Record<string, unknown> = await import("fapo-kernels");
  const readme = read("README.md");
  for (const op of ops) {
    const camel = op.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    assert.equal(typeof api[camel], "function", `${camel} is exported`);
    assert.ok(readme.includes(`docs/ops/${camel}.md`), `README links docs/ops/${camel}.md`);
  }
});

test("every option and every output is on the op's page", () => {
  for (const op of ops.filter((name) => name !== "cast")) {
    const camel = op.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    const doc = read(`docs/ops/${camel}.md`);
    const names = [...read(`lib/ops/${camel}.ts`).matchAll(/^ {2}(\w+)\??: [^(\n]*;$/gm)].map(([, name]) => name);
    assert.ok(names.length > 0);
    for (const name of names) {
      assert.ok(new RegExp(`\\b${name}\\b`).test(doc), `docs/ops/${camel}.md does not mention ${name}`);
    }
  }
});
