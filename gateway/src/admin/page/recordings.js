// Recordings: what is on disk, newest first, with a player (MP4 by the browser itself, FLV through mpegts.js).
import { authorization, bytes, make, read, request, say, span } from "/app.js";

const SHOWN_MAX = 30;
let player = null;
let shown = "";

export async function showRecordings(streams) {
  const section = document.getElementById("recordings-section");
  if (section.hidden && !streams.some((stream) => stream.records.length)) return;
  section.hidden = false;
  const list = await read(`/api/v1/recordings?count=${SHOWN_MAX}`);
  const state = JSON.stringify(list);
  if (state === shown) return;
  shown = state;
  const row = (recording) => make("tr", {},
    make("th", { scope: "row" }, recording.stream),
    make("td", {}, new Date(recording.start_us / 1000).toLocaleString("en-GB")),
    make("td", { class: "num" }, span(recording.duration_ms / 1000)),
    make("td", { class: "num" }, bytes(recording.bytes)),
    make("td", {}, recording.open ? "recording" : recording.rule),
    make("td", {}, button("Play", recording, play), recording.open ? null : button("Download", recording, download)));
  document.getElementById("recordings").tBodies[0].replaceChildren(...list.map(row));
}

function button(words, recording, action) {
  const button = make("button", { type: "button", "aria-label": `${words} recording ${recording.id}` }, words);
  button.addEventListener("click", () => action(recording));
  return button;
}

const path = (recording) => `/api/v1/recordings/${recording.id}`;

async function fetched(recording) {
  const response = await request(path(recording));
  if (!response.ok) throw new Error(`recording ${recording.id}: ${response.status}`);
  return URL.createObjectURL(await response.blob());
}

async function play(recording) {
  const video = document.getElementById("recording-player");
  player?.destroy();
  player = null;
  video.hidden = false;
  try {
    if (recording.format === "mp4") {
      // Only a browser that need not show a key can ask for ranges by itself.
      video.src = Object.keys(authorization()).length ? await fetched(recording) : path(recording);
    } else {
      player = window.mpegts.createPlayer({ type: "flv", isLive: false, url: path(recording) }, { enableWorker: false, headers: authorization() });
      player.attachMediaElement(video);
      player.load();
    }
    await video.play();
  } catch (error) {
    say(`it does not play: ${error.message}`);
  }
}

async function download(recording) {
  const link = make("a", { href: await fetched(recording), download: `${recording.stream.replaceAll("/", "_")}-${recording.id}.${recording.format}` });
  link.click();
}
