/**
 * A chat completion put together from what a server sends.
 */
import type { Deadlines } from "./deadlines.ts";
import { GenRMError } from "./errors.ts";
import { EventStream } from "./sse.ts";

export interface ChatReply {
  text: string;
  /** Completion tokens as the server counts them; else the number of pieces it sent. */
  tokens: number;
  /** `"stop"`, `"length"`, … */
  finish: string;
}

/** 16,384 tokens are about 64 Ki characters; a server that never stops must not fill the memory until `timeout`. */
export const maxReplyChars: number = 1 << 22;

/** Puts the reply together from the events of the stream. */
export class Assembly {
  readonly #server: string;
  readonly #deadlines: Deadlines;
  readonly #stream = new EventStream();
  #text = "";
  #pieces = 0;
  #tokens: number | undefined;
  #finish: string | undefined;

  constructor(server: string, deadlines: Deadlines) {
    this.#server = server;
    this.#deadlines = deadlines;
  }

  get complete(): boolean {
    return this.#finish !== undefined && this.#finish !== "abort" && this.#finish !== "error";
  }

  /** The next piece of an event stream. */
  take(piece: string): void {
    let events: string[];
    try {
      events = this.#stream.push(piece);
    } catch (cause) {
      throw garbage(this.#server, "a line without an end", cause);
    }
    for (const data of events) this.#event(data);
  }

  end(): void {
    for (const data of this.#stream.end()) this.#event(data);
  }

  #event(data: string): void {
    if (data.trim() === "[DONE]") return;
    const chunk = this.#parse(data);
    const choice = Array.isArray(chunk.choices) ? chunk.choices[0] : undefined;
    if (isRecord(choice)) this.#choice(choice, choice.delta);
    this.#usage(chunk);
  }

  /** A server that answers in one piece although it was asked to stream. */
  whole(json: string): void {
    const body = this.#parse(json);
    const choice = Array.isArray(body.choices) ? body.choices[0] : undefined;
    if (isRecord(choice)) this.#choice(choice, choice.message);
    this.#usage(body);
  }

  finished(): ChatReply {
    if (!this.complete) throw truncated(this.#server);
    return { text: this.#text, tokens: this.#tokens ?? this.#pieces, finish: this.#finish! };
  }

  #choice(choice: Record<string, unknown>, message: unknown): void {
    // Only `content`: what a server parts off as reasoning is no verdict.
    if (isRecord(message) && typeof message.content === "string" && message.content !== "") {
      this.#text += message.content;
      this.#pieces++;
      if (this.#text.length > maxReplyChars) throw garbage(this.#server, `more than ${maxReplyChars} characters`);
    }
    if (typeof choice.finish_reason === "string") {
      this.#finish = choice.finish_reason;
      this.#deadlines.complete();
    }
  }

  #usage(chunk: Record<string, unknown>): void {
    const usage = chunk.usage;
    const tokens = isRecord(usage) ? usage.completion_tokens : undefined;
    if (Number.isSafeInteger(tokens) && (tokens as number) >= 0) this.#tokens = tokens as number;
  }

  #parse(json: string): Record<string, unknown> {
    let value: unknown;
    try {
      value = JSON.parse(json);
    } catch (cause) {
      throw garbage(this.#server, `${JSON.stringify(json.slice(0, 60))}, which is not JSON`, cause);
    }
    if (!isRecord(value)) throw garbage(this.#server, "JSON that is no object");
    const error = value.error;
    if (error !== undefined && error !== null) {
      const message = isRecord(error) ? error.message : error;
      throw garbage(this.#server, `an error in the stream: ${String(message).slice(0, 200)}`);
    }
    return value;
  }
}

export function truncated(server: string, cause?: unknown): GenRMError {
  const message = `GenRM: ${server} ended the stream before the reply was finished`;
  return new GenRMError("ERR_GENRM_TRUNCATED", message, { server, retryable: true, cause });
}

function garbage(server: string, what: string, cause?: unknown): GenRMError {
  return new GenRMError("ERR_GENRM_HTTP", `GenRM: ${server} sent ${what}`, { server, retryable: true, cause });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
