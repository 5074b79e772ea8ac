// The page: what is shown, what runs, and what each key and button does.

import { ServerError, chat, hasKey, setKey, status } from "./api.js";
import { readFiles } from "./attachments.js";
import {
  addMessage, branch, newConversation, requestMessages, requestSettings, settle, showVersion,
} from "./conversation.js";
import { el, put } from "./markdown.js";
import { Store } from "./store.js";
import { MessageView, button, byId, showContext, showConversations, showMemory, showNotice } from "./view.js";

const SAVE_EVERY_MS = 2000;
const SPEED_WINDOW_MS = 2000;
const NUMBERS = [["temperature", "temperature"], ["max-tokens", "max_tokens"], ["seed", "seed"]]; // fields of settings
const STATUS_EVERY_MS = 2000; // while the memory panel is open

const store = await Store.open();
const runs = new Map(); // conversation id → {abort, message}: answers on their way, also of conversations not shown
let models = []; // [{name, context, is_loaded, fits}]
let standard = null; // the name of the model that a new conversation has
let isListed = false; // `models` is what the server has
let needsKey = false; // the server has refused us, and no other key was given since
let follows = true; // whether the end of the log stays in view as it grows; not while the reader looks further up
let lastTop = 0; // of the scroller
let current = newConversation("");
let isSaved = false; // an empty conversation is not kept
let views = new Map(); // message id → MessageView
let files = []; // attached to the message being written

// --- what is shown ---------------------------------------------------------------------------------------------------

function actionsFor(conversation) {
  const base = { copy: (message) => copy(message.text), version: (message) => turnTo(conversation, message) };
  return runs.has(conversation.id) ? base : { ...base, edit: askAgain, retry, retryShorter };
}

function render() {
  const actions = actionsFor(current);
  views = new Map();
  const nodes = branch(current).map((message) => {
    const view = new MessageView(current, message, message.model || current.model || "Model", actions);
    views.set(message.id, view);
    return view.node;
  });
  byId("log").replaceChildren(...nodes);
  byId("empty").hidden = nodes.length > 0;
  document.title = current.title ? `${current.title} · Kamado` : "Kamado";
  byId("system").value = current.settings.system ?? "";
  for (const [id, name] of NUMBERS) byId(id).value = current.settings[name] ?? "";
  chooseModel();
  showState();
  scrollDown(true);
}

/** Buttons and figures that depend on whether an answer runs. */
function showState() {
  const isRunning = runs.has(current.id);
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  byId("log").setAttribute("aria-busy", String(isRunning));
  if (!isRunning) byId("speed").textContent = "";
  const last = branch(current).findLast((message) => message.usage);
  showContext(last ? last.usage.total_tokens : 0, contextOf(current.model));
}

async function renderList() {
  showConversations(await store.list(), current.id, new Set(runs.keys()), { open: openConversation, remove });
}

function contextOf(name) {
  return models.find((model) => model.name === name)?.context ?? 0;
}

function isLoaded(name) {
  return models.find((model) => model.name === name)?.is_loaded ?? true; // what is not known is not said
}

/** Called after everything that makes the log taller or the window lower. */
function scrollDown(always = false) {
  if (always) follows = true;
  if (!follows) return;
  const box = byId("scroller");
  box.scrollTop = box.scrollHeight;
  lastTop = box.scrollTop; // where we put it ourselves is nobody's wish
}

/** Whoever scrolls up wants to read there; whoever comes back to the end wants to see it grow. */
function onScroll() {
  const box = byId("scroller");
  const left = box.scrollHeight - box.scrollTop - box.clientHeight;
  if (left < 4 || (left < 60 && box.scrollTop > lastTop)) follows = true;
  else if (box.scrollTop < lastTop) follows = false;
  lastTop = box.scrollTop;
}

function turnTo(conversation, message) {
  showVersion(conversation, message);
  save(conversation);
  render();
}

// --- conversations ---------------------------------------------------------------------------------------------------

