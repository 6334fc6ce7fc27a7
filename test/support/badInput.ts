/** Tables of bad input: each row changes good options into bad ones and pins the error. */
import assert from "node:assert/strict";
import { type FapoErrorCode, type Tensor, type TensorData, tensor } from "fapo-kernels";
import { assertFails, assertSameBits, type TestDevice } from "../support.ts";

// biome-ignore lint/suspicious/noExplicitAny: the tables break types on purpose.
export type Options = Record<string, any>;

export interface BadInput {
  name: string;
  /** Makes good options bad; they are fresh, and theirs alone. */
  change: (options: Options, device: TestDevice) => void;
  code: FapoErrorCode;
  /** Without the op's name in front. */
  message: string | RegExp;
}

/** Runs a table: the error is as pinned, nothing is written, and the same call with good options works afterwards. */
export function assertRefused(
  op: string,
  call: (options: Options) => unknown,
  goodOptions: (device: TestDevice) => Options,
  table: readonly BadInput[],
  device: TestDevice,
): void {
  const seen = new Set<string>();
  const wrong: string[] = [];
  for (const { name, change, code, message } of table) {
    assert.ok(!seen.has(name), `two rows are called ${name}`);
    seen.add(name);
    const options = goodOptions(device);
    change(options, device);
    const before = contents(options, device);
    const full = typeof message === "string" ? `${op}: ${message}` : new RegExp(`^${op}: ${message.source}`);
    try {
      assertFails(() => call(options), code, full);
    } catch (error) {
      wrong.push(`${op} with ${name}: ${(error as Error).message}`);
      continue;
    }
    const after = contents(options, device);
    assert.deepEqual([...after.keys()], [...before.keys()]);
    for (const [path, data] of after)
      assertSameBits(data, before.get(path)!, `${op} with ${name}: ${path} was written to`);
  }
  if (wrong.length > 0) assert.fail(wrong.join("\n\n"));
  call(goodOptions(device));
}

/** Copies of every array and tensor that options reach; of those that can be read. */
function contents(options: Options, device: TestDevice): Map<string, TensorData> {
  const found = new Map<string, TensorData>();
  const visit = (path: string, value: unknown, depth: number): void => {
    if (typeof value !== "object" || value === null || depth > 3) return;
    if (ArrayBuffer.isView(value)) {
      const { buffer, byteOffset, byteLength } = value;
      // A detached buffer has no bytes, and no view can be made of it.
      found.set(path, byteLength === 0 ? new Uint8Array(0) : new Uint8Array(buffer, byteOffset, byteLength).slice());
    } else if (isOurs(value)) {
      try {
        found.set(path, device.read(value).slice());
      } catch {
        found.set(path, new Uint8Array(0));
      }
    } else {
      for (const [name, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(value))) {
        if ("value" in descriptor) visit(`${path}.${name}`, descriptor.value, depth + 1);
      }
    }
  };
  visit("options", options, 0);
  return found;
}

const tensorClass = tensor(new Float32Array(1)).constructor;

function isOurs(value: object): value is Tensor {
  return value.constructor === tensorClass && Object.getPrototypeOf(value) === tensorClass.prototype;
}

/** Hands the memory of an array to nobody. */
export function detach(data: TensorData): void {
  structuredClone(data.buffer, { transfer: [data.buffer as ArrayBuffer] });
}
