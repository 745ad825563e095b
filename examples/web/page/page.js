// SPDX-License-Identifier: MIT OR Apache-2.0
"use strict";

// Controls are made of what the element says it has. All text goes in as text, never as HTML.

// What people reach for most, in this order; the rest is below "More settings".
const FIRST = ["strength", "guidance-scale", "steps", "mix", "similarity-filter", "ssf-threshold"];
// Ends of sliders where the property's own range is far wider than what is of use.
const USEFUL = { "guidance-scale": 5, "delta": 2 };
// Whole numbers with more values than this are typed, not slid.
const MOST_NOTCHES = 1000;

const byId = (id) => document.getElementById(id);
// By property: shows a value that the server tells.
const show = new Map();

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, attributes);
  element.append(...children);
  return element;
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// By property: the value to send next. There is one request at a time; what a slider passes through meanwhile is left out.
const waiting = new Map();
let sending = false;

async function send(name, value) {
  waiting.set(name, value);
  if (sending) return;
  sending = true;
  try {
    while (waiting.size) {
      const values = Object.fromEntries(waiting);
      waiting.clear();
      const response = await fetch("/properties", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(values),
      });
      const answer = await response.json();
      complain(response.ok ? "" : answer.error);
      if (response.ok) update(answer);
    }
  } catch {
    complain("The server does not answer.");
  } finally {
    sending = false;
  }
}

// A control for one property: its elements, and how it shows a value.
function control(property) {
  const { name, kind, minimum, maximum, choices } = property;
  const id = `control-${name}`;
  const caption = make("label", { htmlFor: id, textContent: property.nick, title: property.blurb });
  let input, parts;
  if (kind === "bool") {
    input = make("input", { id, type: "checkbox" });
    input.addEventListener("change", () => send(name, input.checked));
    show.set(name, (value) => { input.checked = value; });
    parts = [input];
  } else if (kind === "enum") {
    input = make("select", { id }, ...choices.map((choice) => make("option", { textContent: choice })));
    input.addEventListener("change", () => send(name, input.value));
    show.set(name, (value) => { input.value = value; });
    parts = [input];
  } else if (kind === "text") {
    input = make("input", { id, autocomplete: "off" });
    input.addEventListener("change", () => send(name, input.value));
    show.set(name, (value) => { input.value = value ?? ""; });
    parts = [input];
  } else if (kind === "int" && maximum - minimum > MOST_NOTCHES) {
    // Beyond 2^53, numbers of scripts are not exact.
    const most = Math.min(maximum, Number.MAX_SAFE_INTEGER);
    input = make("input", { id, type: "number", min: minimum, max: most, step: 1 });
    input.addEventListener("change", () => {
      if (input.checkValidity() && input.value !== "") send(name, Number(input.value));
      else complain(`${property.nick}: a whole number from ${minimum} to ${most} is expected.`);
    });
    show.set(name, (value) => { input.value = value; });
    parts = [input];
  } else {
    const most = Math.min(maximum, USEFUL[name] ?? maximum);
    const step = kind === "int" ? 1 : (most - minimum) / 100;
    const number = make("output", {});
    const tell = () => { number.textContent = kind === "int" ? input.value : Number(input.value).toFixed(2); };
    input = make("input", { id, type: "range", min: minimum, max: most, step });
    input.addEventListener("input", () => { tell(); send(name, Number(input.value)); });
    show.set(name, (value) => { input.value = value; tell(); });
    parts = [input, number];
  }
  input.title = property.blurb;
  return make("div", { className: "control" }, caption, make("div", { className: "line" }, ...parts));
}

// What the server says is in force. What the user is typing or sliding is left alone.
function update(state) {
  for (const [name, value] of Object.entries(state.properties)) {
    const input = byId(name === "prompt" ? "prompt" : `control-${name}`);
    if (input !== document.activeElement && !waiting.has(name)) show.get(name)?.(value);
  }
  const { stats } = state;
  const rate = (stats.fps ?? 0).toFixed(1);
  byId("summary").textContent =
    `${rate} frames per second at ${stats.width}×${stats.height} on ${stats.device || "…"}`;
  const text = (value) => typeof value === "number" && !Number.isInteger(value) ? value.toFixed(1) : String(value);
  byId("stats").replaceChildren(...Object.entries(stats).map(([name, value]) => make(
    "tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: text(value) }))));
  byId("messages").replaceChildren(...state.messages.map((message) => make("li", { textContent: message })));
}

async function poll() {
  try {
    const response = await fetch("/state");
    update(await response.json());
    if (byId("problem").dataset.lost) {
      delete byId("problem").dataset.lost;
      complain("");
    }
  } catch {
    byId("problem").dataset.lost = "yes";
    complain("The server does not answer.");
  }
  setTimeout(poll, 1000);
}

async function start() {
  const controls = await (await fetch("/controls")).json();
  const rank = (property) => {
    const place = FIRST.indexOf(property.name);
    return place < 0 ? FIRST.length : place;
  };
  controls.sort((a, b) => rank(a) - rank(b));
  for (const property of controls) {
    if (property.name === "prompt") {
      show.set("prompt", (value) => { byId("prompt").value = value ?? ""; });
      byId("prompt").title = property.blurb;
    } else {
      byId(FIRST.includes(property.name) ? "controls" : "more").append(control(property));
    }
    show.get(property.name)(property.value);
  }
  byId("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send("prompt", byId("prompt").value);
  });
  // When the server went away and came back, so does the picture.
  byId("preview").addEventListener("error", () => {
    setTimeout(() => { byId("preview").src = `/stream?${Date.now()}`; }, 1000);
  });
  poll();
}

start().catch(() => complain("The server does not answer."));
