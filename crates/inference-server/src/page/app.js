// The page: a conversation, its stream, and what can be done with it.
import { render } from "./markdown.js";
import { conversations, saveConversations, saveSettings, settings } from "./store.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["system", "temperature", "top_p", "top_k", "max_tokens", "seed", "thinking", "theme", "key", "tools"];
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

let current = null;
let running = null;

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const button = (text, act, title = "") => make("button", { type: "button", textContent: text, onclick: act, title });

// The server

function headers() {
  return { "content-type": "application/json", ...(settings.key ? { authorization: `Bearer ${settings.key}` } : {}) };
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `${response.status} ${response.statusText}`);
}

async function loadModels() {
  const select = $("model");
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw await failure(response);
    const { data } = await response.json();
    select.replaceChildren(...data.map((model) => make("option", { value: model.id, textContent: model.id })));
    if (data.some((model) => model.id === settings.model)) select.value = settings.model;
    status("");
  } catch (error) {
    status(error.message, true);
    if (/key/.test(error.message)) openSettings("key");
  }
}

/** The chunks of a stream, as they come. */
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function request(messages) {
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) {
    if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  }
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  if (settings.tools) body.tools = JSON.parse(settings.tools);
  return body;
}

/** The conversation as the API has it. */
function history() {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const turn = ({ role, content, reasoning, calls, id }) => ({
    role,
    content,
    ...(reasoning ? { reasoning_content: reasoning } : {}),
    ...(calls?.length ? { tool_calls: calls } : {}),
    ...(role === "tool" ? { tool_call_id: id } : {}),
  });
  return [...system, ...current.messages.filter((message) => !message.error || message.content).map(turn)];
}

function take(answer, delta) {
  answer.content += delta.content ?? "";
  if (delta.reasoning_content) answer.reasoning = (answer.reasoning ?? "") + delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) {
    answer.calls ??= [];
    const call = (answer.calls[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
}

async function answer() {
  const made = { role: "assistant", content: "" };
  const messages = history();
  current.messages.push(made);
  const abort = new AbortController();
  running = abort;
  show();
  const view = $("messages").lastElementChild;
  view.classList.add("streaming");
  const began = performance.now();
  let first = null;
  let pending = false;
  const refresh = () => {
    pending = false;
    fill(view, made, current.messages.length - 1);
    follow();
  };
  try {
    const body = JSON.stringify(request(messages));
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body, signal: abort.signal });
    if (!response.ok) throw await failure(response);
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) made.cost = cost(chunk.usage, first, performance.now());
      const [choice] = chunk.choices ?? [];
      if (!choice) continue;
      if (choice.delta.content || choice.delta.reasoning_content || choice.delta.tool_calls) first ??= performance.now();
      take(made, choice.delta);
      if (choice.finish_reason === "length") made.note = "cut at the limit of tokens";
      if (!pending) {
        pending = true;
        requestAnimationFrame(refresh);
      }
    }
    status(first ? `first token after ${Math.round(first - began)} ms` : "");
  } catch (error) {
    if (error.name === "AbortError") made.note = "stopped";
    else made.error = error.message;
  } finally {
    running = null;
    view.classList.remove("streaming");
    refresh();
    keep();
    show();
  }
}

function cost(usage, first, now) {
  const seconds = first ? (now - first) / 1000 : 0;
  const rate = seconds > 0 ? `, ${(usage.completion_tokens / seconds).toFixed(1)} tokens/s` : "";
  return `${usage.prompt_tokens} + ${usage.completion_tokens} tokens${rate}`;
}

// What is done

function ask(text) {
  current ??= begin();
  current.messages.push({ role: "user", content: text });
  if (!current.title) current.title = text.slice(0, 60);
  keep();
  answer();
}

function begin() {
  const made = { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", messages: [] };
  conversations.unshift(made);
  return made;
}

function keep() {
  const at = conversations.indexOf(current);
  if (at > 0) conversations.unshift(...conversations.splice(at, 1));
  if (!saveConversations()) status("the browser has no room for conversations", true);
  list();
}

function retry(number) {
  if (running) return;
  current.messages.splice(number);
  answer();
}

function edit(number) {
  if (running) return;
  const view = $("messages").children[number];
  const text = make("textarea", { value: current.messages[number].content, rows: 3, ariaLabel: "Edit the question" });
  const save = () => {
    if (!text.value.trim()) return;
    current.messages.splice(number);
    ask(text.value);
  };
  text.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      show();
    }
  };
  view.replaceChildren(text, make("div", { className: "row" }, button("Send", save), button("Cancel", show)));
  text.focus();
}

function stop() {
  running?.abort();
}

// What is shown

function status(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", bad);
}

function follow() {
  const box = $("messages");
  if (box.scrollHeight - box.scrollTop - box.clientHeight < 160) box.scrollTop = box.scrollHeight;
}

function reasoning(message, old) {
  const box = make("details", { open: old?.open ?? false });
  box.append(make("summary", { textContent: message.content ? "Reasoning" : "Reasoning …" }), make("div", { className: "text", textContent: message.reasoning }));
  return box;
}

