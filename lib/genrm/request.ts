/**
 * One streamed chat completion: the request, its reply, and everything a server can do wrong on the way.
 */
import { onAbort, orAbort } from "./abort.ts";
import { Deadlines } from "./deadlines.ts";
import { GenRMError } from "./errors.ts";
import { Assembly, type ChatReply, maxReplyChars, truncated } from "./reply.ts";

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface ChatCall {
  fetch: typeof fetch;
  /** Base URL, without a slash at its end. */
  server: string;
  headers: Record<string, string>;
  /** JSON text. */
  body: string;
  /** Milliseconds; Infinity for none. */
  idleTimeout: number;
  timeout: number;
  /** Aborting it ends the call; so do the timeouts, through it. */
  controller: AbortController;
}

/** Statuses that may pass: a timeout, a conflict, too early, too many requests, and whatever ails the server itself. */
const retryableStatuses: ReadonlySet<number> = new Set([408, 409, 425, 429]);

/**
 * Asks once. Rejects with a GenRMError; or with the reason of `controller`, when another than this function aborted it.
 */
export async function chat(call: ChatCall): Promise<ChatReply> {
  const { controller, server } = call;
  const { signal } = controller;
  const deadlines = new Deadlines(server, call.idleTimeout, call.timeout, (error) => controller.abort(error));
  const reply = new Assembly(server, deadlines);
  let streaming = false;
  try {
    const pending = Promise.resolve(
      call.fetch(`${server}/v1/chat/completions`, { method: "POST", headers: call.headers, body: call.body, signal }),
    );
    const response = await orAbort(pending, signal).catch((error: unknown) => {
      // The loser of this race may still arrive: its body must not be left open.
      pending.then((late) => late.body?.cancel()).catch(() => {});
      throw error;
    });
    deadlines.beat();
    if (!response.ok) throw await statusError(server, response, signal);
    if (response.body === null) throw truncated(server);

    if (response.headers.get("content-type")?.includes("application/json")) {
      reply.whole(await readAll(response.body, signal, maxReplyChars));
    } else {
      await readPieces(response.body, signal, (piece) => {
        deadlines.beat();
        streaming = true;
        reply.take(piece);
        return true;
      });
      reply.end();
    }
    return reply.finished();
  } catch (error) {
    const timedOut = signal.aborted && signal.reason instanceof GenRMError && signal.reason.retryable;
    // Complete but for the end of the stream: a cut or a silence there takes nothing away.
    if (reply.complete && (!signal.aborted || timedOut)) return reply.finished();
    if (signal.aborted) throw signal.reason;
    if (error instanceof GenRMError) throw error;
    throw streaming ? truncated(server, error) : networkError(server, error);
  } finally {
    deadlines.clear();
  }
}

/** Reads until the end, or until `take` returns false. Stops, too, when the signal aborts, and throws its reason. */
async function readPieces(
  body: ReadableStream<Uint8Array>,
  signal: AbortSignal,
  take: (piece: string) => boolean,
): Promise<void> {
  const reader = body.getReader();
  // Cancelling settles a read that is under way, whatever the source of the stream does about the signal.
  const cancel = () => void reader.cancel(signal.reason).catch(() => {});
  const off = onAbort(signal, cancel);
  let ended = false;
  try {
    const decoder = new TextDecoder();
    while (true) {
      const { done, value } = await reader.read();
      if (signal.aborted) throw signal.reason;
      ended = done;
      const piece = done ? decoder.decode() : decoder.decode(value, { stream: true });
      if (!take(piece) || done) return;
    }
  } finally {
    off();
    if (!ended) cancel();
  }
}

async function readAll(body: ReadableStream<Uint8Array>, signal: AbortSignal, maxChars: number): Promise<string> {
  let text = "";
  await readPieces(body, signal, (piece) => {
    text += piece;
    return text.length < maxChars;
  });
  return text;
}

async function statusError(server: string, response: Response, signal: AbortSignal): Promise<GenRMError> {
  const { status } = response;
  let said = "";
  try {
    if (response.body) said = await readAll(response.body, signal, 2000);
  } catch {
    if (signal.aborted) throw signal.reason; // else: the status says enough
  }
  const message = `GenRM: ${server} answered ${status}${said ? `: ${said.slice(0, 200).trim()}` : ""}`;
  return new GenRMError("ERR_GENRM_HTTP", message, {
    server,
    status,
    retryable: retryableStatuses.has(status) || status >= 500,
    retryAfter: retryAfterMs(response.headers),
  });
}

/** `Retry-After` in milliseconds: seconds or a date; `retry-after-ms` where a server is that exact. Null when absent. */
export function retryAfterMs(headers: Headers, now: number = Date.now()): number | null {
  const exact = Number(headers.get("retry-after-ms") ?? Number.NaN);
  if (exact >= 0) return exact;
  const header = headers.get("retry-after")?.trim();
  if (!header) return null;
  const seconds = Number(header);
  const ms = Number.isNaN(seconds) ? Date.parse(header) - now : seconds * 1000;
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}

function networkError(server: string, error: unknown): GenRMError {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  const hint =
    code === "UND_ERR_HEADERS_TIMEOUT" || code === "UND_ERR_BODY_TIMEOUT"
      ? ": fetch gives up after 300 s of silence, whatever idleTimeout says; inject a fetch without that limit"
      : "";
  const what = typeof code === "string" ? code : cause instanceof Error ? cause.message : String(cause);
  return new GenRMError("ERR_GENRM_NETWORK", `GenRM: ${server} failed: ${what}${hint}`, {
    server,
    retryable: true,
    cause: error,
  });
}
