/**
 * Other implementations, each in a process of its own that bench/peers/README.md describes: they get the inputs of a case
 * in files, their results are compared with the op's, and then they take turns with it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Device } from "fapo-kernels";
import { expectClose, type FloatDType, type Problem } from "./case.ts";
import { widening } from "./half.ts";
import { read } from "./place.ts";
import { repository, root } from "./report.ts";
import type { Contender, Sample } from "./sampler.ts";

/** A contender of another process. */
export interface PeerContender extends Contender {
  /** By what its time is multiplied: it may take fewer rows. */
  scale: number;
  peakExtraBytes(): Promise<number | undefined>;
}

type Tolerance = [atol: number, rtol: number];

interface Answers {
  open: { contenders: { name: string; rows: number }[]; leftOut: string[] };
  check: { logprobs: string; gradLogits?: string; tolerance: { logprobs: Tolerance; gradLogits?: Tolerance } };
  sample: Sample;
  memory: { peakExtraBytes?: number | null };
}

/** PyTorch of the system is often not that of the first `python3`. */
const pythons = process.env.PYTHON ? [process.env.PYTHON] : ["python3", "/usr/bin/python3"];
const onCpu: Record<string, readonly string[]> = {
  "torch_cpu.py": pythons,
  "onnxruntime.mjs": [process.execPath],
  "tfjs.mjs": [process.execPath],
};
const onCuda: Record<string, readonly string[]> = { "gpu/torch_gpu.py": pythons };

export class Peers {
  readonly #processes: PeerProcess[] = [];
  readonly #folder: string = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "fapo-peers-"));
  readonly #say: (line: string) => void;
  readonly #said = new Set<string>();
  #written: { key: string; files: Record<string, string> } | undefined;

