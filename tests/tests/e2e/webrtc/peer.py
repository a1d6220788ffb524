"""A WebRTC peer on aiortc: peer.py watch|publish|h265 URL COUNT SECONDS [--blind] [--rtp PORT]

Starts COUNT sessions of a WHEP or WHIP URL, each SECONDS long, and prints what they saw as one JSON line. `--blind`: the
frames are counted and not decoded, for load. Prints "connected" once all sessions are. `h265` publishes what comes to the
UDP port as RTP (RFC 7798), payload by payload: aiortc has no H.265 of its own.
"""
import asyncio
import collections
import json
import socket
import sys
import time
import urllib.error
import urllib.request

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription, codecs
from aiortc import rtcrtpreceiver, rtcrtpsender
from aiortc.contrib.media import MediaPlayer
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtcpFeedback, RTCRtpCodecParameters


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


Payloads = collections.namedtuple("Payloads", "payloads timestamp")


class Relayed(MediaStreamTrack):
    """The payloads of an RTP sender, access unit by access unit."""

    kind = "video"

    def __init__(self, port):
        super().__init__()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("127.0.0.1", port))

    async def recv(self):
        payloads = []
        while True:
            packet = await asyncio.to_thread(self.socket.recv, 2048)
            payloads.append(packet[12 + 4 * (packet[0] & 15):])
            if packet[1] & 0x80:
                return Payloads(payloads, int.from_bytes(packet[4:8], "big"))


class Untouched:
    """In the place of an encoder."""

    target_bitrate = 0

    def pack(self, packet):
        return packet.payloads, packet.timestamp


def know_h265():
    feedback = [RTCRtcpFeedback(type="nack"), RTCRtcpFeedback(type="nack", parameter="pli")]
    h265 = RTCRtpCodecParameters(mimeType="video/H265", clockRate=90000, payloadType=120, rtcpFeedback=feedback)
    codecs.CODECS["video"].append(h265)
    rtcrtpsender.get_encoder = lambda codec: Untouched()


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
        elif role == "h265":
            know_h265()
            connection.addTrack(Relayed(int(sys.argv[sys.argv.index("--rtp") + 1])))
            known = rtcrtpsender.RTCRtpSender.getCapabilities("video").codecs
            connection.getTransceivers()[0].setCodecPreferences([one for one in known if one.mimeType == "video/H265"])
        else:
            media = MediaPlayer("testsrc2=size=320x240:rate=25", format="lavfi")
            connection.addTrack(media.video)
            transceiver = connection.getTransceivers()[0]
            known = rtcrtpsender.RTCRtpSender.getCapabilities("video").codecs
            transceiver.setCodecPreferences([codec for codec in known if codec.mimeType == "video/H264"])
        await negotiate(connection, url)
    print("connected", flush=True)
    blind.frames = 0
    await asyncio.sleep(seconds)
    print(json.dumps({"sessions": seen, "blind": blind.frames}), flush=True)
    await asyncio.gather(*(connection.close() for connection in connections))


asyncio.run(main())
