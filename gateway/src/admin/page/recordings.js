// Recordings: what is on disk, newest first, with a player (MP4 by the browser itself, FLV through mpegts.js).
import { authorization, bytes, make, read, say, send, span } from "/app.js";

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

/** The address that needs no token for a time: a video element asks for ranges by itself, and cannot show one. */
async function address(recording) {
  if (!Object.keys(authorization()).length) return path(recording);
  const link = await send("POST", `${path(recording)}/link`, `recording ${recording.id}`);
  if (!link) throw new Error("it may not be played");
  return `${path(recording)}?${link.query}`;
}

async function play(recording) {
  const video = document.getElementById("recording-player");
  player?.destroy();
  player = null;
  video.hidden = false;
  try {
    if (recording.format === "mp4") {
      video.src = await address(recording);
    } else {
      player = window.mpegts.createPlayer({ type: "flv", isLive: false, url: await address(recording) }, { enableWorker: false });
      player.attachMediaElement(video);
      player.load();
    }
    await video.play();
  } catch (error) {
    say(`it does not play: ${error.message}`);
  }
}

async function download(recording) {
  const link = make("a", { href: await address(recording), download: `${recording.stream.replaceAll("/", "_")}-${recording.id}.${recording.format}` });
  link.click();
}
