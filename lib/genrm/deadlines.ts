/**
 * The two timeouts of one request: silence, and the whole of it.
 */
import { clearTimeout, setTimeout } from "node:timers";
import { GenRMError } from "./errors.ts";

/** After the finish reason only the token counts are missing; a server that never ends the stream must not hold a slot. */
const lastWordsMs = 1000;

export class Deadlines {
  readonly #abort: (error: GenRMError) => void;
  readonly #server: string;
  #idleMs: number;
  #beats = 0;
  #idle: NodeJS.Timeout | undefined;
  readonly #total: NodeJS.Timeout | undefined;
  #cleared = false;

  /** `Infinity` turns a timeout off. */
  constructor(server: string, idleMs: number, totalMs: number, abort: (error: GenRMError) => void) {
    this.#server = server;
    this.#abort = abort;
    this.#idleMs = idleMs;
    if (totalMs < Number.POSITIVE_INFINITY) this.#total = setTimeout(() => this.#totalOver(totalMs), totalMs);
    this.#startIdle();
  }

  /** Something came. */
  beat(): void {
    this.#beats++;
    this.#idle?.refresh();
  }

  /** The reply is complete; what may still come is worth a moment, no more. */
  complete(): void {
    if (this.#idleMs <= lastWordsMs || this.#cleared) return;
    clearTimeout(this.#idle);
    this.#idleMs = lastWordsMs;
    this.#startIdle();
  }

  clear(): void {
    this.#cleared = true;
    clearTimeout(this.#idle);
    clearTimeout(this.#total);
  }

  #startIdle(): void {
    if (this.#idleMs < Number.POSITIVE_INFINITY) this.#idle = setTimeout(() => this.#idleOver(), this.#idleMs);
  }

  #idleOver(): void {
    const beats = this.#beats;
    afterPendingInput(() => {
      if (this.#cleared) return;
      if (this.#beats !== beats) this.#idle?.refresh();
      else this.#abort(failure("ERR_GENRM_IDLE", this.#server, `sent nothing for ${this.#idleMs} ms`));
    });
  }

  #totalOver(ms: number): void {
    afterPendingInput(() => {
      if (!this.#cleared) this.#abort(failure("ERR_GENRM_TIMEOUT", this.#server, `gave no verdict within ${ms} ms`));
    });
  }
}

function failure(code: "ERR_GENRM_IDLE" | "ERR_GENRM_TIMEOUT", server: string, what: string): GenRMError {
  return new GenRMError(code, `GenRM: ${server} ${what}`, { server, retryable: true });
}

/**
 * Ops are synchronous, so a training step can hold the event loop longer than a timeout. Timers run before sockets
 * are read; what waits in the sockets must be looked at before a server is called silent.
 */
function afterPendingInput(callback: () => void): void {
  setImmediate(() => setImmediate(callback));
}
