// DOM of messages, of the list of conversations and of the memory panel. Knows nothing of requests: every action is a
// callback.

import { MarkdownView, el, put } from "./markdown.js";
import { versions } from "./conversation.js";

export const byId = (id) => document.getElementById(id);

export function button(label, className, action, title = "") {
  const node = put(el("button", className, label), { type: "button", ...(title && { title, "aria-label": title }) });
  node.addEventListener("click", action);
  return node;
}

/** Why an answer ended that is not complete; "" for one that is. */
function reason({ state, usage, context, limit }) {
  if (state === "stopped") return "Stopped.";
  if (state !== "cut") return "";
  if (usage && context && usage.total_tokens >= context) {
    return `The context is full: the conversation has all of its ${context} tokens. A new conversation begins with none.`;
  }
  if (limit) return `The answer ended at the limit of ${limit} tokens that is set in Settings.`;
  return `The answer ended at the token limit of this model${usage ? `, ${usage.completion_tokens} tokens` : ""}.`;
}

/** One message. `actions`: {edit, retry, retryShorter, copy, version(message)}; the first three are missing while an answer runs. */
export class MessageView {
  constructor(conversation, message, modelName, actions) {
    this.message = message;
    this.node = el("article", `message ${message.role}`);
    this.node.dataset.id = message.id;
    const who = message.role === "user" ? "You" : modelName;
    this.node.setAttribute("aria-label", who);
    this.node.append(el("header", "", who));
    if (message.role === "user") this.#user();
    else this.#assistant();
    this.note = el("p", "note");
    this.tools = el("div", "tools");
    this.node.append(this.note, this.tools);
    this.finish(conversation, actions);
  }

  #user() {
    const { text, files } = this.message;
    if (files.length) this.node.append(el("ul", "chips", ...files.map((file) => el("li", "", file.name))));
    if (text) this.node.append(el("div", "body", text));
  }

  #assistant() {
    this.thinking = el("details", "thinking", el("summary", "", "Thinking"));
    this.thoughts = el("div");
    this.thinking.append(this.thoughts);
    this.thoughtsView = new MarkdownView(this.thoughts);
    this.waiting = el("p", "waiting", "…");
    this.body = el("div", "body");
    this.bodyView = new MarkdownView(this.body);
    this.node.append(this.thinking, this.waiting, this.body);
    this.update();
  }

  /** Shows what an answer has so far. */
  update() {
    const { text, thinking, state, isLoading, model } = this.message;
    this.thinking.hidden = !thinking;
    if (thinking) this.thoughtsView.update(thinking);
    this.waiting.hidden = state !== "running" || Boolean(text || thinking);
    this.waiting.textContent = isLoading ? `${model} is being loaded …` : "…";
    this.bodyView.update(text);
  }

  /** Notes and buttons: they change when the answer is complete. */
  finish(conversation, actions) {
    const { message } = this;
    if (message.role === "assistant") this.update();
    const fault = message.state === "failed" ? message.error : "";
    const left = message.numLeftOut ? `Without the ${message.numLeftOut} oldest messages, which do not fit. ` : "";
    this.note.textContent = fault || (left + reason(message)).trim();
    this.note.className = fault ? "note bad" : "note";
    this.note.hidden = !this.note.textContent;
    const isRunning = message.state === "running";
    this.node.setAttribute("aria-busy", String(isRunning));
    this.tools.replaceChildren();
    if (isRunning) return;
    const all = versions(conversation, message);
    if (all.length > 1) {
      const at = all.indexOf(message);
      const turn = (label, to, title) =>
        put(button(label, "quiet", () => actions.version(all[to]), title), { disabled: !all[to] });
      this.tools.append(
        turn("‹", at - 1, "Earlier version"), el("span", "figure", `${at + 1} / ${all.length}`),
        turn("›", at + 1, "Later version"),
      );
    }
    if (message.text) this.tools.append(button("Copy", "quiet", () => actions.copy(message)));
    if (message.role === "user" && actions.edit) this.tools.append(button("Edit", "quiet", () => this.edit(actions)));
    if (message.isTooLong && actions.retryShorter) {
      this.tools.append(button("Leave out the oldest messages", "quiet", () => actions.retryShorter(message)));
    }
    if (message.role === "assistant" && actions.retry) {
      this.tools.append(button("Retry", "quiet", () => actions.retry(message)));
    }
    if (message.usage && message.seconds) this.tools.append(el("span", "figure", figures(message)));
  }

  /** Turns a question into a form; saving asks it anew as another version. */
  edit(actions) {
    const body = this.node.querySelector(".body");
    const area = put(el("textarea"), { value: this.message.text, "aria-label": "Edit your message" });
    const end = () => {
      area.replaceWith(...(body ? [body] : []));
      row.remove();
      this.tools.hidden = false;
      this.tools.querySelector("button")?.focus();
    };
    const save = () => {
      const text = area.value.trim();
      end();
      if (text || this.message.files.length) actions.edit(this.message, text);
    };
    const row = el("div", "row", button("Ask again", "primary", save), button("Cancel", "", end));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    if (body) body.replaceWith(area);
    else this.note.before(area);
    area.after(row);
    this.tools.hidden = true;
    area.focus();
  }
}

