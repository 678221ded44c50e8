#!/usr/bin/env python3
"""A service that records each request that it gets.

    upstream.py PORT LOG

A line of the log: the request's X-Id, its method and path, its X-OpenId lines joined with "|", and
the length and CRC of its body. The response is the last three of these and X-Size bytes that the
client can check; /slow waits first, /stream sends a chunk every 50 ms until the client leaves, and
/websocket echoes.
"""

import asyncio
import base64
import hashlib
import re
import sys
import zlib

log = open(sys.argv[2], "a", buffering=1)
PATTERN = bytes(range(32, 127)) * 800
HEAD = re.compile(rb"(\S+) (\S+) HTTP/1\.1\r\n")


def values(header, name):
    return re.findall(rb"\r\n" + name + rb": *([^\r\n]*)", header, re.I)


def value(header, name):
    return (values(header, name) or [b""])[0]


async def body_of(header, reader):
    if value(header, b"transfer-encoding").lower() == b"chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return body
    return await reader.readexactly(int(value(header, b"content-length") or 0))


async def stream(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    number = 0
    while not writer.is_closing():
        line = b"%d\n" % number
        writer.write(b"%x\r\n%s\r\n" % (len(line), line))
        await writer.drain()
        number += 1
        await asyncio.sleep(0.05)


async def websocket(header, reader, writer):
    accept = hashlib.sha1(value(header, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(accept)
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n\r\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def serve(reader, writer):
    try:
        while True:
            header = await reader.readuntil(b"\r\n\r\n")
            method, path = HEAD.match(header).groups()
            body = await body_of(header, reader)
            users = b"|".join(values(header, b"x-openid"))
            got = b"%s %d %d" % (users or b"-", len(body), zlib.crc32(body))
            words = (value(header, b"x-id"), method, path.partition(b"?")[0], got)
            log.write(b" ".join(words).decode() + "\n")
            if path == b"/stream":
                return await stream(writer)
            if path == b"/websocket":
                return await websocket(header, reader, writer)
            if path == b"/slow":
                await asyncio.sleep(int(value(header, b"x-wait")) / 1000)
            sent = got + b"\n" + PATTERN[: int(value(header, b"x-size") or 0)]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024, limit=1 << 20)
    await server.serve_forever()


asyncio.run(main())
