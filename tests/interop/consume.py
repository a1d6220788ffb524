"""A consumer of the native format, written from docs/native.md and sluicegate.proto alone.

Prints one JSON object a message, in the order it settles them, and at the end (SIGTERM, SIGINT) one line with what it has seen:
messages, duplicates, and the numbers that were neither delivered nor named. Needs the packages in requirements.txt.

    python consume.py --broker 127.0.0.1:1883 --gateway gate-a
"""

import argparse
import importlib
import json
import pathlib
import signal
import struct
import sys
import tempfile

import lz4.block
import paho.mqtt.client as mqtt
import zstandard
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "device-models/proto/sluicegate.proto"
BODY_MAX = 16 << 20
CLASSES = ["ctl", "event", "live", "hist"]
LEVELS = ["info", "warn", "error", "urgent"]
QUALITIES = ["good", "out-of-range", "unknown-property", "wrong-type", "wrong-time"]
MASK = (1 << 64) - 1


def schema():
    """The module protoc makes of the .proto."""
    folder = tempfile.mkdtemp()
    code = protoc.main(["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", str(PROTO)])
    if code != 0:
        sys.exit(f"protoc failed on {PROTO}")
    sys.path.insert(0, folder)
    return importlib.import_module("sluicegate_pb2")


def crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def signed(number):
    """64 bits, wrapping."""
    number &= MASK
    return number - (1 << 64) if number >> 63 else number


def value(said):
    """A `Value` as Python has it."""
    kind = said.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list":
        return [value(item) for item in said.list.item]
    if kind == "map":
        return {entry.key: value(entry.value) for entry in said.map.entry}
    if kind == "bytes":
        return list(said.bytes)
    if kind == "json":
        return json.loads(said.json)
    return getattr(said, kind)


def runs(pairs):
    return [(pairs[at], pairs[at + 1]) for at in range(0, len(pairs), 2)]