async function save(conversation) {
  if (conversation === current) isSaved = true;
  try {
    await store.put(conversation);
  } catch (error) {
    showNotice(`This browser does not keep the conversation: ${error.message}`);
  }
  await renderList();
}

function startConversation() {
  show(newConversation(byId("model").value || current.model), false);
}

function show(conversation, isKept) {
  current = conversation;
  isSaved = isKept;
  openSidebar(false);
  render();
  renderList();
  byId("input").focus();
}

async function openConversation(id) {
  const running = runs.get(id);
  const found = running ? running.conversation : await store.get(id);
  if (!found) return;
  if (!running && settle(found)) await store.put(found);
  show(found, true);
}

async function remove(conversation) {
  stop(conversation.id);
  runs.delete(conversation.id);
  await store.remove(conversation.id);
  if (conversation.id === current.id) startConversation();
  else renderList();
  const title = conversation.title || "New conversation";
  showNotice(`“${title}” is deleted.`, "Undo", async () => {
    settle(conversation);
    await store.put(conversation);
    openConversation(conversation.id);
  });
}

// --- answers ---------------------------------------------------------------------------------------------------------

function send() {
  const input = byId("input");
  const text = input.value.trim();
  if ((!text && !files.length) || runs.has(current.id)) return;
  if (needsKey) {
    askForKey();
    return;
  }
  if (!current.model) {
    if (isListed) showNotice("No model here can chat. Fetch one with: kamado pull smollm2:135m");
    else refreshStatus().then(() => current.model && send()); // says why when there is still none
    return;
  }
  const question = addMessage(current, current.leaf, "user", { text, files });
  input.value = "";
  setFiles([]);
  grow();
  answer(current, question);
}

/** The edited question becomes another version beside the old one. */
function askAgain(message, text) {
  answer(current, addMessage(current, message.parent, "user", { text, files: message.files }));
}

function retry(message, more = {}) {
  const question = current.messages[message.parent];
  if (question) answer(current, question, more);
}

/** Asks again; the server leaves out the oldest messages that do not fit, and says how many. */
function retryShorter(message) {
  retry(message, { truncation: "auto" });
}

/** `more`: further parameters of the request. */
async function answer(conversation, question, more = {}) {
  const limit = requestSettings(conversation).max_tokens ?? null;
  const message = addMessage(
    conversation, question.id, "assistant",
    { state: "running", model: conversation.model, limit, isLoading: !isLoaded(conversation.model) },
  );
  const run = { conversation, message, abort: new AbortController() };
  runs.set(conversation.id, run);
  await save(conversation);
  if (conversation === current) render();
  const begun = performance.now();
  const arrivals = []; // times of the latest pieces, for the live speed
  let first = 0;
  let savedAt = begun;
  let isDrawn = true;
  let state = "stopped"; // until its last event says otherwise
  const draw = () => {
    isDrawn = true;
    if (conversation !== current) return;
    views.get(message.id)?.update();
    scrollDown();
    if (message.state !== "running") return; // its end came before this frame
    const now = performance.now();
    while (arrivals.length && now - arrivals[0] > SPEED_WINDOW_MS) arrivals.shift();
    const seconds = Math.min(SPEED_WINDOW_MS, now - first) / 1000;
    if (arrivals.length > 1) byId("speed").textContent = `≈ ${(arrivals.length / seconds).toFixed(1)} tokens/s`;
  };
  try {
    const body = {
      model: conversation.model, messages: requestMessages(conversation, question), ...requestSettings(conversation), ...more,
    };
    for await (const piece of chat(body, run.abort.signal)) {
      if (piece.text || piece.thinking) {
        const now = performance.now();
        first ||= now;
        arrivals.push(now);
        message.text += piece.text;
        message.thinking += piece.thinking;
        if (isDrawn) {
          isDrawn = false;
          requestAnimationFrame(draw);
        }
        if (now - savedAt > SAVE_EVERY_MS) {
          savedAt = now;
          store.put(conversation).catch(() => {}); // the last save says when there is no space
        }
      }
      if (piece.finish) state = piece.finish === "length" ? "cut" : "done";
      if (piece.usage) message.usage = piece.usage;
      if (piece.numLeftOut) message.numLeftOut = piece.numLeftOut;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      state = "failed";
      message.error = error.message;
      message.isTooLong = error.code === "context_length_exceeded";
      if (error instanceof ServerError && error.status === 401) refused();
    }
  }
  message.state = state;
  message.context = contextOf(message.model);
  const end = performance.now();
  message.seconds = { first: ((first || end) - begun) / 1000, answer: first ? (end - first) / 1000 : 0 };
  if (runs.get(conversation.id) !== run) return; // deleted meanwhile
  runs.delete(conversation.id);
  conversation.updated = Date.now();
  if (conversation === current) {
    for (const view of views.values()) view.finish(conversation, actionsFor(conversation));
    showState();
    scrollDown(); // the note, the buttons and the figures are part of the answer
    refreshStatus();
  }
  await save(conversation);
}