function figures({ usage, seconds }) {
  const parts = [`${usage.completion_tokens} tokens`];
  if (seconds.answer > 0 && usage.completion_tokens > 1) {
    parts.push(`${((usage.completion_tokens - 1) / seconds.answer).toFixed(1)} a second`);
  }
  parts.push(`first after ${seconds.first.toFixed(seconds.first < 10 ? 2 : 0)} s`);
  const cached = usage.prompt_tokens_details?.cached_tokens;
  if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens from the cache`);
  return parts.join(" · ");
}

/** The list at the side. `actions`: {open(id), remove(conversation)}. */
export function showConversations(list, currentId, runningIds, actions) {
  byId("conversations").replaceChildren(...list.map((conversation) => {
    const title = conversation.title || "New conversation";
    const open = put(button(title, "open", () => actions.open(conversation.id)), { title });
    if (runningIds.has(conversation.id)) open.classList.add("running");
    const item = el("li", "", open, button("✕", "remove", () => actions.remove(conversation), `Delete ${title}`));
    if (conversation.id === currentId) {
      item.className = "current";
      open.setAttribute("aria-current", "true");
    }
    return item;
  }));
}

export function showNotice(text, label = "", action = null) {
  const notice = byId("notice");
  notice.replaceChildren(text);
  if (action) {
    notice.append(button(label, "", () => {
      notice.replaceChildren();
      action();
    }));
  }
  clearTimeout(showNotice.timer);
  showNotice.timer = setTimeout(() => notice.replaceChildren(), 8000);
}

/** Bytes as people read them: "1.5 GiB". */
export function bytes(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" ? value : value.toFixed(value < 10 ? 1 : 0)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

/** `models`: status.json's "loaded": [{name, memory_bytes, bytes_by_owner}]. */
export function showMemory(models) {
  byId("memory-note").hidden = models.length > 0;
  byId("memory-models").replaceChildren(...models.map((model) => {
    const owners = Object.entries(model.bytes_by_owner).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
    const total = owners.reduce((sum, [, count]) => sum + count, 0);
    const stack = put(el("div", "stack"), { "aria-hidden": "true" });
    const legend = el("ul", "owners");
    owners.forEach(([owner, count], i) => {
      const part = el("span", `o${i % 8}`);
      part.style.width = `${(100 * count) / total}%`;
      stack.append(part);
      legend.append(el("li", "", el("i", `o${i % 8}`), `${owner.replaceAll("_", " ")} ${bytes(count)}`));
    });
    const amount = owners.length ? `${bytes(total)} in use of ${bytes(model.memory_bytes)} planned` : `${bytes(model.memory_bytes)} planned`;
    return el("div", "", el("strong", "", model.name), ` ${amount}`, stack, legend);
  }));
}

/** `used` of `context` tokens; hidden when either is not known. */
export function showContext(used, context) {
  byId("context").hidden = !(context > 0 && used >= 0);
  const meter = byId("context-meter");
  meter.value = context > 0 ? Math.min(1, used / context) : 0;
  byId("context-text").textContent = `${used} / ${context}`;
}
