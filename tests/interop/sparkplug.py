"""A Sparkplug host application on pysparkplug, which knows nothing of this gateway.

Prints one JSON object for every message of the group, decoded: metrics are found by the aliases and data types of the births,
and what these do not name ends the program. Takes orders as JSON lines on its standard input:

    {"online": true, "time": 1, "host": "scada"}
    {"rebirth": "gate-a"}
    {"node": "gate-a", "device": "relay-1", "set": {"on": ["BOOLEAN", true]}}

    python sparkplug.py --port 1883 --group sluicegate
"""

import argparse
import json
import os
import sys
import threading
import traceback

import pysparkplug as sp


def give_up(error):
    traceback.print_exception(error.exc_type, error.exc_value, error.exc_traceback)
    os._exit(3)


def metric(said):
    return {
        "name": said.name,
        "alias": said.alias,
        "type": said.datatype.name,
        "time": said.timestamp,
        "value": None if said.is_null else said.value,
        "historical": said.is_historical,
    }


def heard(_client, message):
    topic, payload = message.topic, message.payload
    if topic.message_type in (sp.MessageType.NCMD, sp.MessageType.DCMD):
        return
    if isinstance(payload, sp.NDeath):
        metrics = [payload.bd_seq_metric]
    else:
        metrics = getattr(payload, "metrics", [])
    said = {
        "kind": str(topic.message_type.value),
        "node": topic.edge_node_id,
        "device": topic.device_id,
        "seq": getattr(payload, "seq", None),
        "qos": int(message.qos),
        "retained": bool(message.retain),
        "metrics": [metric(one) for one in metrics],
    }
    print(json.dumps(said, default=str), flush=True)


def obey(client, group, order):
    now = sp.get_current_timestamp()
    if "online" in order:
        topic = sp.Topic(message_type=sp.MessageType.STATE, sparkplug_host_id=order["host"])
        payload = sp.State(timestamp=order["time"], online=order["online"])
        client.publish(sp.Message(topic=topic, payload=payload, qos=sp.QoS.AT_LEAST_ONCE, retain=True))
        return
    if "rebirth" in order:
        topic = sp.Topic(group_id=group, message_type=sp.MessageType.NCMD, edge_node_id=order["rebirth"])
        rebirth = sp.Metric(timestamp=now, name="Node Control/Rebirth", datatype=sp.DataType.BOOLEAN, value=True)
        payload = sp.NCmd(timestamp=now, metrics=(rebirth,))
    else:
        topic = sp.Topic(
            group_id=group,
            message_type=sp.MessageType.DCMD,
            edge_node_id=order["node"],
            device_id=order["device"],
        )
        metrics = tuple(
            sp.Metric(timestamp=now, name=name, datatype=sp.DataType[kind], value=value)
            for name, (kind, value) in order["set"].items()
        )
        payload = sp.DCmd(timestamp=now, metrics=metrics)
    message = sp.Message(topic=topic, payload=payload, qos=sp.QoS.AT_MOST_ONCE, retain=False)
    client.publish(message, include_dtypes=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--group", required=True)
    arguments = arguments.parse_args()
    threading.excepthook = give_up
    client = sp.Client()
    client._client.on_subscribe = lambda *_: print("subscribed", file=sys.stderr, flush=True)
    client.subscribe(sp.Topic.from_str(f"spBv1.0/{arguments.group}/#"), sp.QoS.AT_LEAST_ONCE, heard)
    client.connect("127.0.0.1", port=arguments.port)
    for line in sys.stdin:
        obey(client, arguments.group, json.loads(line))
    threading.Event().wait()


main()
