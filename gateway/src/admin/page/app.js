// The page: asks the API once a second how things stand, follows the live feed for what changes in between.
import { showThings, takeMessage } from "/things.js";
import { showCameras } from "/cameras.js";
import { showRecordings } from "/recordings.js";

const at = (id) => document.getElementById(id);
const CLASSES = ["control", "event", "live", "historical"];
const EVENTS_MAX = 40;
/** An answer that takes longer than this does not come, ms: what is asked once a second, and an order to a device. */
const ANSWER_MAX = 5000;
const ORDER_MAX = 30000;
/** The live feed says something every 10 s; one that is silent this long is dead, ms. */
const FEED_SILENCE_MAX = 25000;
let token = sessionStorage.getItem("token") ?? "";
let last = null;

export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "polyline", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export const bytes = (n) => (n < 1024 ? `${n} B` : n < 2 ** 20 ? `${(n / 1024).toFixed(1)} KiB` : n < 2 ** 30 ? `${(n / 2 ** 20).toFixed(1)} MiB` : `${(n / 2 ** 30).toFixed(2)} GiB`);
export const rate = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(0)} kbit/s` : `${(n / 1e6).toFixed(2)} Mbit/s`);
const count = (n) => n.toLocaleString("en");
const sum = (all) => all.reduce((a, b) => a + b, 0);

export function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

let saidTimer;
export function say(words) {
  at("said").textContent = words;
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => at("said").replaceChildren(), 5000);
}

// === the API ===

export const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** Asks, with the token; `options` makes those of one try (a time limit begins with it). */
export async function request(path, options = () => ({})) {
  const tried = options();
  const response = await fetch(path, { ...tried, headers: { ...tried.headers, ...authorization() }, cache: "no-store" });
  if (response.status === 401) {
    await askToken();
    return request(path, options);
  }
  return response;
}

/** The options of a request that changes something. */
const change = (method, body) => () => ({ method, headers: { "Content-Type": "application/json" }, body, signal: AbortSignal.timeout(ORDER_MAX) });

/** What is asked again and again: a line on which nothing comes back must not end the asking. */
export async function read(path) {
  const response = await request(path, () => ({ signal: AbortSignal.timeout(ANSWER_MAX) }));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/** Sends an order to a thing and says how it ended. */
export async function order(thing, path, body, words) {
  const input = body === undefined ? "" : JSON.stringify(body);
  const response = await request(`/api/v1/things/${encodeURIComponent(thing)}/${path}`, change("POST", input));
  const answer = await response.json();
  say(response.ok ? `${words}: done in ${answer.took_ms} ms` : `${words}: ${answer.detail}`);
  return response.ok;
}

/** Sends a request that changes something; the answer, or null when it was refused (and said so). */
export async function send(method, path, words) {
  const response = await request(path, change(method));
  const answer = response.status === 204 ? {} : await response.json();
  if (!response.ok) {
    say(`${words}: ${answer.detail}`);
    return null;
  }
  return answer;
}

let asking;
function askToken() {
  asking ??= new Promise((resolve) => {
    const dialog = at("ask");
    dialog.addEventListener("close", () => {
      token = at("token").value;
      sessionStorage.setItem("token", token);
      asking = undefined;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// === once a second ===

async function look() {
  try {
    const [gateway, things, streams, upstreams, store] = await Promise.all(
      ["gateway", "things", "streams", "upstreams", "store"].map((part) => read(`/api/v1/${part}`)));
    showThings(things);
    showCameras(streams, gateway);
    showHead(gateway, things, store);
    showPicture(gateway, things, streams, upstreams, store);
    showUpstreams(upstreams, gateway);
    showStore(store);
    showDoors(gateway);
    await showRecordings(streams);
    answers(true);
  } catch (error) {
    console.warn(error);
    answers(false);
  }
  setTimeout(look, document.hidden ? 5000 : 1000);
}

/** What the pill says: how the live feed is, unless the questions find no answer. */
const link = { answers: true, feed: ["wait", "connecting"] };

function answers(well) {
  link.answers = well;
  showLink();
}

function feed(kind, words) {
  link.feed = [kind, words];
  showLink();
}

function showLink() {
  const [kind, words] = link.answers ? link.feed : ["bad", "gateway does not answer"];
  at("link").className = `pill ${kind}`;
  text(at("link"), words);
}

function showHead(gateway, things, store) {
  const now = performance.now();
  const messages = sum(store.durable);
  const perSecond = last && now > last.now ? Math.max(0, (messages - last.messages) / ((now - last.now) / 1000)) : 0;
  last = { now, messages, perSecond: last ? last.perSecond * 0.7 + perSecond * 0.3 : perSecond };
  document.title = `${gateway.id} · Sluicegate`;
  text(at("gateway"), gateway.id);
  text(at("version"), gateway.version);
  text(at("uptime"), span(gateway.uptime_seconds));
  text(at("online"), `${things.filter((thing) => thing.online).length} of ${things.length}`);
  text(at("messages"), count(messages));
  text(at("rate"), last.perSecond.toFixed(1));
}

const port = (adapter) => adapter.address?.slice(adapter.address.lastIndexOf(":") + 1) ?? adapter.wire;

function showPicture(gateway, things, streams, upstreams, store) {
  const media = (adapter) => adapter.protocols.some((p) => p === "rtmp" || p === "http-flv" || p === "hls");
  const devices = things.filter((thing) => !thing.stream);
  const live = streams.filter((stream) => stream.live);
  const viewers = sum(streams.map((stream) => stream.viewers));
  const up = upstreams.filter((upstream) => upstream.connected);
  const backlog = sum(upstreams.map((upstream) => sum(upstream.backlog)));
  text(at("pic-devices"), `${devices.filter((thing) => thing.online).length} online of ${devices.length}`);
  text(at("pic-doors"), [...new Set(gateway.adapters.filter((a) => !media(a)).flatMap((a) => a.protocols))].slice(0, 4).join(", "));
  text(at("pic-cameras"), `${live.length} live`);
  text(at("pic-media"), gateway.adapters.filter(media).map((a) => `${a.protocols.join(", ")} ${port(a)}`).join(" · "));
  text(at("pic-models"), `${new Set(things.map((thing) => thing.model)).size} models in use`);
  text(at("pic-store"), `${count(sum(store.durable))} messages`);
  text(at("pic-durable"), store.buffered_bytes ? `${bytes(store.buffered_bytes)} on their way` : "all on disk");
  text(at("pic-streams"), live.length ? `${rate(sum(live.map((s) => s.bits_per_second)))} in` : "no stream");
  text(at("pic-threads"), [...new Set(live.map((s) => s.thread))].join(", ") || "pinned threads");
  text(at("pic-upstream"), upstreams.length ? `${up.length} of ${upstreams.length} connected` : "none configured");
  text(at("pic-backlog"), backlog ? `${count(backlog)} waiting` : "nothing waiting");
  text(at("pic-viewers"), `${viewers} watching`);
  text(at("pic-relays"), `${sum(streams.map((s) => s.relays.length))} relays`);
  const moves = { devices: devices.some((t) => t.online), orders: devices.some((t) => t.online), bus: last.perSecond > 0, upstream: up.length > 0, down: up.length > 0, cameras: live.length > 0, viewers: viewers > 0, state: live.length > 0 };
  for (const [name, moving] of Object.entries(moves)) at(`flow-${name}`).classList.toggle("still", !moving);
}

function showUpstreams(upstreams, gateway) {
  const cards = upstreams.map((upstream) => make("div", { class: "card" },
    make("div", { class: "head" }, make("span", { class: `dot ${upstream.connected ? "on" : ""}`, role: "img", "aria-label": upstream.connected ? "connected" : "not connected" }), make("h3", {}, upstream.name), make("span", { class: "end" }, upstream.dialect)),
    make("p", { class: "sub" }, make("code", {}, upstream.url)),
    upstream.error && !upstream.connected ? make("p", { class: "error" }, upstream.error) : null,
    make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Class"), make("th", { scope: "col", class: "num" }, "Waiting"), make("th", { scope: "col", class: "num" }, "Acknowledged through"))),
      make("tbody", {}, ...CLASSES.map((name, n) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "num" }, count(upstream.backlog[n])), make("td", { class: "num" }, count(upstream.acked[n])))))),
    gateway.consumer ? make("p", { class: "sub" }, `The reference consumer at its other end has ${count(gateway.consumer.messages)} messages, ${count(gateway.consumer.missing)} missing, ${count(gateway.consumer.duplicates)} repeated and left out.`) : null));
  at("upstreams").replaceChildren(...(cards.length ? cards : [make("p", { class: "card none" }, "None configured: messages are kept until one is.")]));
}

function showStore(store) {
  const part = store.bytes_max ? Math.min(1, store.bytes / store.bytes_max) : 0;
  const fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  at("store").replaceChildren(
    make("div", { class: "head" }, make("h3", {}, `${bytes(store.bytes)} of ${bytes(store.bytes_max)}`), make("span", { class: "end" }, `epoch ${store.epoch}`)),
    make("div", { class: "bar" }, make("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", role: "img", "aria-label": `${(part * 100).toFixed(1)} % used` }, make("rect", { width: Math.max(0.5, part * 100), height: 1 }))),
    make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Class"), make("th", { scope: "col", class: "num" }, "Oldest kept"), make("th", { scope: "col", class: "num" }, "On disk through"))),
      make("tbody", {}, ...CLASSES.map((name, n) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "num" }, count(store.oldest[n])), make("td", { class: "num" }, count(store.durable[n])))))),
    make("dl", { class: "nums" }, fact("segments", count(store.segments)), fact("segments given up", count(store.evicted)), fact("damaged", count(store.corrupt)), fact("failed writes", count(store.failures))));
}

function showDoors(gateway) {
  at("doors").tBodies[0].replaceChildren(...gateway.adapters.map((adapter) => make("tr", {},
    make("th", { scope: "row" }, adapter.name), make("td", {}, adapter.protocols.join(", ")), make("td", {}, make("code", {}, adapter.address ? `${adapter.wire} ${adapter.address}` : adapter.wire)))));
}

// === the live feed ===

async function follow(pause = 1000) {
  let silence = null;
  const heard = (line) => {
    clearTimeout(silence);
    silence = setTimeout(() => line.abort(), FEED_SILENCE_MAX);
  };
  try {
    let line;
    const response = await request("/api/v1/live", () => {
      line = new AbortController();
      heard(line);
      return { signal: line.signal };
    });
    if (!response.ok) throw new Error(`live feed: ${response.status}`);
    feed("good", "live");
    pause = 1000;
    await events(response.body.pipeThrough(new TextDecoderStream()).getReader(), () => heard(line), take);
  } catch {
    // What went wrong shows in the pill; the next try comes.
  }
  clearTimeout(silence);
  feed("wait", "connecting again");
  setTimeout(() => follow(Math.min(pause * 2, 10000)), pause);
}

/** Reads server-sent events until the stream ends; `heard` is told of every piece, comments included. */
async function events(reader, heard, each) {
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const field = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
      const data = field("data");
      if (data) each(field("event"), JSON.parse(data));
    }
  }
}

function take(kind, data) {
  if (kind === "missed") return say(`this page was too slow: ${data} messages not shown`);
  for (const message of data) {
    takeMessage(message);
    note(message);
  }
}

function note(message) {
  const { event, presence, reply, gap } = message;
  if (!event && !presence && !reply && !gap) return;
  const [kind, words] = event ? [event.level, `${event.name} ${event.data == null ? "" : JSON.stringify(event.data)}`]
    : presence ? [presence.online ? "" : "warn", `${presence.online ? "online" : "offline"} (${presence.reason})`]
    : reply ? [reply.error ? "error" : "", reply.error ?? `answered ${JSON.stringify(reply.value)}`]
    : ["error", `${gap.last - gap.first + 1} messages given up: ${gap.reason}`];
  const list = at("events");
  list.querySelector(".none")?.remove();
  list.prepend(make("li", {}, make("time", { datetime: message.time }, new Date(message.time).toLocaleTimeString("en-GB")), make("b", {}, message.thing || "gateway"), make("span", { class: kind }, words)));
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
}

look();
follow();
