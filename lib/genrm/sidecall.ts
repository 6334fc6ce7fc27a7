/**
 * The small requests beside the questions: health checks, and telling a server that nobody waits any more.
 */
import { clearTimeout, setTimeout } from "node:timers";
import { onAbort, orAbort } from "./abort.ts";

/** A server that cannot answer these in this time, ms, is ill. */
const timeout = 5000;

/** Whether the server answers, and not with an error of its own. Never rejects. */
export async function sideCall(
  call: { fetch: typeof globalThis.fetch; url: string } & Pick<RequestInit, "method" | "headers" | "body">,
  signal: AbortSignal,
): Promise<boolean> {
  const { fetch, url, ...init } = call;
  const controller = new AbortController();
  const off = onAbort(signal, () => controller.abort(signal.reason));
  const timer = setTimeout(() => controller.abort(), timeout);
  try {
    const response = await orAbort(
      Promise.resolve(fetch(url, { ...init, signal: controller.signal })),
      controller.signal,
    );
    response.body?.cancel().catch(() => {});
    return response.status < 500;
  } catch {
    return false;
  } finally {
    clearTimeout(timer);
    off();
  }
}
