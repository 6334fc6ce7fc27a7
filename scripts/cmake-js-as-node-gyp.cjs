#!/usr/bin/env node
// prebuildify calls its --node-gyp program as
//   <program> rebuild --target=<node version> --devdir=... --arch=<x64|arm64> --release|--debug
// and then takes build/Release/*.node. cmake-js gives --target another meaning, so this translates.
const { spawnSync } = require("node:child_process");
const path = require("node:path");

const [verb = "rebuild", ...flags] = process.argv.slice(2);
const value = (name) => flags.find((flag) => flag.startsWith(`--${name}=`))?.slice(name.length + 3);

const args = [
  path.join(path.dirname(require.resolve("cmake-js/package.json")), "bin", "cmake-js"),
  verb,
  "--arch",
  value("arch") ?? process.arch,
  "--runtime-version",
  value("target") ?? process.versions.node,
  "--parallel",
  process.env.JOBS ?? "2",
  ...(flags.includes("--debug") ? ["--debug"] : []),
];
process.exit(spawnSync(process.execPath, args, { cwd: path.join(__dirname, ".."), stdio: "inherit" }).status ?? 1);