class Consumer:
    def __init__(self, pb, out):
        self.pb, self.out = pb, out
        self.catalogs = {}
        self.waiting = []
        self.seen = {}
        self.named = {}
        self.messages = self.duplicates = 0
        self.acknowledge = lambda gateway, receipt: None

    # --- catalogs ---

    def catalog(self, gateway, payload):
        catalog = self.pb.Catalog.FromString(payload)
        things = {thing.alias: (thing.id, thing.model) for thing in catalog.thing}
        names = {(model.name, p.alias): p.name for model in catalog.model for p in model.property}
        self.catalogs[gateway, catalog.rev] = things, names
        waiting, self.waiting = self.waiting, []
        for gateway, payload in waiting:
            self.batch(gateway, payload)

    # --- batches ---

    def batch(self, gateway, payload):
        batch = self.pb.Batch.FromString(payload)
        if batch.v != 1:
            sys.exit(f"version {batch.v} is not known here")
        if crc32c(batch.body) != batch.crc32c:
            sys.exit("the body's CRC-32C is wrong")
        if batch.rev and (gateway, batch.rev) not in self.catalogs:
            self.waiting.append((gateway, payload))
            return
        frames = self.pb.Frames.FromString(self.unpack(batch))
        things, names = self.catalogs.get((gateway, batch.rev), ({}, {}))
        found = {}
        for rows in frames.rows:
            self.rows(batch, rows, things, names, found)
        seq = batch.first_seq - 1
        for note in frames.note:
            seq += note.skip + 1
            found[seq] = self.note(batch, note, things)
        for hole in frames.hole:
            for number in range(batch.first_seq + hole.at, batch.first_seq + hole.at + hole.count):
                found[number] = None
        if sorted(found) != list(range(batch.first_seq, batch.first_seq + batch.count)):
            sys.exit(f"the batch of {batch.count} from {batch.first_seq} covers {sorted(found)}")
        self.settle(gateway, batch, found)

    def unpack(self, batch):
        if batch.codec == 0:
            return batch.body
        if batch.codec == 1:
            if struct.unpack_from("<I", batch.body)[0] > BODY_MAX:
                sys.exit("the body claims to be too large")
            return lz4.block.decompress(batch.body)
        if batch.codec == 2:
            with zstandard.ZstdDecompressor().stream_reader(batch.body) as reader:
                body = reader.read(BODY_MAX + 1)
            if len(body) > BODY_MAX:
                sys.exit("the body is too large")
            return body
        sys.exit(f"compression {batch.codec} is not known here")

    def rows(self, batch, rows, things, names, found):
        thing, model = things[rows.thing] if rows.thing else (rows.id, rows.model)
        count = len(rows.dt_us)
        aliases, expected = [], 1
        for first, length in runs(rows.prop):
            first = expected + ((first >> 1) ^ -(first & 1))
            aliases.extend(range(first, first + length))
            expected = first + length
        inline = dict(zip(rows.named, rows.name))
        columns = [inline.get(at) or names[model, alias] for at, alias in enumerate(aliases)]
        kinds = [kind for kind, length in runs(rows.kind) for _ in range(length)]
        qualities = [quality for quality, length in runs(rows.quality) for _ in range(length)]
        table = self.values(rows, kinds, count)
        seq, time = batch.first_seq - 1, batch.base_us
        for row in range(count):
            seq += (rows.skip[row] if rows.skip else 0) + 1
            time += rows.dt_us[row]
            message = {"thing": thing, "model": model, "time_us": time}
            message["received_us"] = time + (rows.late_us[row] if rows.late_us else 0)
            message["properties"] = {name: table[at][row] for at, name in enumerate(columns)}
            quality = {
                name: QUALITIES[qualities[at * count + row]]
                for at, name in enumerate(columns)
                if qualities and qualities[at * count + row]
            }
            if quality:
                message["quality"] = quality
            found[seq] = message

    def values(self, rows, kinds, count):
        """Column by column."""
        at = {"ints": 0, "f32": 0, "f64": 0, "text": 0, "other": 0}

        def take(field, width=1):
            begin = at[field]
            at[field] += count * width
            return getattr(rows, field)[begin : at[field]]

        table = []
        for kind in kinds:
            if kind in (0, 1, 2, 3) or kind >= 16:
                number, column = 0, []
                for difference in take("ints"):
                    number = signed(number + difference)
                    column.append(number)
                if kind == 0:
                    column = [None] * count
                elif kind == 1:
                    column = [bool(number) for number in column]
                elif kind == 3:
                    column = [number & MASK for number in column]
                elif kind >= 16:
                    column = [number / 10 ** (kind - 16) for number in column]
            elif kind == 4:
                column = list(struct.unpack(f"<{count}f", take("f32", 4)))
            elif kind == 5:
                column = list(struct.unpack(f"<{count}d", take("f64", 8)))
            elif kind == 6:
                column = list(take("text"))
            elif kind == 7:
                column = [value(said) for said in take("other")]
            else:
                sys.exit(f"a column of kind {kind} is not known here")
            table.append(column)
        return table

    def note(self, batch, note, things):
        thing, model = things[note.thing] if note.thing else (note.id, note.model)
        time = batch.base_us + note.dt_us
        message = {"thing": thing, "model": model, "time_us": time, "received_us": time + note.late_us}
        kind = note.WhichOneof("body")
        said = getattr(note, kind)
        if kind == "event":
            message["event"] = {"name": said.name, "level": LEVELS[said.level], "data": value(said.data)}
        elif kind == "reply":
            message["reply"] = {"id": said.id, "value": value(said.value)}
            if said.HasField("failure"):
                message["reply"] = {"id": said.id, "failure": said.failure.text}
        elif kind == "presence":
            message["presence"] = {"online": said.online, "reason": said.reason}
        elif kind == "gap":
            message["gap"] = {"class": CLASSES[said.cls], "first": said.first, "last": said.last, "reason": said.reason}
        else:
            message["properties"] = {sample.name: value(sample.value) for sample in said.sample}
        return message

    # --- what was seen ---

    def settle(self, gateway, batch, found):
        for seq, message in sorted(found.items()):
            seen = self.seen.setdefault((gateway, batch.epoch, batch.cls), set())
            if seq in seen:
                self.duplicates += 1
                continue
            seen.add(seq)
            if message is None:
                continue
            if "gap" in message:
                gap = message["gap"]
                named = self.named.setdefault((gateway, batch.epoch, CLASSES.index(gap["class"])), set())
                named.update(range(gap["first"], gap["last"] + 1))
            self.messages += 1
            name = {"gateway": gateway, "epoch": f"{batch.epoch:016x}", "class": CLASSES[batch.cls], "seq": seq}
            name["clock"] = batch.clock
            print(json.dumps({**name, **message}), file=self.out, flush=True)
        receipt = {"epoch": f"{batch.epoch:016x}", "class": CLASSES[batch.cls]}
        receipt |= {"first": batch.first_seq, "last": batch.first_seq + batch.count - 1}
        self.acknowledge(gateway, receipt)

    def missing(self):
        """Numbers below the highest that were neither delivered nor named."""
        return sum(
            len(set(range(min(seen), max(seen) + 1)) - seen - self.named.get(key, set()))
            for key, seen in self.seen.items()
        )


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", default="127.0.0.1:1883", help="HOST:PORT")
    options.add_argument("--gateway", default="+", help="the gateway's id; all of them without it")
    options.add_argument("--acknowledge", action="store_true", help="tell the gateway what was printed")
    options = options.parse_args()
    consumer = Consumer(schema(), sys.stdout)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="consume-py", protocol=mqtt.MQTTv5, manual_ack=True)

    if options.acknowledge:
        consumer.acknowledge = lambda gateway, receipt: client.publish(f"sg/v1/{gateway}/ack", json.dumps(receipt), qos=1)

    def connected(client, _userdata, _flags, reason, _properties):
        if reason.is_failure:
            sys.exit(f"the broker says: {reason}")
        # Catalogs first: a batch that comes before its own has to wait.
        root = f"sg/v1/{options.gateway}"
        client.subscribe([(f"{root}/model/+", 1), (f"{root}/up/+", 1)])
        print("subscribed", file=sys.stderr, flush=True)

    def arrived(client, _userdata, message):
        _sg, _v1, gateway, way, _last = message.topic.split("/")
        if way == "model":
            consumer.catalog(gateway, message.payload)
        else:
            consumer.batch(gateway, message.payload)
        # Only now: what is acknowledged is never sent again.
        client.ack(message.mid, message.qos)

    client.on_connect, client.on_message = connected, arrived
    host, _, port = options.broker.rpartition(":")
    properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect(host, int(port), clean_start=False, properties=properties)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: client.disconnect())
    client.loop_forever()
    said = {"messages": consumer.messages, "duplicates": consumer.duplicates, "missing": consumer.missing()}
    print(json.dumps(said), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
