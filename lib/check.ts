/**
 * Errors: one class, one sentence, a stable code. This is the only file that words a message.
 */

/** Every code an error of this package can carry. `ERR_GENRM_*` belong to `fapo-kernels/genrm`. */
export type FapoErrorCode =
  | "ERR_INVALID_ARGUMENT"
  | "ERR_UNSUPPORTED_DTYPE"
  | "ERR_DEVICE_MISMATCH"
  | "ERR_TOKEN_OUT_OF_RANGE"
  | "ERR_OUT_OF_MEMORY"
  | "ERR_CUDA"
  | "ERR_NO_CUDA"
  | "ERR_ADDON_NOT_FOUND"
  | "ERR_DISPOSED"
  | "ERR_INTERNAL"
  | `ERR_GENRM_${"TIMEOUT" | "IDLE" | "HTTP" | "NETWORK" | "TRUNCATED" | "UNPARSED" | "CLOSED"}`;

/**
 * The only error this package throws on purpose. `code` is stable; `message` is one sentence that names the op, the
 * argument, what was expected and what came: `tokenLogprob: expected temperature to be a positive number, got -1`.
 */
export class FapoError extends Error {
  override readonly name = "FapoError";
  readonly code: FapoErrorCode;
  /** What the CUDA runtime said, where it did: `{ number: 700, name: "cudaErrorIllegalAddress" }`. */
  declare readonly cudaError?: CudaErrorCode;

  constructor(
    code: FapoErrorCode,
    message: string,
    options?: ErrorOptions & { cudaError?: CudaErrorCode | undefined },
  ) {
    super(message, options);
    this.code = code;
    if (options?.cudaError) this.cudaError = options.cudaError;
  }
}

/** An error of the CUDA runtime. */
export interface CudaErrorCode {
  readonly number: number;
  readonly name: string;
}

/** Throws `tokenLogprob: expected temperature to be a positive number, got -1` unless `ok`. */
export function expect(
  ok: boolean,
  op: string,
  argument: string,
  expected: string,
  got: unknown,
  code: FapoErrorCode = "ERR_INVALID_ARGUMENT",
): asserts ok {
  if (!ok) throw new FapoError(code, `${op}: expected ${argument} to be ${expected}, got ${describe(got)}`);
}

/** How a value reads in a message. Never throws, whatever it is given. */
export function describe(value: unknown): string {
  try {
    switch (typeof value) {
      case "string":
        return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
      case "bigint":
        return `${value}n`;
      case "function":
        return "a function";
      case "object":
        return describeObject(value);
      default:
        return Object.is(value, -0) ? "-0" : String(value);
    }
  } catch {
    return "an object that cannot be described";
  }
}

function describeObject(value: object | null): string {
  if (value === null) return "null";
  if (value.constructor?.name === "Tensor" || value.constructor?.name === "DeviceMemory") return String(value);
  if (Array.isArray(value)) {
    const shown = value.slice(0, 8).map((item) => (typeof item === "object" ? "…" : describe(item)));
    return `[${shown.join(", ")}${value.length > 8 ? `, … ${value.length} in all` : ""}]`;
  }
  if (ArrayBuffer.isView(value)) {
    const length = "length" in value ? value.length : value.byteLength;
    const detached = value.byteLength === 0 && "detached" in value.buffer && value.buffer.detached === true;
    return `${value.constructor.name}(${length})${detached ? " over a detached buffer" : ""}`;
  }
  return `an object (${value.constructor?.name ?? "no prototype"})`;
}
