"""A service that does, by path, what goes wrong in services.

    python3 faulty.py PORT [--log FILE] [--idle SECONDS] [--sick] [--slots N --work SECONDS]

--idle: an idle connection is closed after this time, 0 at once after a response that did not say so.
--sick: everything but /healthz is reset. --slots: how many requests of /work are processed at the
same time, each for --work seconds; others wait.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import re
import socket
import struct
import time

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--name", default="")
parser.add_argument("--log")
parser.add_argument("--idle", type=float)
parser.add_argument("--sick", action="store_true")
parser.add_argument("--slots", type=int)
parser.add_argument("--work", type=float, default=0.005)
options = parser.parse_args()
log = open(options.log, "a", buffering=1) if options.log else None
stats = {"connections": 0, "open": 0, "active": 0, "requests": 0, "checks": 0}
slots = asyncio.Semaphore(options.slots or 1_000_000)
BIG = b"a" * 65536


def response(body, status="200 OK", more=""):
    name = f"X-Server: {options.name}\r\n" if options.name else ""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{name}{more}\r\n".encode() + body


def reset(writer):
    """Ends the connection with RST."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def respond(path, header, reader, writer):
    """Responds to one request. Returns whether the connection stays."""
    length = int((re.search(rb"\r\ncontent-length: *(\d+)", header, re.I) or [0, 0])[1])
    if path == "/early":
        # Responds before the body has come, and reads it then.
        writer.write(response(b"early", "413 Content Too Large", "Connection: close\r\n"))
        return False
    if re.search(rb"\r\ntransfer-encoding: *chunked", header, re.I):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    while length > 0:
        data = await reader.read(min(length, 65536))
        if not data:
            return False
        length -= len(data)

    if path == "/reset":
        reset(writer)
    elif path == "/close":
        return False
    elif path == "/half-length":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 500)
        await writer.drain()
        await asyncio.sleep(0.05)
        reset(writer)
    elif path == "/half-length-fin":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 500)
        return False
    elif path in ("/half-chunked", "/half-chunked-fin"):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"a" * 500 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        if path == "/half-chunked":
            reset(writer)
        return False
    elif path == "/hang":
        await reader.read()
        return False
    elif path == "/garbage":
        writer.write(b"\x00\x01\x02 what is this \xff\r\n\r\n")
        return False
    elif path == "/big-header":
        writer.write(b"HTTP/1.1 200 OK\r\nX-Big: " + b"a" * (8 << 20) + b"\r\nContent-Length: 0\r\n\r\n")
        return False
    elif path == "/no-header":
        for _ in range((200 << 20) // len(BIG)):
            writer.write(BIG)
            await writer.drain()
        return False
    elif path == "/drip":
        # A byte of the body every 100 ms.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
        for _ in range(600):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.1)
    elif path == "/work" and options.slots == 0:
        # Drips the header of its response.
        for byte in response(b"late"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.2)
    elif path == "/big":
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {100 << 20}\r\n\r\n".encode())
        for _ in range((100 << 20) // len(BIG)):
            writer.write(BIG)
            await writer.drain()
    elif path == "/websocket":
        key = re.search(rb"\r\nsec-websocket-key: *(\S+)", header, re.I)[1]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        lines = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        return False
    elif path == "/work":
        async with slots:
            await asyncio.sleep(options.work)
        writer.write(response(b"done"))
    elif path == "/stats":
        writer.write(response(json.dumps({**stats, "active": stats["active"] - 1}).encode()))
    else:
        writer.write(response(b"ok"))
    await writer.drain()
    return not writer.is_closing()


async def serve(reader, writer):
    stats["connections"] += 1
    stats["open"] += 1
    try:
        while True:
            header = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), options.idle or None)
            path = header.split(b" ", 2)[1].split(b"?")[0].decode()
            stats["checks" if path == "/healthz" else "requests"] += 1
            identity = re.search(rb"\r\nx-id: *(\S+)", header, re.I)
            if log and identity:
                log.write(f"{identity[1].decode()} {header.split(b' ')[0].decode()} {time.time():.3f}\n")
            if options.sick and path not in ("/healthz", "/stats"):
                return reset(writer)
            stats["active"] += 1
            try:
                stays = await respond(path, header, reader, writer)
            finally:
                stats["active"] -= 1
            if not stays or options.idle == 0:
                return
    except (asyncio.IncompleteReadError, asyncio.TimeoutError, OSError, ValueError, asyncio.LimitOverrunError):
        pass
    finally:
        stats["open"] -= 1
        if not writer.transport.get_write_buffer_size() and not writer.is_closing():
            # Now, and not when the loop comes to it.
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        writer.close()


async def main():
    server = await asyncio.start_server(serve, options.host, options.port, limit=1 << 17, backlog=4096)
    await server.serve_forever()


asyncio.run(main())
