// TensorFlow.js on its wasm backend: SIMD, but in Node one thread only. So much slower that it gets a few rows.
// Its log-probs were 1.2e-3 off at a vocabulary of 151,936: it sums in float32, one after the other.
import * as tf from "@tensorflow/tfjs";
import "@tensorflow/tfjs-backend-wasm";
import { load, serve } from "./protocol.mjs";

// Of `process.env`, it is taken for a browser's page otherwise; what it prints would be taken for answers.
console.log = console.warn;
await tf.setBackend("wasm");

await serve(`TensorFlow.js ${tf.version_core} (wasm)`, ({ kind, rows, vocab, dtype, gradScale, files }) => {
  if (dtype !== "float32") return `it has no ${dtype}`;
  const few = Math.min(rows, kind === "tokenLogprob" ? 64 : 4);
  tf.disposeVariables();
  const logits = tf.tensor2d(load(files.logits, Float32Array, few * vocab), [few, vocab]);
  const ids = tf.tensor1d(load(files.tokenIds, Int32Array, few), "int32");
  // gather with batchDims reads the wrong elements there.
  const places = tf.stack([tf.range(0, few, 1, "int32"), ids], 1);
  const chosen = (x) => tf.gatherND(tf.logSoftmax(x), places);
  if (kind === "tokenLogprob") {
    const call = async () => {
      const result = tf.tidy(() => chosen(logits));
      const data = await result.data();
      result.dispose();
      return data;
    };
    const results = async () => ({ logprobs: await call() });
    return [{ name: "logSoftmax + gatherND", rows: few, call, results, tolerance: { logprobs: [5e-3, 1e-4] } }];
  }

  const old = tf.tensor1d(load(files.oldLogprobs, Float32Array, few));
  const advantages = tf.tensor1d(load(files.advantages, Float32Array, few));
  // gatherND has no gradient: the row's sum against one-hot is what remains.
  const mask = tf.cast(tf.oneHot(ids, vocab), "float32");
  const logprobs = (x) => tf.sum(tf.mul(tf.logSoftmax(x), mask), 1);
  // The mean is over all rows of the problem, of which these are the first.
  const loss = (x) => tf.div(tf.mul(tf.sum(clipped(tf, logprobs(x), old, advantages)), gradScale), rows);
  const call = async () => {
    const gradient = tf.tidy(() => tf.grad(loss)(logits));
    const data = await gradient.data();
    gradient.dispose();
    return data;
  };
  const results = async () => ({
    logprobs: await tf.tidy(() => logprobs(logits)).data(),
    gradLogits: await call(),
  });
  const tolerance = { logprobs: [5e-3, 1e-4], gradLogits: [1e-9, 1e-2] };
  return [{ name: "gradient of the loss", rows: few, call, results, tolerance }];
});

/** Per token: ratio against its clipped self, and a floor where the advantage is negative. */
function clipped(tf, logprobs, old, advantages) {
  const ratio = tf.exp(tf.clipByValue(tf.sub(logprobs, old), -20, 20));
  const negative = tf.neg(advantages);
  const worse = tf.maximum(tf.mul(negative, ratio), tf.mul(negative, tf.clipByValue(ratio, 0.8, 1.28)));
  return tf.where(tf.less(advantages, 0), tf.minimum(worse, tf.mul(negative, 10)), worse);
}
