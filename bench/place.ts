/** Inputs and outputs of a benchmark, on the device that it is for. */
import {
  cast,
  type Device,
  type FloatInput,
  type Int8Input,
  type Int32Input,
  type Tensor,
  type TensorData,
  tensor,
  toDevice,
  type Uint8Input,
} from "fapo-kernels";

/** An array as it is on the CPU, and as a tensor of the device elsewhere: no op must have to upload anything. */
export function put(data: Float32Array, device: Device): FloatInput;
export function put(data: Int32Array, device: Device): Int32Input;
export function put(data: Uint8Array, device: Device): Uint8Input;
export function put(data: Int8Array, device: Device): Int8Input;
export function put(data: TensorData, device: Device): unknown {
  return device === "cpu" ? data : toDevice(tensor(data as Float32Array), device);
}

/** The elements of a tensor, wherever it is. */
export function read(result: Tensor): TensorData {
  return toDevice(result, "cpu").data;
}

/** Overwrites `to` with `from`, which is of the same shape, dtype and device. */
export function overwrite(to: Tensor, from: Tensor): void {
  if (to.device === "cpu") to.data.set(from.data);
  else cast(from, from.dtype, { out: to });
}
