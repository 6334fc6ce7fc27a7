/** Sizes of the ops over responses. */

/** Responses per prompt. */
export const groupSize = 16;

/** One group (all overhead), a step of 512 prompts, and 8 million, more than a cache holds. */
export function responseCounts(quick: boolean): number[] {
  return quick ? [groupSize, 8192] : [groupSize, 8192, 1 << 23];
}
