/**
 * How much of the judge's time a training step has to wait for, measured: the same rollouts, verdicts and updates in three
 * orders. Everything but the client is simulated, a thousand times faster than life; latencies have a long tail.
 *
 *     node build-ts/examples/judge-overlap.js [seed]
 */
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type Flags, GenRM, type JudgeItem, splitSteps } from "fapo-kernels/genrm";

export interface Workload {
  groups: number;
  groupSize: number;
  /** Milliseconds until the last rollout is done. */
  rollout: number;
  /**
   * Mean of a judgement, ms. Log-normal with sigma 0.9, at most 5.5 times the mean (16,384 tokens against 3,000), and one
   * request in a hundred is stalled by its server and takes five times as long.
   */
  judgement: number;
  /** Milliseconds of advantage, loss and optimiser for one group. */
  update: number;
  servers: number;
  slots: number;
  seed: number;
}

/** The shares of the paper's table 4 for 7B: rollout 42, judge 18, update 33. */
export const workload: Workload = {
  groups: 64,
  groupSize: 8,
  rollout: 1000,
  judgement: 105,
  update: 12,
  servers: 4,
  slots: 16,
  seed: 1,
};

export interface Timeline {
  name: string;
  /** The whole step, ms. */
  step: number;
  /** Neither rollout nor update: waiting for the judge, ms and share of the step. */
  waiting: number;
  share: number;
  /** What happened in each tenth of a second: r rollout, u update, . waiting. */
  picture: string;
}

interface Group {
  correct: Uint8Array;
  items: JudgeItem[];
  /** When its last rollout is done, ms. */
  ready: number;
}

/** Judges the whole batch first: rollouts, then verdicts, then updates. */
async function oneAfterTheOther(judge: GenRM, groups: Group[], step: Step): Promise<void> {
  for await (const _ of rollouts(groups, step));
  const flags = await Promise.all(groups.map((group) => judge.flags(group)));
  for (const each of flags) await step.update(each);
}

/** Judges while others still generate, and updates when the whole batch is judged. */
async function judgedDuringRollouts(judge: GenRM, groups: Group[], step: Step): Promise<void> {
  const flags: Flags[] = [];
  for await (const group of judge.flagGroups(rollouts(groups, step))) flags.push(group);
  for (const each of flags) await step.update(each);
}

/** The same, and a group is updated with as soon as it is judged. */
async function groupByGroup(judge: GenRM, groups: Group[], step: Step): Promise<void> {
  const judged = judge.flagGroups(rollouts(groups, step));
  for await (const group of ahead(judged)) {
    await step.generated; // rollouts and updates share the GPUs
    await step.update(group);
  }
}

const schedules = {
  "one after the other": oneAfterTheOther,
  "judged during the rollouts": judgedDuringRollouts,
  "group by group": groupByGroup,
};

/** Runs the three schedules on the same workload. */
export async function measure(load: Workload): Promise<Timeline[]> {
  const timelines: Timeline[] = [];
  for (const [name, schedule] of Object.entries(schedules)) {
    await using judge = simulatedJudge(load);
    const step = new Step(load);
    await schedule(judge, makeGroups(load), step);
    timelines.push(step.timeline(name));
  }
  return timelines;
}

class Step {
  readonly #started = performance.now();
  readonly #load: Workload;
  readonly #updates: [from: number, to: number][] = [];
  #endRollouts = () => {};
  /** Resolves when the last rollout is done. */
  readonly generated: Promise<void> = new Promise((resolve) => {
    this.#endRollouts = resolve;
  });
  #rolledOut = 0;

  constructor(load: Workload) {
    this.#load = load;
  }

  get now(): number {
    return performance.now() - this.#started;
  }

  rolloutsDone(): void {
    this.#rolledOut = this.now;
    this.#endRollouts();
  }

