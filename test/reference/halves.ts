/** The 16-bit floats by their definition: what cast and the gradients must agree with. Nothing here is clever. */
import type { FloatDType } from "../support.ts";

interface Format {
  /** Significant bits, the hidden one among them. */
  precision: number;
  /** Exponent of the smallest normal number. */
  minExponent: number;
  largest: number;
}

const formats: Record<FloatDType, Format> = {
  float32: { precision: 24, minExponent: -126, largest: (2 - 2 ** -23) * 2 ** 127 },
  bfloat16: { precision: 8, minExponent: -126, largest: (2 - 2 ** -7) * 2 ** 127 },
  float16: { precision: 11, minExponent: -14, largest: 65504 },
};

/** The distance between neighbours around a finite number. */
export function spacing(value: number, dtype: FloatDType): number {
  const { precision, minExponent } = formats[dtype];
  let exponent = value === 0 ? minExponent : Math.floor(Math.log2(Math.abs(value)));
  // log2 may be off by one next to a power of two.
  while (2 ** exponent > Math.abs(value) && exponent > minExponent) exponent--;
  while (2 ** (exponent + 1) <= Math.abs(value)) exponent++;
  return 2 ** (Math.max(exponent, minExponent) - (precision - 1));
}

/** The nearest number of the format; of two the one with an even last bit; infinite beyond the largest. */
export function roundTo(value: number, dtype: FloatDType): number {
  if (!Number.isFinite(value) || value === 0) return value;
  const unit = spacing(value, dtype);
  const quotient = value / unit;
  const below = Math.floor(quotient);
  const rest = quotient - below;
  const up = rest > 0.5 || (rest === 0.5 && below % 2 !== 0);
  const rounded = (up ? below + 1 : below) * unit;
  if (Math.abs(rounded) > formats[dtype].largest) return Math.sign(value) * Number.POSITIVE_INFINITY;
  return rounded === 0 && value < 0 ? -0 : rounded;
}

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

/** The bits of a number that the format can hold. */
export function bitsOf(value: number, dtype: "bfloat16" | "float16"): number {
  if (dtype === "bfloat16") {
    float[0] = value;
    return word[0]! >>> 16;
  }
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  if (Number.isNaN(value)) return 0x7e00;
  const magnitude = Math.abs(value);
  if (magnitude === Number.POSITIVE_INFINITY) return sign | 0x7c00;
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24);
  const unit = spacing(magnitude, "float16");
  return sign | (((Math.log2(unit) + 25) << 10) + (magnitude / unit - 1024));
}

/** The number that 16 bits mean. */
export function numberOf(bits: number, dtype: "bfloat16" | "float16"): number {
  if (dtype === "bfloat16") {
    word[0] = bits << 16;
    return float[0]!;
  }
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}
