"""An RTMP player that stalls: rtmp_chunks.py PORT APP NAME STALL_SECONDS READ_SECONDS

Reads a stream as Adobe's RTMP 1.0 describes it (5.3: chunks, 7: commands) with nothing but the standard library, stops
reading for a while, reads on, and holds every chunk and message to the rules. Prints what it saw as one JSON line; what is
against the rules ends it with a message.
"""
import json
import socket
import struct
import sys
import time

AUDIO, VIDEO, COMMAND = 8, 9, 20


def need(holds, words):
    if not holds:
        raise SystemExit(words)


class Reader:
    def __init__(self, connection):
        self.connection, self.buffer, self.chunk, self.streams = connection, bytearray(), 128, {}

    def take(self, count):
        while len(self.buffer) < count:
            more = self.connection.recv(65536)
            need(more, "the connection ended")
            self.buffer += more
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def message(self):
        """Type, time, message stream and body of the next message that is whole."""
        while True:
            first = self.take(1)[0]
            form, number = first >> 6, first & 63
            if number < 2:
                number = 64 + int.from_bytes(self.take(number + 1), "little")
            state = self.streams.setdefault(number, {"body": None, "extended": False, "delta": 0})
            begins = state["body"] is None
            need(begins or form == 3, f"a header of form {form} within a message")
            need(form == 0 or "time" in state, f"chunk stream {number} begins with form {form}")
            field = None
            if form < 3:
                field = int.from_bytes(self.take(3), "big")
                state["extended"] = field == 0xFFFFFF
            if form < 2:
                head = self.take(4)
                state["length"], state["type"] = int.from_bytes(head[:3], "big"), head[3]
                need(state["type"] in (1, 2, 3, 4, 5, 6, AUDIO, VIDEO, 18, COMMAND), f"a message of type {state['type']}")
                need(state["length"] < 1 << 22, f"a message of {state['length']} bytes")
            if form == 0:
                state["stream"] = int.from_bytes(self.take(4), "little")
            if state["extended"]:
                field = int.from_bytes(self.take(4), "big")
            if begins:
                if form == 0:
                    state["time"] = field
                else:
                    state["delta"] = state["delta"] if form == 3 else field
                    state["time"] = (state["time"] + state["delta"]) & 0xFFFFFFFF
                state["body"] = bytearray()
            state["body"] += self.take(min(self.chunk, state["length"] - len(state["body"])))
            if len(state["body"]) == state["length"]:
                body, state["body"] = bytes(state["body"]), None
                if state["type"] == 1:
                    self.chunk = int.from_bytes(body, "big")
                    continue
                return state["type"], state["time"], state["stream"], body


def text(words):
    return struct.pack(">BH", 2, len(words)) + words.encode()


def number(value):
    return struct.pack(">Bd", 0, value)


def say(connection, kind, stream, body):
    head = struct.pack(">B", 3) + bytes(3) + len(body).to_bytes(3, "big") + bytes([kind]) + struct.pack("<I", stream)
    pieces = [body[at:at + 128] for at in range(0, len(body), 128)]
    connection.sendall(head + b"\xc3".join(pieces))


def play(port, app, name):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    connection.connect(("127.0.0.1", port))
    connection.settimeout(20)
    connection.sendall(b"\x03" + bytes(8) + bytes(range(256)) * 5 + bytes(248))
    reader = Reader(connection)
    need(reader.take(1) == b"\x03", "not RTMP")
    connection.sendall(reader.take(1536))
    reader.take(1536)
    members = b"".join(struct.pack(">H", len(key)) + key.encode() + text(value) for key, value in
                       (("app", app), ("tcUrl", f"rtmp://127.0.0.1:{port}/{app}")))
    say(connection, COMMAND, 0, text("connect") + number(1) + b"\x03" + members + b"\x00\x00\x09")
    say(connection, COMMAND, 0, text("createStream") + number(2) + b"\x05")
    stream = None
    while stream is None:
        kind, _, _, body = reader.message()
        if kind == COMMAND and body.startswith(text("_result") + number(2)):
            stream = int(struct.unpack(">d", body[-8:])[0])
    say(connection, COMMAND, stream, text("play") + number(0) + b"\x05" + text(name))
    return reader, stream


def frame(body):
    """Whether decoding can start at this H.264 frame; `None` for what is no frame. Its NAL units fill it (14496-15)."""
    need(body[0] & 15 == 7 and len(body) >= 5, f"a video message that begins with {body[:5].hex()}")
    if body[1] != 1:
        return None
    at, units = 5, 0
    while at < len(body):
        at, units = at + 4 + int.from_bytes(body[at:at + 4], "big"), units + 1
    need(at == len(body) and units, "NAL units that do not fill their frame")
    return body[0] >> 4 == 1


def main():
    port, app, name, stall, read = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5])
    reader, stream = play(port, app, name)
    began, stalled, last, step = time.monotonic(), False, {}, None
    seen = {"video": 0, "audio": 0, "keys": 0, "gaps": 0, "configs": 0}
    while time.monotonic() < began + stall + read:
        if not stalled and time.monotonic() > began + read / 2:
            time.sleep(stall)
            stalled = True
        kind, at, on, body = reader.message()
        if kind not in (AUDIO, VIDEO) or not body:
            continue
        need(on == stream, f"media on message stream {on}")
        need(at >= last.get(kind, 0), f"time goes from {last.get(kind)} back to {at} in messages of type {kind}")
        key = frame(body) if kind == VIDEO else False
        if key is None or kind == AUDIO and body[0] >> 4 == 10 and body[1] == 0:
            seen["configs"] += 1
            continue
        if kind == AUDIO:
            seen["audio"] += 1
        else:
            gap = kind in last and step is not None and at - last[kind] > 3 * step
            need(key or not gap and seen["video"], f"what is shown at {at} ms begins with no key frame")
            seen["gaps"] += gap
            seen["keys"] += key
            seen["video"] += 1
            if kind in last and step is None:
                step = max(1, at - last[kind])
        last[kind] = at
    print(json.dumps(seen))


main()
