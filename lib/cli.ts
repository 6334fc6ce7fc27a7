#!/usr/bin/env node
/** The command `fapo-kernels`: a table of subcommands, each loaded when it is asked for. */
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { describe } from "./check.ts";

interface Command {
  readonly summary: string;
  /** It prints its own help. */
  readonly helps?: true;
  run(args: readonly string[]): Promise<number> | number;
}

const commands: Readonly<Record<string, Command>> = {
  bench: {
    summary: "time every op beside the memory floor of this machine; JSON, also for github-action-benchmark",
    helps: true,
    run: async (args) => {
      // A project of its own: it uses this package as its users do.
      const main = new URL("./bench/main.js", import.meta.url).href;
      const { bench } = (await import(main)) as { bench(argv: readonly string[]): Promise<number> };
      return bench(args);
    },
  },
  build: {
    summary: "build the native kernels from source (CMake 3.25, a C++20 compiler), where no prebuilt file fits",
    run: (args) => {
      const script = fileURLToPath(new URL("../scripts/build-native.mjs", import.meta.url));
      return spawnSync(process.execPath, [script, ...args], { stdio: "inherit" }).status ?? 1;
    },
  },
  devices: {
    summary: "print as JSON what there is to run on, and why not where it is not",
    run: async () => {
      const { devices } = await import("./device.ts");
      process.stdout.write(`${JSON.stringify(devices(), undefined, 2)}\n`);
      return 0;
    },
  },
  "genrm-eval": {
    summary: "how good a judge is: FlawedPositiveBench and ProcessBench, from a file of outputs or from servers",
    helps: true,
    run: async (args) => (await import("./genrm/cli.ts")).genrmEval([...args]),
  },
};

function help(): string {
  const lines = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(12)} ${summary}`);
  return `Usage: fapo-kernels <command> [options]\n\n${lines.join("\n")}\n`;
}

async function main([name, ...args]: readonly string[]): Promise<number> {
  if (name === undefined || name === "--help" || name === "-h") {
    process.stdout.write(help());
    return name === undefined ? 2 : 0;
  }
  if (name === "--version") {
    const { version } = createRequire(import.meta.url)("../package.json") as { version: string };
    process.stdout.write(`${version}\n`);
    return 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!command) {
    process.stderr.write(`fapo-kernels: no command ${describe(name)}\n\n${help()}`);
    return 2;
  }
  if (!command.helps && args.some((arg) => arg === "--help" || arg === "-h")) {
    process.stdout.write(`Usage: fapo-kernels ${name}\n\n${command.summary}\n`);
    return 0;
  }
  try {
    return await command.run(args);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  }
}

process.exitCode = await main(process.argv.slice(2));
