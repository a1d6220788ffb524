"""librdkafka's mock cluster: real brokers on loopback, as far as a producer and a consumer can tell, in memory.

Prints its brokers, HOST:PORT with commas between, and then does what it reads, a line each, and says `ok`:

    create TOPIC PARTITIONS     makes a topic; one that is asked for makes itself, with four partitions
    down BROKER, up BROKER      a broker vanishes, and comes back with what it kept
    leader TOPIC PARTITION BROKER
    refuse CODE COUNT           the next produce requests are answered by this error
    without TOPIC               asked for the topic, the brokers say that there is none; `with TOPIC`: no more

With --tls CERT KEY CA every broker is behind TLS, and shows itself to those alone who have a certificate of CA. With
--sasl MECHANISM NAME PASSWORD each lets in those alone who prove to know the password, by PLAIN (RFC 4616) or by
SCRAM-SHA-256 or SCRAM-SHA-512 (RFC 5802, RFC 7677) in Kafka's SaslHandshake and SaslAuthenticate (KIP-152). What is
printed then are those doors, and the brokers' answers name them.
"""

import base64
import ctypes
import hashlib
import hmac
import os
import re
import socket
import ssl
import struct
import sys
import threading

PRODUCE, UNKNOWN_TOPIC = 0, 3
lib = ctypes.CDLL("librdkafka.so.1")
handle, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int


def bind(name, result, *arguments):
    function = getattr(lib, f"rd_kafka_{name}")
    function.restype, function.argtypes = result, arguments
    return function


new = bind("new", handle, number, handle, text, ctypes.c_size_t)
cluster_new = bind("mock_cluster_new", handle, handle, number)
bootstraps = bind("mock_cluster_bootstraps", text, handle)
create = bind("mock_topic_create", number, handle, text, number, number)
topic_error = bind("mock_topic_set_error", None, handle, text, number)
set_leader = bind("mock_partition_set_leader", number, handle, text, ctypes.c_int32, ctypes.c_int32)
set_down = bind("mock_broker_set_down", number, handle, ctypes.c_int32)
set_up = bind("mock_broker_set_up", number, handle, ctypes.c_int32)
errors = bind(
    "mock_push_request_errors_array", None, handle, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)
)


class Door:
    """What stands before one broker; `enter` makes a talk of a connection, and lets nobody else in."""

    def __init__(self, port, enter, ports):
        self.port, self.enter, self.ports = port, enter, ports
        self.listener = socket.create_server(("127.0.0.1", 0))
        ports[port] = self.listener.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            threading.Thread(target=self.serve, args=(self.listener.accept()[0],), daemon=True).start()

    def serve(self, plain):
        broker = socket.create_connection(("127.0.0.1", self.port))
        try:
            client = self.enter(plain, broker)
        except (OSError, ValueError):
            plain.close()
            broker.close()
            return
        threading.Thread(target=self.copy, args=(client, broker, bytes), daemon=True).start()
        self.copy(broker, client, self.named)

    def named(self, answer):
        """Of the same length: an address in an answer is `127.0.0.1` with its length before and the port behind."""
        for port, door in self.ports.items():
            address = b"\x00\x09127.0.0.1"
            answer = answer.replace(address + struct.pack(">i", port), address + struct.pack(">i", door))
        return answer

    @staticmethod
    def copy(source, sink, change):
        try:
            while head := exactly(source, 4):
                sink.sendall(head + change(exactly(source, struct.unpack(">i", head)[0])))
        except OSError:
            pass
        source.close()
        sink.close()


