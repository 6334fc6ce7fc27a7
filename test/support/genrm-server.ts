/**
 * An OpenAI-compatible judge on loopback that can be told to fail. The question carries the verdict it gets:
 * `verdict=3`, `verdict=none`; `ms=20` is how long the answer takes.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export type Fault =
  | "500"
  | "400"
  | "429"
  | "429-retry-after"
  | "reset"
  | "cut"
  | "cut-after-finish"
  | "hang"
  | "stall"
  | "endless"
  | "garbage-json"
  | "html"
  | "long-line"
  | "error-event"
  | "length"
  | "whole-json"
  | "abort";

export interface FakeJudge {
  readonly url: string;
  /** Requests so far, those under way, most at once, answered to the end, left by the client. */
  readonly seen: { requests: number; running: number; peak: number; served: number; left: number; health: number };
  readonly bodies: Record<string, unknown>[];
  /** Request ids that `/abort_request` was called with. */
  readonly aborted: string[];
  /** What request number `n` (from 0) meets; undefined: a good answer. */
  fault: (n: number) => Fault | undefined;
  healthy: boolean;
  close(): Promise<void>;
}

export async function fakeJudge(fault: FakeJudge["fault"] = () => undefined, port = 0): Promise<FakeJudge> {
  const seen = { requests: 0, running: 0, peak: 0, served: 0, left: 0, health: 0 };
  const server = createServer((request, response) => {
    void body(request).then((text) => {
      if (request.url === "/health") {
        seen.health++;
        response.writeHead(judge.healthy ? 200 : 503).end();
      } else if (request.url === "/abort_request") {
        judge.aborted.push(JSON.parse(text).rid);
        response.end("{}");
      } else if (request.url === "/v1/chat/completions") {
        chat(JSON.parse(text), response);
      } else {
        response.writeHead(404).end("no such path");
      }
    });
  });

  const chat = (asked: Record<string, unknown>, response: ServerResponse) => {
    const n = seen.requests++;
    judge.bodies.push(asked);
    seen.peak = Math.max(seen.peak, ++seen.running);
    response.on("close", () => {
      seen.running--;
      if (response.writableFinished) seen.served++;
      else seen.left++;
    });
    answer(judge.fault(n), JSON.stringify(asked.messages), response);
  };

  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  const judge: FakeJudge = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    bodies: [],
    aborted: [],
    fault,
    healthy: true,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return judge;
}

function answer(fault: Fault | undefined, question: string, response: ServerResponse): void {
  const verdict = /verdict=(-?\w+)/.exec(question)?.[1] ?? "-1";
  const ms = Number(/ms=(\d+)/.exec(question)?.[1] ?? 0);
  const text = verdict === "none" ? "no idea" : `so \\boxed{${verdict}}`;
  const event = (value: unknown) => void response.write(`data: ${JSON.stringify(value)}\n\n`);
  const piece = (content: string, finish: string | null = null) =>
    event({ choices: [{ index: 0, delta: { content }, finish_reason: finish }] });
  const finish = (reason: string) => {
    piece(reason === "stop" ? text : "and", reason);
    if (fault === "cut-after-finish") return void setTimeout(() => response.destroy(), 5);
    event({ choices: [], usage: { completion_tokens: 7 } });
    response.end("data: [DONE]\n\n");
  };

  switch (fault) {
    case "500":
      return void response.writeHead(500).end("boom");
    case "400":
      return void response.writeHead(400).end('{"error":"the prompt is too long"}');
    case "429":
      return void response.writeHead(429).end("slow down");
    case "429-retry-after":
      return void response.writeHead(429, { "retry-after": "0.1" }).end("slow down");
    case "reset":
      return void response.socket?.destroy();
    case "hang":
      return;
    case "html":
      return void response.writeHead(200, { "content-type": "text/html" }).end("<h1>Welcome to nginx</h1>");
    case "whole-json": {
      const choices = [{ index: 0, message: { content: text }, finish_reason: "stop" }];
      response.writeHead(200, { "content-type": "application/json" });
      return void response.end(JSON.stringify({ choices, usage: { completion_tokens: 5 } }));
    }
  }
  response.writeHead(200, { "content-type": "text/event-stream" });
  piece("Let me see. ");
  switch (fault) {
    case "stall":
      return;
    case "cut":
      return void setTimeout(() => response.destroy(), 5);
    case "garbage-json":
      return void response.end('data: {"choices": [{"delta\n\n');
    case "error-event":
      return void event({ error: { message: "CUDA out of memory", code: 500 } });
    case "long-line":
      response.write("data: ");
      for (let i = 0; i < 17; i++) response.write("x".repeat(1 << 16));
      return;
    case "endless": {
      const timer = setInterval(() => piece("hm "), 5);
      return void response.on("close", () => clearInterval(timer));
    }
    case "length":
      finish("length");
      return;
    case "abort":
      finish("abort");
      return;
    default: {
      const timer = setTimeout(() => finish("stop"), ms);
      response.on("close", () => clearTimeout(timer));
    }
  }
}

async function body(request: IncomingMessage): Promise<string> {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text;
}
