// The peer's side of the conversation that README.md describes, for peers in Node.
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";

/** The first `length` elements of a file. */
export function load(file, Type, length) {
  const array = new Type(length);
  const bytes = new Uint8Array(array.buffer);
  const descriptor = openSync(file);
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(descriptor, bytes, done, Math.min(1 << 30, bytes.length - done), null);
    if (read === 0) throw new Error(`${file} is too short`);
    done += read;
  }
  closeSync(descriptor);
  return array;
}

/**
 * @param name what the tables say
 * @param open problem -> [{ name, rows, call, results, tolerance }], or a sentence why there is nothing
 */
export async function serve(name, open) {
  const reply = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
  let contenders = [];
  const find = (wanted) => contenders.find((contender) => contender.name === wanted);
  reply({ hello: name });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      reply(await answer(JSON.parse(line)));
    } catch (error) {
      reply({ error: String(error.message ?? error) });
    }
  }

  async function answer(request) {
    if (request.open) {
      contenders = [];
      const found = await open(request.open);
      if (typeof found === "string") return { contenders, leftOut: [found] };
      contenders = found;
      return { contenders: found.map(({ name, rows }) => ({ name, rows })), leftOut: [] };
    }
    if (request.check) {
      const contender = find(request.check);
      const files = {};
      for (const [what, data] of Object.entries(await contender.results())) {
        files[what] = path.join(request.folder, `${what}.out`);
        writeFileSync(files[what], data);
      }
      return { ...files, tolerance: contender.tolerance };
    }
    if (request.sample) {
      const { call } = find(request.sample);
      const before = process.cpuUsage();
      const start = performance.now();
      await call();
      const wall = performance.now() - start;
      const { user, system } = process.cpuUsage(before);
      return { wall, cpu: (user + system) / 1e3 };
    }
    const { call } = find(request.memory);
    return { peakExtraBytes: await peakExtraBytes(call) };
  }
}

async function peakExtraBytes(call) {
  const resident = (field) =>
    1024 * Number(readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${field}:\\s*(\\d+)`, "m"))[1]);
  try {
    writeFileSync("/proc/self/clear_refs", "5");
    const before = resident("VmRSS");
    await call();
    return Math.max(0, resident("VmHWM") - before);
  } catch {
    return undefined;
  }
}
