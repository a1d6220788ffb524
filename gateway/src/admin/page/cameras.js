// Cameras: a player each (HTTP-FLV through mpegts.js, or WebRTC) and how the stream runs.
import { bytes, make, rate, read, say, send, span, text } from "/app.js";
import { whep } from "/whep.js";

/** Cameras that play without being asked; the others wait for a click. */
const PLAY_MAX = 4;
/** A camera that has shown one track only this long has no other, ms: the player is told beforehand what comes. */
const TRACKS_WAIT = 2000;
const cards = new Map();

window.mpegts?.LoggingControl.applyConfig({ enableAll: false });

export function showCameras(streams, gateway) {
  const grid = document.getElementById("cameras");
  if (streams.length) grid.querySelector(":scope > .none")?.remove();
  const known = new Set(streams.map((stream) => stream.name));
  for (const [name, card] of cards) {
    if (!known.has(name)) {
      stop(card);
      card.root.remove();
      cards.delete(name);
    }
  }
  for (const stream of [...streams].sort((a, b) => a.name.localeCompare(b.name))) {
    const card = cards.get(stream.name) ?? newCard(grid, stream, gateway);
    show(card, stream);
  }
}

function newCard(grid, stream, gateway) {
  const video = make("video", { muted: true, playsinline: true, controls: true, "aria-label": `Picture of ${stream.name}` });
  video.muted = true;
  const over = make("div", { class: "over" });
  const dot = make("span", { class: "dot", role: "img" });
  const end = make("span", { class: "end" });
  const numbers = Object.fromEntries(["picture", "fps", "bit rate", "sound", "viewers", "sent"].map((name) => [name, make("dd", {}, "–")]));
  const address = url("http-flv", `${stream.name}.flv`, gateway);
  const playlist = url("hls", `${stream.name}/index.m3u8`, gateway);
  const root = make("article", { class: "card", "aria-label": stream.name, "data-stream": stream.name },
    make("div", { class: "head" }, dot, make("h3", {}, stream.name), end),
    make("div", { class: "frame" }, video, over),
    make("dl", { class: "nums" }, ...Object.entries(numbers).map(([name, value]) => make("div", {}, make("dt", {}, name), value))),
    ...[address, playlist].filter(Boolean).map((where) => make("p", { class: "sub" }, make("code", {}, where))),
    ...webrtc(stream.name, gateway),
    audience(stream.name));
  const card = { name: stream.name, root, video, over, dot, end, numbers, address, player: null, live_at: null, over_webrtc: false, wanted: cards.size < PLAY_MAX, retry: null };
  video.addEventListener("playing", () => { over.hidden = true; });
  root.querySelector(".webrtc")?.addEventListener("click", ({ target }) => {
    card.over_webrtc = !card.over_webrtc;
    target.textContent = card.over_webrtc ? "Play over HTTP-FLV" : "Play over WebRTC";
    clearTimeout(card.retry);
    Object.assign(card, { wanted: true, retry: null });
    stop(card);
    tell(card, "opening");
  });
  cards.set(stream.name, card);
  grid.append(root);
  return card;
}

/** Who watches: asked for only while the list is open. */
function audience(name) {
  const path = `/api/v1/streams/${encodeURIComponent(name)}/viewers`;
  const rows = make("tbody");
  const table = make("table", { class: "viewers" },
    make("thead", {}, make("tr", {}, ...["From", "As", "Since", "Sent", "Behind", ""].map((head) => make("th", { scope: "col" }, head)))), rows);
  const list = make("details", { class: "audience" }, make("summary", {}, "Viewers"), table);
  const row = (viewer) => {
    const close = make("button", { type: "button", "aria-label": `Close viewer ${viewer.id}` }, "Close");
    close.addEventListener("click", async () => {
      close.disabled = true;
      if (await send("DELETE", `${path}/${viewer.id}`, `Closing viewer ${viewer.id}`)) say(`Viewer ${viewer.id} of ${name} is closed`);
      show();
    });
    const since = span(Math.max(0, Date.now() / 1000 - viewer.since_us / 1e6));
    const cells = [viewer.peer ?? "–", viewer.container, since, bytes(viewer.bytes), `${viewer.lag_ms} ms`];
    return make("tr", { "data-viewer": viewer.id }, ...cells.map((cell) => make("td", {}, cell)), make("td", {}, close));
  };
  const show = async () => {
    try {
      const viewers = await read(path);
      rows.replaceChildren(...viewers.map(row));
      if (!viewers.length) rows.append(make("tr", {}, make("td", { colspan: 6, class: "none" }, "Nobody that is listed here.")));
    } catch {
      rows.replaceChildren();
    }
  };
  let timer = null;
  list.addEventListener("toggle", () => {
    clearInterval(timer);
    if (!list.open) return;
    show();
    timer = setInterval(() => (list.isConnected ? show() : clearInterval(timer)), 2000);
  });
  return list;
}

