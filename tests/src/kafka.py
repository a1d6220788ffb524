"""librdkafka's mock cluster: real brokers on loopback, as far as a producer and a consumer can tell, in memory.

Prints its brokers, HOST:PORT with commas between, and then does what it reads, a line each, and says `ok`:

    create TOPIC PARTITIONS     makes a topic; one that is asked for makes itself, with four partitions
    down BROKER, up BROKER      a broker vanishes, and comes back with what it kept
    leader TOPIC PARTITION BROKER
    refuse CODE COUNT           the next produce requests are answered by this error
    without TOPIC               asked for the topic, the brokers say that there is none; `with TOPIC`: no more

With --tls CERT KEY CA every broker is behind TLS, and shows itself to those alone who have a certificate of CA: what is
printed are those doors, and the brokers' answers name them.
"""

import ctypes
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
    """TLS before one broker."""

    def __init__(self, port, context, ports):
        self.port, self.context, self.ports = port, context, ports
        self.listener = socket.create_server(("127.0.0.1", 0))
        ports[port] = self.listener.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            threading.Thread(target=self.serve, args=(self.listener.accept()[0],), daemon=True).start()

    def serve(self, plain):
        try:
            client = self.context.wrap_socket(plain, server_side=True)
        except OSError:
            return
        broker = socket.create_connection(("127.0.0.1", self.port))
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
        certificate, key, authority = sys.argv[2:5]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        ports = {}
        for port in re.findall(r":(\d+)", places):
            Door(int(port), context, ports)
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
