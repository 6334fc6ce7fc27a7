/**
 * What can go wrong between a question and its verdict.
 */
import { FapoError, type FapoErrorCode } from "../check.ts";

export type GenRMErrorCode = Extract<FapoErrorCode, `ERR_GENRM_${string}`>;

export interface GenRMErrorDetails {
  /** URL of the server it happened on; null where no server was involved. */
  server?: string | null;
  /** HTTP status, where a server answered with one. */
  status?: number | null;
  /** Whether another try may help. Default false. */
  retryable?: boolean;
  /** Milliseconds the server asked to wait (`Retry-After`). */
  retryAfter?: number | null;
  cause?: unknown;
}

/**
 * Why an item has no verdict. `code`:
 *
 * | code | the server |
 * | --- | --- |
 * | `ERR_GENRM_TIMEOUT` | took longer than `timeout` in all |
 * | `ERR_GENRM_IDLE` | sent nothing for `idleTimeout` |
 * | `ERR_GENRM_HTTP` | answered with an error status, or with something that is no chat completion |
 * | `ERR_GENRM_NETWORK` | could not be reached, or broke off before it said anything; also: every server is down |
 * | `ERR_GENRM_TRUNCATED` | broke off its answer, or ran out of tokens before a verdict |
 * | `ERR_GENRM_UNPARSED` | finished, without a verdict in the text |
 * | `ERR_GENRM_CLOSED` | the client was closed first |
 */
export class GenRMError extends FapoError {
  declare readonly code: GenRMErrorCode;
  readonly server: string | null;
  readonly status: number | null;
  readonly retryable: boolean;
  readonly retryAfter: number | null;

  constructor(code: GenRMErrorCode, message: string, details: GenRMErrorDetails = {}) {
    super(code, message, details.cause === undefined ? undefined : { cause: details.cause });
    this.server = details.server ?? null;
    this.status = details.status ?? null;
    this.retryable = details.retryable ?? false;
    this.retryAfter = details.retryAfter ?? null;
  }

  /** For loggers: `Error` itself turns into `{}` in JSON. */
  toJSON(): { code: GenRMErrorCode; message: string; server: string | null; status: number | null } {
    return { code: this.code, message: this.message, server: this.server, status: this.status };
  }
}

export function closedError(): GenRMError {
  return new GenRMError("ERR_GENRM_CLOSED", "GenRM: the client is closed");
}