  /** Starts every peer of the device that is there; `say` hears in one line why another is not. */
  static async start(devices: readonly Device[], say: (line: string) => void): Promise<Peers> {
    if (!repository) throw new Error("--peers: the other implementations are in the repository, not in the package");
    const peers = new Peers(say);
    // However this process ends, the inputs are large and in memory.
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      process.once(signal, () => {
        peers.close();
        process.exit(1);
      });
    }
    const onGpu = devices.some((device) => device !== "cpu");
    for (const [script, commands] of Object.entries({ ...onCpu, ...(onGpu && onCuda) })) {
      let started: PeerProcess | string = "";
      for (const command of commands) {
        started = await PeerProcess.start(command, join(root, "bench/peers", script));
        if (typeof started !== "string") break;
      }
      if (typeof started === "string") say(`${script} is left out: ${started}`);
      else peers.#processes.push(started);
    }
    return peers;
  }

  private constructor(say: (line: string) => void) {
    this.#say = say;
  }

  /** What can do this problem, and does it right. */
  async contenders(problem: Problem, threads: number): Promise<PeerContender[]> {
    const [rows, vocab] = problem.logits.shape as [number, number];
    const { kind, logits, gradScale } = problem;
    const files = this.#write(problem);
    const open = { kind, rows, vocab, dtype: logits.dtype, threads, gradScale, files };
    const all: PeerContender[] = [];
    for (const peer of this.#processes) {
      if (peer.onGpu !== (logits.device !== "cpu")) continue;
      const { contenders, leftOut } = await peer.ask("open", { open });
      for (const reason of leftOut) this.#sayOnce(`${peer.name}, ${kind} ${logits.dtype}: ${reason}`);
      for (const { name, rows: taken } of contenders) {
        const title = `${peer.name}: ${name}`;
        const wrong = await peer.ask("check", { check: name, folder: this.#folder }).then(
          (answer) => compare(problem, taken, answer),
          (error: Error) => error.message,
        );
        if (wrong !== undefined) {
          this.#sayOnce(`${title}, ${kind} ${logits.dtype}: left out: ${wrong}`);
          continue;
        }
        all.push({
          name: title,
          scale: rows / taken,
          sample: () => peer.ask("sample", { sample: name }),
          peakExtraBytes: async () => (await peer.ask("memory", { memory: name })).peakExtraBytes ?? undefined,
        });
      }
    }
    return all;
  }

  close(): void {
    for (const peer of this.#processes) peer.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #sayOnce(line: string): void {
    if (!this.#said.has(line)) this.#say(line);
    this.#said.add(line);
  }

  /** The logits of the last problem stay: they are large, and the next one often has the same. */
  #write({ kind, logits, tokenIds, oldLogprobs, advantages }: Problem): Record<string, string> {
    const key = `${kind} ${logits.shape} ${logits.dtype} ${logits.device}`;
    if (this.#written?.key === key) return this.#written.files;
    const inputs = { logits: read(logits), tokenIds, oldLogprobs, advantages };
    const files: Record<string, string> = {};
    for (const [name, data] of Object.entries(inputs)) {
      if (data) files[name] = writeArray(join(this.#folder, name), data);
    }
    this.#written = { key, files };
    return files;
  }
}

/** Where the results of a peer differ of a peer; undefined where they do not. */
function compare(problem: Problem, rows: number, answer: Answers["check"]): string | undefined {
  const vocab = problem.logits.shape[1]!;
  const { tolerance } = answer;
  const ours = problem.results();
  const floats = (file: string): Float32Array => new Float32Array(Uint8Array.from(readFileSync(file)).buffer);
  try {
    const close = (what: string, theirs: Float32Array, own: ArrayLike<number>, [atol, rtol]: Tolerance): void =>
      expectClose(what, own, theirs, { atol, rtol });
    close("logprobs", floats(answer.logprobs), read(ours.logprobs), tolerance.logprobs);
    if (answer.gradLogits && ours.gradLogits) {
      const few = read(ours.gradLogits).subarray(0, Math.min(rows, 4) * vocab);
      const dtype = ours.gradLogits.dtype as FloatDType;
      const wide = dtype === "float32" ? few : Float32Array.from(few, (bits) => widening(dtype)[bits]!);
      close("gradLogits", floats(answer.gradLogits), wide, tolerance.gradLogits!);
    }
    return undefined;
  } catch (error) {
    return `its results differ, ${(error as Error).message}`;
  }
}

/** `writeFileSync` takes no more than 2 GB. */
function writeArray(file: string, { buffer, byteOffset, byteLength }: ArrayBufferView): string {
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  const descriptor = openSync(file, "w");
  for (let done = 0; done < byteLength; )
    done += writeSync(descriptor, bytes, done, Math.min(1 << 30, byteLength - done));
  closeSync(descriptor);
  return file;
}

class PeerProcess {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  /** Whether it computes on a GPU. */
  readonly onGpu: boolean;
  #name = "";

  get name(): string {
    return this.#name;
  }

  /** The process, or why there is none. */
  static async start(command: string, script: string): Promise<PeerProcess | string> {
    const child = spawn(command, [script], { stdio: ["pipe", "pipe", "pipe"] });
    let complaint = "";
    child.stderr!.on("data", (data) => {
      complaint = `${complaint}${data}`.slice(-4000);
    });
    child.stdin!.on("error", () => {}); // it is gone: the missing answer says so
    const failed = once(child, "error").then(([error]) => String(error.message));
    const peer = new PeerProcess(child, script.includes("/gpu/"));
    const first = await Promise.race([peer.#lines.next(), failed]);
    if (typeof first === "string") return first;
    if (first.done) return complaint.trim().match(/^(\w*Error.*)$/m)?.[1] ?? lastLine(complaint);
    peer.#name = (JSON.parse(first.value) as { hello: string }).hello;
    return peer;
  }

  private constructor(child: ChildProcess, onGpu: boolean) {
    this.#child = child;
    this.onGpu = onGpu;
    this.#lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  }

  async ask<Kind extends keyof Answers>(_: Kind, request: object): Promise<Answers[Kind]> {
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`);
    const { done, value } = await this.#lines.next();
    if (done) throw new Error(`${this.#name} ended without an answer`);
    const answer = JSON.parse(value) as Answers[Kind] & { error?: string };
    if (answer.error !== undefined) throw new Error(`${this.#name}: ${answer.error}`);
    return answer;
  }

  close(): void {
    this.#child.stdin!.end();
  }
}

function lastLine(text: string): string {
  return text.trim().split("\n").at(-1) || "it ended without a word";
}