class Sasl:
    """The broker's side of the proof; what comes before it is answered by the broker itself."""

    API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
    UNSUPPORTED, FAILED = 33, 58

    def __init__(self, mechanism, name, password):
        self.mechanism, self.name, self.password = mechanism, name, password.encode()
        self.hash = mechanism[-3:] if mechanism.startswith("SCRAM") else None

    def enter(self, client, broker):
        steps = self.steps()
        next(steps)
        while True:
            request = self.frame(client)
            key, version, number, length = struct.unpack(">hhih", request[:10])
            body = request[10 + max(length, 0) :]
            if key == self.API_VERSIONS:
                broker.sendall(struct.pack(">i", len(request)) + request)
                answer = self.offered(self.frame(broker), version)
            elif key == self.HANDSHAKE:
                wanted = body[2:].decode()
                named = struct.pack(">ih", 1, len(self.mechanism)) + self.mechanism.encode()
                answer = struct.pack(">ih", number, 0 if wanted == self.mechanism else self.UNSUPPORTED) + named
            elif key == self.AUTHENTICATE:
                try:
                    said, done = steps.send(body[4:])
                except ValueError:
                    self.say(client, struct.pack(">ihhi", number, self.FAILED, -1, 0))
                    raise
                answer = struct.pack(">ihhi", number, 0, -1, len(said)) + said
            else:
                raise ValueError("not before it is known who asks")
            self.say(client, answer)
            if key == self.AUTHENTICATE and done:
                return client

    def offered(self, answer, version):
        """The list of what the broker understands, with what this door does."""
        number, failed = struct.unpack(">ih", answer[:6])
        if failed:
            return answer
        more = [(self.HANDSHAKE, 0, 1), (self.AUTHENTICATE, 0, 0)]
        if version < 3:
            count = struct.unpack(">i", answer[6:10])[0]
            own = b"".join(struct.pack(">hhh", *one) for one in more)
            return answer[:6] + struct.pack(">i", count + len(more)) + own + answer[10:]
        # A compact array: its length and one more, in one byte while that is below 128.
        own = b"".join(struct.pack(">hhhb", *one, 0) for one in more)
        return answer[:6] + bytes([answer[6] + len(more)]) + own + answer[7:]

    def steps(self):
        """Takes what the client says, and gives what is answered and whether that was the last."""
        first = yield
        if self.hash is None:
            self.check(first.split(b"\0")[1:] == [self.name.encode(), self.password])
            yield b"", True
        bare = first.decode().removeprefix("n,,")
        told = dict(part.split("=", 1) for part in bare.split(","))
        self.check(told["n"].replace("=2C", ",").replace("=3D", "=") == self.name)
        salt, nonce = os.urandom(16), told["r"] + base64.b64encode(os.urandom(15)).decode()
        challenge = f"r={nonce},s={base64.b64encode(salt).decode()},i=4096"
        final = (yield challenge.encode(), False).decode()
        told = dict(part.split("=", 1) for part in final.split(","))
        # Kafka's brokers look at the end alone, and librdkafka before 2.2 says its own part twice.
        self.check(told["r"].endswith(nonce) and told["c"] == "biws")
        salted = hashlib.pbkdf2_hmac("sha" + self.hash, self.password, salt, 4096)
        talk = f"{bare},{challenge},{final.rsplit(',p=', 1)[0]}".encode()
        stored = hashlib.new("sha" + self.hash, self.mac(salted, b"Client Key")).digest()
        proof = zip(base64.b64decode(told["p"]), self.mac(stored, talk), strict=True)
        self.check(hashlib.new("sha" + self.hash, bytes(a ^ b for a, b in proof)).digest() == stored)
        yield b"v=" + base64.b64encode(self.mac(self.mac(salted, b"Server Key"), talk)), True

    def mac(self, key, text):
        return hmac.digest(key, text, "sha" + self.hash)

    @staticmethod
    def check(well):
        if not well:
            raise ValueError("who is it?")

    @staticmethod
    def frame(source):
        frame = exactly(source, struct.unpack(">i", exactly(source, 4) or bytes(4))[0])
        if not frame:
            raise OSError("gone")
        return frame

    @staticmethod
    def say(sink, answer):
        sink.sendall(struct.pack(">i", len(answer)) + answer)


def exactly(source, count):
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data


def main():
    cluster = cluster_new(new(0, None, None, 0), 2)
    places = bootstraps(cluster).decode()
    if len(sys.argv) > 1:
        if sys.argv[1] == "--sasl":
            enter = Sasl(*sys.argv[2:5]).enter
        else:
            certificate, key, authority = sys.argv[2:5]
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(certificate, key)
            enter = lambda plain, _: context.wrap_socket(plain, server_side=True)
        ports = {}
        for port in re.findall(r":(\d+)", places):
            Door(int(port), enter, ports)
        places = ",".join(f"127.0.0.1:{door}" for door in ports.values())
    print(places, flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "create":
            failed = create(cluster, words[0].encode(), int(words[1]), 2)
        elif verb == "leader":
            failed = set_leader(cluster, words[0].encode(), int(words[1]), int(words[2]))
        elif verb in ("down", "up"):
            failed = (set_down if verb == "down" else set_up)(cluster, int(words[0]))
        elif verb == "refuse":
            codes, count = [int(words[0])] * int(words[1]), int(words[1])
            failed = errors(cluster, PRODUCE, count, (ctypes.c_int * count)(*codes))
        elif verb in ("without", "with"):
            failed = topic_error(cluster, words[0].encode(), UNKNOWN_TOPIC if verb == "without" else 0)
        print("failed" if failed else "ok", flush=True)


main()