function call(made, number) {
  const box = make("div", { className: "call" }, make("span", { className: "name", textContent: made.function.name }), make("pre", { textContent: made.function.arguments }));
  const result = current.messages.slice(number + 1).find((message) => message.role === "tool" && message.id === made.id);
  if (result) {
    box.append(make("pre", { textContent: `→ ${result.content}` }));
  } else if (!running && number === current.messages.findLastIndex((message) => message.role === "assistant")) {
    const field = make("textarea", { rows: 1, placeholder: "The tool's result", ariaLabel: `Result of ${made.function.name}` });
    box.append(field, button("Give result", () => give(made, field.value, number)));
  }
  return box;
}

function give(made, text, number) {
  current.messages.push({ role: "tool", id: made.id, content: text });
  keep();
  const given = current.messages.slice(number + 1).length;
  if (given === current.messages[number].calls.length) answer();
  else show();
}

function fill(view, message, number) {
  const parts = [];
  if (message.reasoning) parts.push(reasoning(message, view.querySelector("details")));
  const body = make("div", { className: "body" });
  if (message.role === "assistant") body.append(...render(message.content));
  else body.textContent = message.content;
  parts.push(body);
  for (const made of message.calls ?? []) parts.push(call(made, number));
  if (message.error) parts.push(make("p", { className: "error", textContent: message.error }));
  if (!running) {
    const actions = make("div", { className: "actions" }, button("Copy", () => navigator.clipboard?.writeText(message.content)));
    if (message.role === "user") actions.append(button("Edit", () => edit(number)));
    if (message.role === "assistant") actions.append(button("Retry", () => retry(number)));
    const meta = [message.note, message.cost].filter(Boolean).join(" · ");
    if (meta) actions.append(make("span", { className: "meta", textContent: meta }));
    parts.push(actions);
  }
  view.replaceChildren(...parts);
}

function show() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("messages").setAttribute("aria-busy", String(Boolean(running)));
  const views = (current?.messages ?? []).map((message, number) => {
    const view = make("article", { className: `message ${message.role}`, ariaLabel: message.role });
    // Results are shown with their calls; the view keeps the numbers in step.
    if (message.role === "tool") view.hidden = true;
    else fill(view, message, number);
    return view;
  });
  if (views.length === 0) views.push(make("p", { className: "empty", textContent: "Ask something." }));
  $("messages").replaceChildren(...views);
  $("messages").scrollTop = $("messages").scrollHeight;
}

function list() {
  $("conversations").replaceChildren(...conversations.map((conversation) => {
    const open = button(conversation.title || "New conversation", () => select(conversation));
    open.className = "open";
    if (conversation === current) open.setAttribute("aria-current", "true");
    const remove = button("×", () => forget(conversation), "Delete");
    remove.className = "delete";
    remove.ariaLabel = `Delete ${conversation.title}`;
    return make("li", { className: conversation === current ? "current" : "" }, open, remove);
  }));
}

function select(conversation) {
  stop();
  current = conversation;
  menu(false);
  list();
  show();
  $("question").focus();
}

function forget(conversation) {
  if (conversation === current) stop();
  conversations.splice(conversations.indexOf(conversation), 1);
  if (conversation === current) current = null;
  saveConversations();
  list();
  show();
}

function menu(open) {
  document.body.classList.toggle("menu", open);
  $("menu").setAttribute("aria-expanded", String(open));
}

function theme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

function openSettings(field) {
  for (const name of FIELDS) $(name).value = settings[name] ?? "";
  $("settings-error").textContent = "";
  if (!$("settings").open) $("settings").showModal();
  if (typeof field === "string") $(field).focus();
}

function saveFromDialog(event) {
  if (event.submitter?.value !== "save") return;
  try {
    const tools = $("tools").value.trim();
    if (tools && !Array.isArray(JSON.parse(tools))) throw new Error("expected a list of tools");
  } catch (error) {
    event.preventDefault();
    $("settings-error").textContent = `Tools: ${error.message}`;
    return;
  }
  const key = settings.key;
  for (const name of FIELDS) settings[name] = $(name).value.trim();
  saveSettings();
  theme();
  if (settings.key !== key) loadModels();
}

// What the reader does

function send() {
  const text = $("question").value;
  if (!text.trim() || running) return;
  $("question").value = "";
  grow();
  ask(text);
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("question").oninput = grow;
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
};
$("stop").onclick = stop;
$("new").onclick = () => select(null);
$("menu").onclick = () => menu(!document.body.classList.contains("menu"));
$("main").addEventListener("click", (event) => {
  if (event.target.id !== "menu") menu(false);
  if (event.target.dataset?.copy) navigator.clipboard?.writeText(event.target.previousElementSibling.textContent);
});
$("settings-open").onclick = openSettings;
$("settings").querySelector("form").onsubmit = saveFromDialog;
$("tools").oninput = () => ($("settings-error").textContent = "");
$("model").onchange = () => {
  settings.model = $("model").value;
  saveSettings();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("settings").open) stop();
  if (event.altKey && event.key === "n") select(null);
  if (event.altKey && event.key === ",") openSettings();
});

theme();
list();
show();
loadModels();
