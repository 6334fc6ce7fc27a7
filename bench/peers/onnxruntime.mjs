// onnxruntime-node: the strongest forward pass there is for Node besides ours. No backward pass, no bfloat16.
import { createRequire } from "node:module";
import ort from "onnxruntime-node";
import { load, serve } from "./protocol.mjs";

const { version } = createRequire(import.meta.url)("onnxruntime-node/package.json");

// ---- a model in the wire format of protocol buffers: field numbers of onnx.proto

const varint = (value) => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)]);
const bytes = (field, content) => [...varint((field << 3) | 2), ...varint(content.length), ...content];
const text = (field, content) => bytes(field, [...Buffer.from(content)]);
const number = (field, value) => [...varint(field << 3), ...varint(value)];

const node = (type, inputs, output, axis) =>
  bytes(1, [
    ...inputs.flatMap((name) => text(1, name)),
    ...text(2, output),
    ...text(4, type),
    ...bytes(5, [...text(1, "axis"), ...number(3, axis), ...number(20, 2)]),
  ]);
const value = (field, name, type, dims) =>
  bytes(field, [
    ...text(1, name),
    ...bytes(
      2,
      bytes(1, [
        ...number(1, type),
        ...bytes(
          2,
          dims.flatMap((dim) => bytes(1, text(2, dim))),
        ),
      ]),
    ),
  ]);
const [float32, int64] = [1, 7];

/** logprobs = GatherElements(LogSoftmax(logits), ids) along the vocabulary. */
const model = Uint8Array.from([
  ...number(1, 8),
  ...bytes(7, [
    ...node("LogSoftmax", ["logits"], "all", 1),
    ...node("GatherElements", ["all", "ids"], "logprobs", 1),
    ...text(2, "tokenLogprob"),
    ...value(11, "logits", float32, ["rows", "vocab"]),
    ...value(11, "ids", int64, ["rows", "one"]),
    ...value(12, "logprobs", float32, ["rows", "one"]),
  ]),
  ...bytes(8, [...text(1, ""), ...number(2, 17)]),
]);

await serve(`onnxruntime-node ${version}`, async ({ kind, rows, vocab, dtype, threads, files }) => {
  if (kind !== "tokenLogprob") return "it has no backward pass";
  if (dtype !== "float32") return `LogSoftmax of ${dtype} was not tried`;
  const options = { intraOpNumThreads: threads, interOpNumThreads: 1, executionMode: "sequential" };
  const session = await ort.InferenceSession.create(model, options);
  const ids = BigInt64Array.from(load(files.tokenIds, Int32Array, rows), BigInt);
  const feeds = {
    logits: new ort.Tensor("float32", load(files.logits, Float32Array, rows * vocab), [rows, vocab]),
    ids: new ort.Tensor("int64", ids, [rows, 1]),
  };
  return [
    {
      name: "LogSoftmax + GatherElements",
      rows,
      call: () => session.run(feeds),
      results: async () => ({ logprobs: (await session.run(feeds)).logprobs.data }),
      tolerance: { logprobs: [1e-4, 1e-5] },
    },
  ];
});
