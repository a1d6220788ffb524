// A player over WebRTC: one WHEP session in one video element.

/** Time to look for addresses before the offer goes out as it is, ms. */
const GATHER_MAX = 1000;
/** An answer that takes longer does not come, ms. */
const ANSWER_MAX = 10000;

/** Plays `url`; `ended` is told why it is over. Answers with what ends it. */
export function whep(video, url, ended) {
  const connection = new RTCPeerConnection();
  const stream = new MediaStream();
  let session = null;
  let over = false;
  const stop = () => {
    over = true;
    connection.close();
    video.srcObject = null;
    if (session) fetch(session, { method: "DELETE", keepalive: true }).catch(() => {});
  };
  const fail = (words) => {
    if (over) return;
    stop();
    ended(words);
  };
  for (const kind of ["video", "audio"]) connection.addTransceiver(kind, { direction: "recvonly" });
  connection.addEventListener("track", ({ track }) => stream.addTrack(track));
  connection.addEventListener("connectionstatechange", () => {
    if (["failed", "disconnected", "closed"].includes(connection.connectionState)) fail("interrupted, trying again");
  });
  video.srcObject = stream;
  negotiate(connection, url).then((at) => {
    session = at;
    if (over) stop();
  }, (error) => fail(error.message));
  return { destroy: stop };
}

async function negotiate(connection, url) {
  await connection.setLocalDescription(await connection.createOffer());
  await gathered(connection);
  const response = await fetch(url, { method: "POST", headers: { "Content-Type": "application/sdp" }, body: connection.localDescription.sdp, signal: AbortSignal.timeout(ANSWER_MAX) });
  if (response.status !== 201) {
    const problem = await response.json().catch(() => null);
    throw new Error(problem?.detail ?? `refused with ${response.status}`);
  }
  await connection.setRemoteDescription({ type: "answer", sdp: await response.text() });
  return new URL(response.headers.get("Location"), url);
}

function gathered(connection) {
  return new Promise((done) => {
    if (connection.iceGatheringState === "complete") done();
    connection.addEventListener("icegatheringstatechange", () => connection.iceGatheringState === "complete" && done());
    setTimeout(done, GATHER_MAX);
  });
}