function stop(id = current.id) {
  runs.get(id)?.abort.abort();
}

// --- models, memory, key ---------------------------------------------------------------------------------------------

async function refreshStatus() {
  try {
    const found = await status();
    models = found.models;
    standard = found.default;
    isListed = true;
    setNeedsKey(false);
    showModels();
    showMemory(found.loaded);
    for (const { message } of runs.values()) {
      if (!message.isLoading || !isLoaded(message.model)) continue;
      message.isLoading = false;
      views.get(message.id)?.update();
    }
    showState();
  } catch (error) {
    if (error.status === 401) {
      refused();
      return;
    }
    if (error.status) setNeedsKey(false); // what it said is not of the key
    showNotice(isListed ? error.message : `The list of models cannot be had: ${error.message}`);
  }
}

function showModels() {
  const select = byId("model");
  const labels = models.map((model) => (model.fits ? model.name : `${model.name} (cannot be loaded now)`));
  if (labels.join("\n") !== Array.from(select.options, (option) => option.text).join("\n")) {
    select.replaceChildren(...models.map((model, i) => put(el("option", "", labels[i]), { value: model.name })));
  }
  if (!models.length) select.replaceChildren(el("option", "", "no model that chats"));
  select.disabled = models.length === 0;
  chooseModel();
}

function chooseModel() {
  const select = byId("model");
  const names = models.map((model) => model.name);
  if (!names.length) return;
  if (!names.includes(current.model)) {
    const last = models.find((model) => model.name === localStorage.getItem("kamado.model")); // chosen here before
    current.model = last?.fits ? last.name : standard;
  }
  select.value = current.model;
}

function setNeedsKey(isNeeded) {
  needsKey = isNeeded;
  byId("key-missing").hidden = !isNeeded;
}

/** The server wants a key, or another one than it got. */
function refused() {
  const problem = hasKey()
    ? "That key is wrong: the server does not know it. Look for a letter that is missing or one too many." : "";
  setKey("");
  setNeedsKey(true);
  askForKey(problem);
}

function askForKey(problem = "") {
  const dialog = byId("key-dialog");
  if (problem || !dialog.open) {
    byId("key-problem").textContent = problem;
    byId("key-problem").hidden = !problem;
  }
  if (dialog.open) return;
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
}

async function onKeyDialogClosed() {
  if (byId("key-dialog").returnValue === "ok" && byId("key").value.trim()) {
    setKey(byId("key").value);
    await refreshStatus();
  }
  byId("key").value = "";
  if (!byId("key-dialog").open) byId("input").focus();
}

// --- the form, keys and panels ---------------------------------------------------------------------------------------

function grow() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function setFiles(list) {
  files = list;
  byId("attachments").replaceChildren(...files.map((file) => {
    const drop = button("✕", "quiet", () => {
      setFiles(files.filter((other) => other !== file));
      byId("input").focus();
    }, `Remove ${file.name}`);
    return el("li", "", file.name, drop);
  }));
}

async function attach(list) {
  const { read, refused } = await readFiles(list, files);
  setFiles([...files, ...read]);
  if (refused.length) showNotice(refused.join(" "));
  byId("input").focus();
}

