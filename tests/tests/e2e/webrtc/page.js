// What the tests run inside a page: a WHEP player, a WHIP publisher, and what they measured.
window.peers ??= {};

function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((done) => {
    pc.addEventListener("icegatheringstatechange", () => pc.iceGatheringState === "complete" && done());
    setTimeout(done, 2000);
  });
}

async function talk(pc, url, key) {
  await pc.setLocalDescription(await pc.createOffer());
  await gathered(pc);
  const headers = { "Content-Type": "application/sdp" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(url, { method: "POST", headers, body: pc.localDescription.sdp });
  const body = await response.text();
  const peer = { status: response.status, answer: body, location: response.headers.get("Location"), etag: response.headers.get("ETag"), states: [] };
  pc.addEventListener("connectionstatechange", () => peer.states.push(pc.connectionState));
  if (response.status === 201) await pc.setRemoteDescription({ type: "answer", sdp: body });
  return peer;
}

window.whep = async (name, url, key) => {
  const pc = new RTCPeerConnection();
  pc.addTransceiver("video", { direction: "recvonly" });
  pc.addTransceiver("audio", { direction: "recvonly" });
  const video = document.createElement("video");
  video.muted = true;
  video.autoplay = true;
  video.playsInline = true;
  document.body.append(video);
  const stream = new MediaStream();
  video.srcObject = stream;
  const began = performance.now();
  let first = null;
  pc.addEventListener("track", ({ track }) => stream.addTrack(track));
  video.requestVideoFrameCallback(() => { first = performance.now() - began; });
  const peer = await talk(pc, url, key);
  window.peers[name] = Object.assign(peer, { pc, video, first: () => first });
};

window.whip = async (name, url, key, codec) => {
  const pc = new RTCPeerConnection();
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 360 }, audio: true });
  for (const track of media.getTracks()) {
    const sender = pc.addTransceiver(track, { direction: "sendonly" });
    if (track.kind === "video" && codec) {
      const all = RTCRtpSender.getCapabilities("video").codecs;
      sender.setCodecPreferences(all.filter((one) => one.mimeType === codec));
    }
  }
  const peer = await talk(pc, url, key);
  window.peers[name] = Object.assign(peer, { pc });
};

// Everything about a peer that can be told as JSON.
window.look = async (name) => {
  const peer = window.peers[name];
  if (!peer) return null;
  const seen = { status: peer.status, answer: peer.answer, location: peer.location, etag: peer.etag, states: peer.states, state: peer.pc.connectionState };
  if (peer.video) {
    seen.time = peer.video.currentTime;
    seen.width = peer.video.videoWidth;
    seen.first = peer.first();
  }
  for (const stat of (await peer.pc.getStats()).values()) {
    if (stat.type === "inbound-rtp" || stat.type === "outbound-rtp") {
      seen[stat.kind] = Object.fromEntries(Object.entries(stat).filter(([, value]) => typeof value === "number" || typeof value === "string"));
    }
    if (stat.type === "codec") (seen.codecs ??= []).push(`${stat.mimeType} ${stat.sdpFmtpLine ?? ""}`);
  }
  return seen;
};
