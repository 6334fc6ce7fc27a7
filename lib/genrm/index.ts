/**
 * The judge of FAPO: which right answers rest on flawed reasoning, asked of a pool of servers. Needs no addon.
 * @module
 */
export type { BreakerOptions, BreakerState } from "./breaker.ts";
export { type FlaggedGroup, GenRM, type JudgeAllOptions, type Judged, type JudgeOptions } from "./client.ts";
export { GenRMError, type GenRMErrorCode } from "./errors.ts";
export type { GenRMEvent, GenRMStats } from "./events.ts";
export type { FlagGroup, Flags } from "./flags.ts";
export type { HedgeOptions } from "./hedge.ts";
export {
  type FlawedPositiveMetrics,
  flawedPositiveMetrics,
  type JudgementOptions,
  majorityVote,
  type ProcessMetrics,
  processMetrics,
} from "./metrics.ts";
export {
  correctedFlawedRatio,
  type JudgeQuality,
  judgedShiftPoint,
  judgeQuality,
  type ShiftPointOptions,
  type StepMetrics,
  type StepMetricsOptions,
  type StepProgress,
  stepMetrics,
} from "./monitor.ts";
export type { BackoffOptions, GenRMOptions, ServerOptions } from "./options.ts";
export { fapoPrompt, type JudgeItem, type JudgePrompt, splitSteps } from "./prompt.ts";
export type { ChatMessage } from "./request.ts";
export { type GenRMRewardOptions, type GenRMRewardResult, genrmReward } from "./reward.ts";
export type { ServerStats } from "./servers.ts";
export { type Interval, type LatencySummary, summarizeLatency, wilsonInterval } from "./statistics.ts";
export { type KnownVerdict, parseVerdict, type UnknownVerdict, type Verdict } from "./verdict.ts";