function openSidebar(isOpen) {
  byId("sidebar").classList.toggle("open", isOpen);
  byId("shade").hidden = !isOpen;
  byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) byId("close-sidebar").focus();
}

function closeSidebar() {
  openSidebar(false);
  byId("open-sidebar").focus();
}

function togglePanel(panel, opener) {
  panel.hidden = !panel.hidden;
  opener.setAttribute("aria-expanded", String(!panel.hidden));
}

/** The clipboard API is missing on the plain-HTTP addresses of a LAN: there a hidden text field does it. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = put(el("textarea", "hidden"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  showNotice("Copied.");
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("kamado.theme", theme);
  byId("theme").value = theme;
}

function onNumber(id, name) {
  byId(id).addEventListener("change", () => {
    const { value, valueAsNumber } = byId(id);
    if (value === "") delete current.settings[name];
    else if (byId(id).reportValidity()) current.settings[name] = valueAsNumber;
    if (isSaved) save(current);
  });
}

function onKey(event) {
  if (event.key === "Escape") {
    if (byId("sidebar").classList.contains("open")) closeSidebar();
    else if (!byId("key-dialog").open) stop();
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    startConversation();
  }
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("input").addEventListener("input", grow);
  byId("input").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // isComposing: an input method's Enter
    event.preventDefault();
    send();
  });
  byId("input").addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      attach(event.clipboardData.files);
    }
  });
  byId("stop").addEventListener("click", () => {
    stop();
    byId("input").focus();
  });
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", async () => {
    await attach(byId("files").files);
    byId("files").value = "";
  });
  const main = document.querySelector("main");
  for (const name of ["dragover", "dragleave", "drop"]) {
    main.addEventListener(name, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      main.classList.toggle("dropping", name === "dragover");
      if (name === "drop") attach(event.dataTransfer.files);
    });
  }
  byId("new-chat").addEventListener("click", startConversation);
  byId("open-sidebar").addEventListener("click", () => openSidebar(true));
  byId("close-sidebar").addEventListener("click", closeSidebar);
  byId("shade").addEventListener("click", () => openSidebar(false));
  byId("show-memory").addEventListener("click", () => {
    togglePanel(byId("memory"), byId("show-memory"));
    refreshStatus();
  });
  byId("show-settings").addEventListener("click", () => togglePanel(byId("settings"), byId("show-settings")));
  byId("enter-key").addEventListener("click", () => askForKey());
  byId("key-dialog").addEventListener("close", onKeyDialogClosed);
  byId("scroller").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(() => scrollDown()).observe(byId("scroller")); // a longer message, a keyboard of a phone
  byId("theme").addEventListener("change", () => setTheme(byId("theme").value));
  byId("model").addEventListener("change", () => {
    current.model = byId("model").value;
    localStorage.setItem("kamado.model", current.model);
    if (isSaved) save(current);
    showState();
  });
  byId("system").addEventListener("change", () => {
    current.settings.system = byId("system").value;
    if (isSaved) save(current);
  });
  for (const [id, name] of NUMBERS) onNumber(id, name);
  byId("log").addEventListener("click", (event) => {
    const source = event.target.closest("[data-copy]");
    if (source) copy(source.closest(".code").querySelector("code").textContent);
  });
  document.addEventListener("keydown", onKey);
  store.onChange(async (id) => {
    renderList();
    if (id !== current.id || runs.has(id) || !isSaved) return;
    const found = await store.get(id);
    if (found) {
      current = found;
      render();
    } else {
      startConversation(); // another tab deleted it
    }
  });
  setInterval(() => {
    const isWatched = !byId("memory").hidden || runs.get(current.id)?.message.isLoading;
    if (isWatched && document.visibilityState === "visible" && !needsKey) refreshStatus();
  }, STATUS_EVERY_MS);
}

setTheme(localStorage.getItem("kamado.theme") ?? "");
listen();
render();
await renderList();
await refreshStatus();
if (!store.isKept) showNotice("This browser keeps nothing: conversations end with this tab.");
byId("input").focus();
document.documentElement.dataset.ready = "true";