  /** Here a trainer calls `fapoAdvantage`, `fusedPolicyLoss` and its backward pass; `flags.flawed` is what they take. */
  async update(_flags: Flags): Promise<void> {
    const from = this.now;
    await sleep(this.#load.update);
    this.#updates.push([from, this.now]);
  }

  timeline(name: string): Timeline {
    const step = this.#updates.at(-1)![1];
    const updating = this.#updates.reduce((sum, [from, to]) => sum + to - from, 0);
    const waiting = step - this.#rolledOut - updating;
    const at = (ms: number) => {
      if (ms < this.#rolledOut) return "r";
      return this.#updates.some(([from, to]) => from <= ms && ms < to) ? "u" : ".";
    };
    const picture = Array.from({ length: Math.ceil(step / 50) }, (_, i) => at(i * 50 + 25)).join("");
    return { name, step, waiting, share: waiting / step, picture };
  }
}

/** Groups in the order in which their rollouts end. */
async function* rollouts(groups: Group[], step: Step): AsyncGenerator<Group> {
  for (const group of [...groups].sort((a, b) => a.ready - b.ready)) {
    const left = group.ready - step.now;
    if (left > 0) await sleep(left);
    if (group.ready === Math.max(...groups.map(({ ready }) => ready))) step.rolloutsDone();
    yield group;
  }
}

/** Goes on pulling while the consumer is busy, so that finished groups wait for it and not the other way round. */
async function* ahead<T>(source: AsyncIterable<T>): AsyncGenerator<T> {
  const waiting: T[] = [];
  let wake = () => {};
  const reading = (async () => {
    for await (const value of source) {
      waiting.push(value);
      wake();
    }
  })();
  let done = false;
  const end = () => {
    done = true;
    wake();
  };
  reading.then(end, end);
  while (!done || waiting.length > 0) {
    if (waiting.length > 0) yield waiting.shift()!;
    else {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
  await reading;
}

function makeGroups({ groups, groupSize, rollout, seed }: Workload): Group[] {
  const random = generator(seed);
  return Array.from({ length: groups }, (_, g) => ({
    correct: Uint8Array.from({ length: groupSize }, () => Number(random() < 0.5)),
    items: Array.from({ length: groupSize }, (_, i) => {
      return { problem: `problem ${g}, response ${i}`, answer: "7", solution: splitSteps("First.\n\nSecond.") };
    }),
    ready: g === 0 ? rollout : rollout * (0.2 + 0.8 * random() ** 0.7),
  }));
}

/**
 * A client whose servers are a `fetch`. The length of an answer depends on the question, the stall on question and copy:
 * all schedules meet the same, and a hedge may help.
 */
function simulatedJudge({ servers, slots, judgement, seed }: Workload): GenRM {
  const copies = new Map<string, number>();
  return new GenRM({
    servers: Array.from({ length: servers }, (_, i) => `http://judge-${i}`),
    model: "simulated",
    maxInFlight: slots,
    hedge: { quantile: 0.95, maxFraction: 0.05 },
    fetch: async (_url, init) => {
      const body = String(init?.body);
      const [question, group, response] = /problem (\d+), response (\d+)/.exec(body)!;
      const copy = copies.get(question) ?? 0;
      copies.set(question, copy + 1);
      const key = seed * 1e6 + Number(group) * 100 + Number(response);
      const random = generator(key);
      const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
      const stall = generator(key + copy * 5e5)() < 0.01 ? 5 : 1;
      await sleep(judgement * Math.min(5.5, Math.exp(0.9 * normal - 0.405)) * stall, undefined, {
        signal: init!.signal!,
      });
      const delta = { content: `\\boxed{${random() < 0.3 ? 1 : -1}}` };
      const event = `data: ${JSON.stringify({ choices: [{ delta, finish_reason: "stop" }] })}\n\ndata: [DONE]\n\n`;
      return new Response(event, { headers: { "content-type": "text/event-stream" } });
    },
  });
}

/** mulberry32 */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const seed = Number(process.argv[2] ?? 1);
  console.log("r rollout, u update, . waiting for the judge; one character is 50 ms\n");
  for (const { name, step, waiting, share, picture } of await measure({ ...workload, seed })) {
    console.log(
      `${name}: ${step.toFixed(0)} ms, of which ${waiting.toFixed(0)} ms waiting (${(100 * share).toFixed(1)} %)`,
    );
    console.log(`  ${picture}\n`);
  }
}
