// Things as cards: latest values, their short past, and what can be written or invoked.
import { make, order, read, send, span, text } from "/app.js";

const PAST_MAX = 60;
const UNITS = { Cel: "°C", "kW.h": "kWh", "dB[mW]": "dBm", "{pixel}": "px", deg: "°", 1: "", "%": "%" };
/** What the state of a shadow means. */
const STATES = { "in-sync": "has what it is to have", offline: "waits for the thing to come", sending: "is being told", "given-up": "was told in vain: it is tried again when the thing comes anew" };
/** Card by thing, row by property. */
const cards = new Map();

export function showThings(things) {
  const grid = document.getElementById("things");
  if (things.length) grid.querySelector(":scope > .none")?.remove();
  const known = new Set(things.map((thing) => thing.id));
  for (const [id, card] of cards) {
    if (!known.has(id)) {
      card.root.remove();
      cards.delete(id);
    }
  }
  for (const thing of things) {
    // Cameras have cards of their own.
    if (thing.stream) continue;
    const card = cards.get(thing.id) ?? newCard(grid, thing);
    showState(card, thing);
    showWaiting(card, thing);
    for (const property of thing.properties) {
      if (property.time_us == null) continue;
      showValue(card, property.name, property.value, property.quality, property.time_us / 1000, property);
    }
  }
}

/** Takes a message of the live feed in. */
export function takeMessage(message) {
  const card = cards.get(message.thing);
  if (!card) return;
  card.seen = Date.parse(message.received ?? message.time);
  if (message.presence) setOnline(card, message.presence.online);
  for (const [name, value] of Object.entries(message.properties ?? {})) {
    showValue(card, name, value, message.quality?.[name] ?? "good", Date.parse(message.time));
  }
}

function newCard(grid, thing) {
  const dot = make("span", { class: "dot", role: "img" });
  const seen = make("span", { class: "end" });
  const rows = make("tbody");
  const does = make("div", { class: "does" });
  const waiting = newWaiting(thing);
  const root = make("article", { class: "card", "aria-label": thing.id, "data-thing": thing.id },
    make("div", { class: "head" }, dot, make("h3", {}, thing.id), seen),
    make("p", { class: "sub" }, [thing.title, thing.adapter && `by ${thing.adapter}`].filter(Boolean).join(" · ")),
    make("table", { "aria-label": `Values of ${thing.id}` }, rows), does, waiting.root);
  for (const action of thing.actions.filter((action) => !action.input)) {
    const button = make("button", { type: "button" }, action.title);
    button.addEventListener("click", () => busy(button, () => order(thing.id, `actions/${encodeURIComponent(action.name)}`, undefined, `${thing.id}: ${action.title}`)));
    does.append(button);
  }
  const card = { id: thing.id, root, dot, seen, seenText: seen, rows, waiting, values: new Map(), properties: new Map(thing.properties.map((p) => [p.name, p])) };
  cards.set(thing.id, card);
  const after = [...grid.children].find((other) => other.dataset.thing > thing.id);
  grid.insertBefore(root, after ?? null);
  return card;
}

function showState(card, thing) {
  setOnline(card, thing.online);
  card.seen = Math.max(typeof card.seen === "number" ? card.seen : 0, thing.seen_us / 1000);
  const age = Math.max(0, (Date.now() - card.seen) / 1000);
  text(card.seenText, card.seen ? (age < 2 ? "just now" : `${span(age)} ago`) : "never seen");
}

function setOnline(card, online) {
  card.dot.classList.toggle("on", online);
  card.dot.setAttribute("aria-label", online ? "online" : "offline");
  for (const control of card.root.querySelectorAll("button:not(.back), input")) control.disabled = !online;
}

function showValue(card, name, value, quality, time, property = card.properties.get(name)) {
  const row = card.values.get(name) ?? newRow(card, name, property);
  if (time <= row.time && row.time) return;
  row.time = time;
  if (row.shown !== undefined && row.shown !== JSON.stringify(value)) {
    row.cell.classList.add("new");
    requestAnimationFrame(() => requestAnimationFrame(() => row.cell.classList.remove("new")));
  }
  row.shown = JSON.stringify(value);
  text(row.mark, quality && quality !== "good" ? quality.replaceAll("-", " ") : "");
  row.mark.hidden = !row.mark.textContent;
  if (row.toggle) {
    row.toggle.setAttribute("aria-checked", String(value === true));
    text(row.number, value === true ? "on" : "off");
  } else {
    text(row.number, words(value));
  }
  row.cell.classList.toggle("text", typeof value === "string" || (typeof value === "object" && value !== null));
  if (typeof value === "number") {
    row.past.push(value);
    if (row.past.length > PAST_MAX) row.past.shift();
    draw(row);
  }
}

function newRow(card, name, property) {
  const unit = property?.unit == null ? "" : (UNITS[property.unit] ?? property.unit);
  const number = make("span", {}, "–");
  const mark = make("span", { class: "mark", hidden: true });
  const line = make("polyline");
  const spark = make("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", role: "img", "aria-label": `${property?.title ?? name}, recent course`, hidden: true }, line);
  const cell = make("td", { class: "value" }, mark, number, make("span", { class: "unit" }, unit ? ` ${unit}` : ""));
  const row = { number, mark, line, spark, cell, past: [], time: 0 };
  if (property?.writable) cell.append(control(card, property, row));
  card.rows.append(make("tr", { "data-property": name }, make("th", { scope: "row" }, property?.title ?? name), make("td", { class: "trend" }, spark), cell));
  card.values.set(name, row);
  return row;
}

