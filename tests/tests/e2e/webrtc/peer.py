"""A WebRTC peer on aiortc: peer.py watch|publish URL COUNT SECONDS [--blind]

Starts COUNT sessions of a WHEP or WHIP URL, each SECONDS long, and prints what they saw as one JSON line. `--blind`: the
frames are counted and not decoded, for load. Prints "connected" once all sessions are.
"""
import asyncio
import json
import sys
import time
import urllib.error
import urllib.request

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, rtcrtpreceiver
from aiortc.contrib.media import MediaPlayer
from aiortc.mediastreams import MediaStreamError


def post(url, sdp):
    request = urllib.request.Request(url, sdp.encode(), {"Content-Type": "application/sdp"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def blind(loop, input_q, output_q, *more):
    """In the place of aiortc's decoder: takes the frames and drops them."""
    while input_q.get() is not None:
        blind.frames += 1


blind.frames = 0


async def negotiate(connection, url):
    await connection.setLocalDescription(await connection.createOffer())
    status, body = await asyncio.to_thread(post, url, connection.localDescription.sdp)
    if status != 201:
        raise SystemExit(f"{status}: {body}")
    connected = asyncio.Event()
    connection.on("connectionstatechange", lambda: connection.connectionState == "connected" and connected.set())
    await connection.setRemoteDescription(RTCSessionDescription(body, "answer"))
    # A line that was rejected is never connected, and with it never the whole.
    if connection.connectionState != "connected" and "m=audio 0 " not in body:
        await asyncio.wait_for(connected.wait(), 20)


async def count(track, seen):
    began = time.monotonic()
    try:
        while True:
            frame = await track.recv()
            seen.setdefault("first_seconds", time.monotonic() - began)
            seen[track.kind] = seen.get(track.kind, 0) + 1
            if track.kind == "video":
                seen["width"], seen["height"] = frame.width, frame.height
    except MediaStreamError:
        pass


async def main():
    role, url, sessions, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if "--blind" in sys.argv:
        rtcrtpreceiver.decoder_worker = blind
    connections, seen, tasks = [], [], []
    for _ in range(sessions):
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connections.append(connection)
        seen.append({})
        if role == "watch":
            for kind in ("video", "audio"):
                connection.addTransceiver(kind, direction="recvonly")
            connection.on("track", lambda track, mine=seen[-1]: tasks.append(asyncio.ensure_future(count(track, mine))))
        else:
            media = MediaPlayer("testsrc2=size=320x240:rate=25", format="lavfi")
            connection.addTrack(media.video)
            transceiver = connection.getTransceivers()[0]
            from aiortc import RTCRtpSender
            codecs = RTCRtpSender.getCapabilities("video").codecs
            transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "video/H264"])
        await negotiate(connection, url)
    print("connected", flush=True)
    blind.frames = 0
    await asyncio.sleep(seconds)
    print(json.dumps({"sessions": seen, "blind": blind.frames}), flush=True)
    await asyncio.gather(*(connection.close() for connection in connections))


asyncio.run(main())
