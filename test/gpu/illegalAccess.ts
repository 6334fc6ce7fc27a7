/**
 * A program that makes a kernel read memory which is gone: a tensor over the memory of another, which is freed and given
 * back to the GPU. Prints what the calls after it said, as JSON.
 */
import {
  devices,
  type FapoError,
  setCudaMemoryLimit,
  synchronize,
  type Tensor,
  tensor,
  toDevice,
  tokenLogprob,
  zeros,
} from "fapo-kernels";
import { devicePointer, fromDevicePointer } from "fapo-kernels/unsafe";

const device = "cuda:0";
const outcomes: unknown[] = [];
function note(call: () => unknown): void {
  try {
    outcomes.push({ result: String(call()) });
  } catch (error) {
    const { code, message, cudaError } = error as FapoError;
    outcomes.push({ code, message, cudaError });
  }
}

// What the calls use is allocated before: a new allocation could lie where the memory was that is gone.
const tokenIds = toDevice(tensor(Int32Array.of(1)), device);
const out = { logprobs: zeros([1], { device }), lse: zeros([1], { device }) };
const shape = [1, devices().cuda.emulated ? 1024 : 2 ** 28];
const kept = toDevice(tensor(Float32Array.of(1, 2, 3), { shape: [1, 3] }), device);
const owner = zeros(shape, { device });
const { address, dtype } = devicePointer(owner);
const gone: Tensor = fromDevicePointer({ address, dtype, shape, device });
synchronize(device);
owner.dispose();
setCudaMemoryLimit(device, 1); // gives back what is kept for reuse
setCudaMemoryLimit(device, 0);
note(() => {
  tokenLogprob({ logits: gone, tokenIds, out });
  synchronize(device);
});
note(() => tokenLogprob({ logits: kept, tokenIds }));
note(() => toDevice(kept, "cpu"));
note(() => zeros([4], { device }));
const onCpu = { logits: tensor(Float32Array.of(1, 2, 3), { shape: [1, 3] }), tokenIds: Int32Array.of(1) };
note(() => tokenLogprob(onCpu).logprobs.item());
console.log(JSON.stringify(outcomes));