/** A page over https may only load media over https. */
function url(protocol, path, gateway) {
  const speaks = gateway.adapters.filter((a) => a.address && a.protocols.includes(protocol));
  const secure = speaks.find((a) => a.wire === "tls");
  const plain = speaks.find((a) => a.wire === "tcp");
  const adapter = location.protocol === "https:" ? secure : plain ?? secure;
  if (!adapter) return null;
  const port = adapter.address.slice(adapter.address.lastIndexOf(":") + 1);
  return `${adapter.wire === "tls" ? "https" : "http"}://${location.hostname}:${port}/${path}`;
}

/** The other way to watch, where this gateway has it: its address and a button. */
function webrtc(name, gateway) {
  if (!gateway.webrtc) return [];
  return [make("p", { class: "sub" }, make("code", {}, whepUrl(name)), " ", make("button", { type: "button", class: "webrtc" }, "Play over WebRTC"))];
}

function whepUrl(name) {
  return `${location.origin}/whep/${name}`;
}

function show(card, stream) {
  card.dot.classList.toggle("on", stream.live);
  card.dot.setAttribute("aria-label", stream.live ? "live" : "gone");
  text(card.end, stream.live ? `live for ${span(Math.max(0, Date.now() / 1000 - stream.since_us / 1e6))}` : "gone");
  text(card.numbers.picture, stream.video ? `${stream.video} ${stream.width}×${stream.height}` : "–");
  text(card.numbers.fps, stream.fps.toFixed(1));
  text(card.numbers["bit rate"], rate(stream.bits_per_second));
  const silent = card.over_webrtc && stream.audio && !["Opus", "G711A", "G711U"].includes(stream.audio);
  text(card.numbers.sound, silent ? `${stream.audio} (WebRTC cannot carry it)` : stream.audio ?? "none");
  text(card.numbers.viewers, String(stream.viewers));
  text(card.numbers.sent, bytes(stream.bytes_out));
  card.live_at = stream.live ? card.live_at ?? performance.now() : null;
  if (showsTracks(card, stream) && card.wanted && !card.player && !card.retry) play(card, stream);
  if (!card.wanted && !card.player) offer(card);
}

/** Both tracks are known, or no second one is to be expected. */
function showsTracks(card, stream) {
  if (!stream.live || !(stream.video || stream.audio)) return false;
  return Boolean(stream.video && stream.audio) || performance.now() - card.live_at > TRACKS_WAIT;
}

function offer(card) {
  if (card.over.querySelector("button")) return;
  const button = make("button", { type: "button", "aria-label": `Play ${card.name}` }, "Play");
  button.addEventListener("click", () => { card.wanted = true; tell(card, "opening"); });
  card.over.replaceChildren(button);
  card.over.hidden = false;
}

function tell(card, words) {
  card.over.replaceChildren(words);
  card.over.hidden = false;
}

async function play(card, stream) {
  if (!card.over_webrtc && !window.mpegts?.isSupported()) return tell(card, "This browser cannot play FLV.");
  if (!card.over_webrtc && !card.address) return tell(card, "No adapter speaks http-flv that this page may load from.");
  tell(card, "opening");
  // The stream may want a key; whoever may see this page gets an address that is good for some minutes.
  card.retry = true;
  const link = await send("POST", `/api/v1/streams/${encodeURIComponent(card.name)}/link`, card.name).catch(() => null);
  card.retry = null;
  if (!link || !card.root.isConnected) return undefined;
  if (card.over_webrtc) return playWebrtc(card, link.query);
  const source = { type: "flv", isLive: true, url: `${card.address}?${link.query}`, hasVideo: Boolean(stream.video), hasAudio: Boolean(stream.audio) };
  const config = { enableWorker: false, enableStashBuffer: false, lazyLoad: false, autoCleanupSourceBuffer: true, liveBufferLatencyChasing: true, liveBufferLatencyMaxLatency: 3, liveBufferLatencyMinRemain: 0.6 };
  const player = window.mpegts.createPlayer(source, config);
  card.player = player;
  const again = (words) => {
    if (card.player !== player) return;
    stop(card);
    tell(card, words);
    card.retry = setTimeout(() => { card.retry = null; }, 2000);
  };
  player.on(window.mpegts.Events.ERROR, () => again("interrupted, trying again"));
  player.on(window.mpegts.Events.LOADING_COMPLETE, () => again("ended, waiting for the camera"));
  player.attachMediaElement(card.video);
  player.load();
  // A browser may refuse to start even without sound: the player's own button is there then.
  Promise.resolve(player.play()).catch(() => { card.over.hidden = true; });
}

function playWebrtc(card, query) {
  const player = whep(card.video, `${whepUrl(card.name)}?${query}`, (words) => {
    if (card.player !== player) return;
    card.player = null;
    tell(card, words);
    card.retry = setTimeout(() => { card.retry = null; }, 2000);
  });
  card.player = player;
  card.video.play().catch(() => { card.over.hidden = true; });
}

function stop(card) {
  const player = card.player;
  card.player = null;
  try {
    player?.destroy();
  } catch {
    // It was never attached.
  }
}
