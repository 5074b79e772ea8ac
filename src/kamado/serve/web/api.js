// The server this page came from. It speaks to no other.

let key = sessionStorage.getItem("kamado.key") ?? "";

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("kamado.key", key);
}

/** Whether requests are sent with a key. */
export function hasKey() {
  return key !== "";
}

/** An answer that is no success: `status` (0: no answer at all), the server's own words as the message, and its code. */
export class ServerError extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await fault(response);
  return response;
}

async function fault(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    const message = (typeof error === "string" ? error : error?.message) || text;
    return new ServerError(response.status, message, error?.code ?? "");
  } catch {
    return new ServerError(response.status, text.slice(0, 500) || `${response.status} ${response.statusText}`);
  }
}

/** What is served, what is loaded, and who has how many bytes: see serve/web/page.py. */
export async function status() {
  return (await request("/web/status.json")).json();
}

/** Splits a body into server-sent events and yields the data of each. Comments (`: …`) are passed over. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Asks for an answer and yields {text, thinking, usage, finish, numLeftOut} as they come; the last counts messages that
 * did not fit. Throws ServerError, and AbortError when `signal` says stop. A stream that ends without its last event is
 * an error too, never a silent end.
 */
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(500, event.error.message ?? String(event.error));
    const choice = event.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      thinking: choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "",
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
      numLeftOut: event.kamado?.truncated?.messages ?? 0,
    };
  }
  throw new ServerError(0, "The connection ended in the middle of the answer.");
}
