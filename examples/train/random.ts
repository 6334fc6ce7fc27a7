/** Random numbers that a seed fixes: sfc32, one independent stream per purpose. */

export type Random = () => number;

/** One stream each, so that a noisier judge or a longer warm start changes no other random number. */
const streams = ["policy", "demonstrations", "problems", "sampling", "judge", "evaluation"] as const;
export type Stream = (typeof streams)[number];

/** Uniform numbers in [0, 1): sfc32 of PractRand, whose cycle is at least 2^32 numbers long for every seed. */
export function randomStream(seed: number, stream: Stream): Random {
  let a = seed | 0;
  let b = streams.indexOf(stream) + 1;
  let c = 0x9e3779b9 | 0;
  let counter = 1;
  const next = (): number => {
    const result = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + result) | 0;
    return (result >>> 0) / 2 ** 32;
  };
  // Seeds that differ in one bit give unrelated numbers only after the state has been stirred.
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** Normal numbers from uniform ones (Box and Muller). */
export function normal(random: Random): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** An integer in 0..limit-1. */
export function integer(random: Random, limit: number): number {
  return Math.floor(random() * limit);
}
