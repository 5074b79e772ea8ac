// A conversation is a tree: editing or retrying adds a sibling, so nothing that was said is lost. `leaf` is the end of
// the branch that is shown.
//
// message: {id, parent, role, text, thinking, files: [{name, text}], state, error, usage, seconds, created; of an answer
//          also model, limit (tokens, or null), context (tokens of the model, when it ended), isTooLong (the question
//          did not fit), numLeftOut (messages that were not sent to the model) and isLoading (the model was not in memory)}
// state:   "done" | "running" | "stopped" | "failed" | "cut" (the token limit or the context ended it)

import { newId } from "./store.js";

export function newConversation(model) {
  const now = Date.now();
  return { id: newId(), title: "", model, created: now, updated: now, messages: {}, leaf: null, settings: {} };
}

/** Adds a message below `parent` (an id, or null for the first) and shows it. */
export function addMessage(conversation, parent, role, fields = {}) {
  const now = Date.now();
  const message = { id: newId(), parent, role, text: "", thinking: "", files: [], state: "done", created: now, ...fields };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  conversation.updated = now;
  if (!conversation.title && role === "user") {
    const title = (message.text || message.files[0]?.name || "").replace(/\s+/g, " ").trim();
    conversation.title = title.length > 60 ? `${title.slice(0, 59)}…` : title;
  }
  return message;
}

/** The messages from the first to `leaf`. */
export function branch(conversation, leaf = conversation.leaf) {
  const path = [];
  const seen = new Set(); // what the browser kept may be damaged
  for (let id = leaf; id && conversation.messages[id] && !seen.has(id); id = conversation.messages[id].parent) {
    seen.add(id);
    path.push(conversation.messages[id]);
  }
  return path.reverse();
}

/** All versions of a message, in the order they were made. */
export function versions(conversation, message) {
  return Object.values(conversation.messages).filter((m) => m.parent === message.parent && m.role === message.role);
}

/** Shows another version, down to the newest end of its branch. */
export function showVersion(conversation, message) {
  const newest = new Map();
  for (const m of Object.values(conversation.messages)) newest.set(m.parent, m); // the last made wins
  let leaf = message;
  while (newest.has(leaf.id)) leaf = newest.get(leaf.id);
  conversation.leaf = leaf.id;
}

/** Ends what a page that was closed in the middle of an answer left running. */
export function settle(conversation) {
  const left = Object.values(conversation.messages).filter((m) => m.state === "running");
  for (const message of left) message.state = "stopped";
  return left.length > 0;
}

/** The text that the model gets for a user's message: the files first, each in a fence that its content cannot close. */
export function sentText(message) {
  const parts = message.files.map(({ name, text }) => {
    const longest = (text.match(/`+/g) ?? []).reduce((most, run) => Math.max(most, run.length), 2);
    const fence = "`".repeat(longest + 1);
    return `File ${JSON.stringify(name)}:\n${fence}\n${text.endsWith("\n") ? text : `${text}\n`}${fence}`;
  });
  return [...parts, message.text].filter(Boolean).join("\n\n");
}

/** The messages of a request for an answer to `last`. Thinking and empty answers are not sent. */
export function requestMessages(conversation, last) {
  const out = [];
  const system = conversation.settings.system?.trim();
  if (system) out.push({ role: "system", content: system });
  for (const message of branch(conversation, last.id)) {
    if (message.role === "user") out.push({ role: "user", content: sentText(message) });
    else if (message.text) out.push({ role: "assistant", content: message.text });
  }
  return out;
}

/** The settings of a conversation as parameters of a request; what is empty is left to the model. */
export function requestSettings({ settings }) {
  const out = {};
  for (const name of ["temperature", "max_tokens", "seed"]) {
    if (typeof settings[name] === "number" && Number.isFinite(settings[name])) out[name] = settings[name];
  }
  return out;
}