/** What writes a property: a switch for yes and no, a field for a number. */
function control(card, property, row) {
  const write = (value) => order(card.id, "properties", { [property.name]: value }, `${card.id}: ${property.title} = ${value === true ? "on" : value === false ? "off" : words(value)}`);
  if (property.kind === "boolean") {
    row.toggle = make("button", { type: "button", role: "switch", "aria-checked": "false", "aria-label": `${property.title} of ${card.id}` });
    row.toggle.addEventListener("click", () => busy(row.toggle, () => write(row.toggle.getAttribute("aria-checked") !== "true")));
    return make("span", {}, " ", row.toggle);
  }
  if (property.kind !== "integer" && property.kind !== "number") return "";
  const field = make("input", { type: "number", step: "any", "aria-label": `New ${property.title} of ${card.id}` });
  const button = make("button", { type: "button" }, "Set");
  button.addEventListener("click", () => field.value !== "" && busy(button, () => write(Number(field.value))));
  return make("span", {}, " ", field, " ", button);
}

/** What waits for a thing: what it is to have, and commands. Closed, it says how much. */
function newWaiting(thing) {
  const summary = make("summary");
  const state = make("p", { class: "sub" });
  const rows = make("tbody");
  const table = make("table", { class: "viewers shadow", "aria-label": `Shadow of ${thing.id}` },
    make("thead", {}, make("tr", {}, ...["Property", "Desired", "Reported"].map((name) => make("th", { scope: "col" }, name)))), rows);
  const commands = make("ul", { class: "waits", "aria-label": `Commands that wait for ${thing.id}` });
  const root = make("details", { class: "audience", hidden: true }, summary, state, table, commands);
  const waiting = { id: thing.id, root, summary, state, table, rows, commands };
  root.addEventListener("toggle", () => root.open && lookAtWaiting(waiting));
  return waiting;
}

function showWaiting({ waiting }, thing) {
  const { shadow_version: version, commands_waiting: commands } = thing;
  waiting.root.hidden = !version && !commands;
  const words = [version && `shadow, version ${version}`, commands && `${commands} ${commands === 1 ? "command waits" : "commands wait"}`];
  text(waiting.summary, words.filter(Boolean).join(" · "));
  if (waiting.root.open && !waiting.root.hidden) lookAtWaiting(waiting);
}

/** Asked for only while somebody looks. */
async function lookAtWaiting(waiting) {
  const path = `/api/v1/things/${encodeURIComponent(waiting.id)}`;
  const answers = await Promise.all([read(`${path}/shadow`), read(`${path}/commands`)]).catch(() => null);
  // Without an answer what was shown stays; it is asked again with the next round.
  if (!answers) return;
  const [shadow, commands] = answers;
  text(waiting.state, shadow.version ? `${STATES[shadow.state] ?? shadow.state}${shadow.error ? `: ${shadow.error}` : ""}` : "");
  waiting.table.hidden = !Object.keys(shadow.desired).length;
  waiting.rows.replaceChildren(...Object.entries(shadow.desired).map(([name, value]) => make("tr", { "data-desired": name },
    make("th", { scope: "row" }, name), make("td", {}, words(value)),
    make("td", {}, words(shadow.reported[name]), name in shadow.delta ? make("span", { class: "mark" }, "differs") : null))));
  // A button that somebody is on stays: only what changes is made anew.
  const key = commands.map((command) => command.id).join("\n");
  if (waiting.key !== key) {
    waiting.key = key;
    waiting.lefts = commands.map(() => make("span", { class: "unit" }));
    waiting.commands.replaceChildren(...commands.map((command, n) => waitingCommand(waiting, path, command, waiting.lefts[n])));
  }
  commands.forEach((command, n) => text(waiting.lefts[n], ` ${command.state === "sent" ? "sent, not answered yet" : `${span(command.left_seconds)} left`}${command.error ? ` (${command.error})` : ""} `));
}

function waitingCommand(waiting, path, command, left) {
  const { write, read: asked, invoke, input } = command.order;
  const does = write ? Object.entries(write).map(([name, value]) => `${name} = ${words(value)}`).join(", ") : asked ? `read ${asked.join(", ")}` : `${invoke}${input == null ? "" : ` ${words(input)}`}`;
  const back = make("button", { type: "button", class: "back", "aria-label": `Take back: ${does}` }, "Take back");
  back.addEventListener("click", () => busy(back, () => send("DELETE", `${path}/commands/${encodeURIComponent(command.id)}`, `${waiting.id}: ${does}`)));
  return make("li", {}, does, left, back);
}

async function busy(button, work) {
  button.disabled = true;
  try {
    await work();
  } finally {
    button.disabled = false;
  }
}

function draw(row) {
  if (row.past.length < 2) return;
  const low = Math.min(...row.past);
  const high = Math.max(...row.past);
  const height = high - low || 1;
  const y = (value) => (high === low ? 10 : 19 - ((value - low) / height) * 18);
  row.line.setAttribute("points", row.past.map((value, n) => `${((n + PAST_MAX - row.past.length) / (PAST_MAX - 1) * 100).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
  row.spark.removeAttribute("hidden");
}

function words(value) {
  if (value == null) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(8)));
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "string" ? value : JSON.stringify(value);
}
