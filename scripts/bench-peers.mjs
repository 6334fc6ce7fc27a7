// `npm run bench:peers -- [options of npm run bench]`: the benchmarks beside other implementations. Installs those of npm
// into bench/peers/node_modules; where that fails they are left out.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
if (!existsSync(path.join(root, "bench/peers/node_modules/onnxruntime-node"))) {
  // Without scripts: that of onnxruntime-node would download what it needs for CUDA.
  const args = [
    "install",
    "--prefix",
    "bench/peers",
    "--ignore-scripts",
    "--no-package-lock",
    "--no-audit",
    "--no-fund",
  ];
  const { status, stderr } = spawnSync("npm", args, { cwd: root, encoding: "utf8" });
  if (status !== 0) console.log(`bench/peers: npm install failed: ${stderr.trim().split("\n")[0]}`);
}
const command = [path.join(root, "dist/cli.js"), "bench", "--peers", ...process.argv.slice(2)];
process.exitCode = spawnSync(process.execPath, command, { cwd: root, stdio: "inherit" }).status ?? 1;
