#!/usr/bin/env python3
"""Plays a new process of an upgrade that goes wrong.

    successor.py HOW [run -c FILE --upgrade]

HOW: exit, sleep (does not connect), connect (says nothing), old (of the protocol), new, any (all
versions, then hangs), garbage, endless (a frame of 4 GiB), deaf (reads nothing), mute (answers
nothing, is never ready), unready (answers, is never ready), dies (when it is to serve), hangs (when
it is to serve). The protocol is that of src/server/upgrade.
"""

import os
import socket
import struct
import sys
import time
from pathlib import Path

HELLO, WELCOME, REFUSED, SOCKETS, BEGIN, QUESTION, ANSWER, CONTROL, BULK, CREDIT = 1, 2, 3, 4, 5, 16, 17, 18, 19, 20
END_OF_SESSIONS, YIELDED = 2, 4
READY = 1

how = sys.argv[1]


def varint(number):
    encoded = b""
    while number >= 128:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def field(number, value):
    if isinstance(value, int):
        value = struct.pack(">Q", value)
    return varint(number) + varint(len(value)) + value


def fields(body):
    found, at = {}, 0

    def read():
        nonlocal at
        number = shift = 0
        while True:
            byte = body[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return number

    while at < len(body):
        number, length = read(), read()
        found[number] = body[at : at + length]
        at += length
    return found


def frame(kind, body):
    return struct.pack(">IB", len(body), kind) + body


def receive(stream, count):
    data = b""
    while len(data) < count:
        # Without room for them the system closes the sockets that come beside the bytes.
        more = stream.recv(count - len(data))
        if not more:
            print(f"successor {how}: the old process closed the connection", file=sys.stderr, flush=True)
            sys.exit(1)
        data += more
    return data


def receive_frame(stream):
    length, kind = struct.unpack(">IB", receive(stream, 5))
    return kind, receive(stream, length)


def main():
    if how == "exit":
        sys.exit(1)
    if how == "sleep":
        time.sleep(60)
    path = Path(sys.argv[sys.argv.index("-c") + 1]).parent / "run/upgrade.sock"
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(path))
    if how == "connect":
        receive(stream, 1)
    if how == "garbage":
        stream.sendall(os.urandom(4096))
        receive(stream, 1)
    if how == "endless":
        stream.sendall(struct.pack(">IB", 0xFFFFFFFF, HELLO) + b"a" * 4096)
        receive(stream, 1)
    oldest, newest = {"old": (0, 0), "new": (7, 9), "any": (0, 9)}.get(how, (1, 1))
    stream.sendall(frame(HELLO, field(1, oldest) + field(2, newest) + field(3, b"0.0.0")))
    kind, body = receive_frame(stream)
    print(f"successor {how}: {'welcome' if kind == WELCOME else fields(body).get(1)}", file=sys.stderr, flush=True)
    if kind != WELCOME or how == "any":
        time.sleep(40 if kind == WELCOME else 0)
        sys.exit(1)
    has_more = True
    while has_more:
        kind, body = receive_frame(stream)
        has_more = kind != SOCKETS or struct.unpack(">Q", fields(body)[2])[0]
    stream.sendall(frame(BEGIN, b""))
    if how == "deaf":
        time.sleep(40)
    while True:
        kind, body = receive_frame(stream)
        found = fields(body)
        if kind == QUESTION and how != "mute":
            # One byte, 1, means yes to each of them.
            stream.sendall(frame(ANSWER, field(1, struct.unpack(">Q", found[1])[0]) + field(3, b"\x01")))
        if kind != BULK:
            continue
        stream.sendall(frame(CREDIT, field(1, 1)))
        if found[2] == bytes([END_OF_SESSIONS]) and how in ("dies", "hangs"):
            stream.sendall(frame(CONTROL, field(2, bytes([READY])) + field(3, b"")))
        if found[2] == bytes([YIELDED]):
            if how == "dies":
                os._exit(9)
            time.sleep(40)


main()
