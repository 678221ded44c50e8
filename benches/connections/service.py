"""The service of these measurements: `service.py PORT`.

/big responds with 10 MiB, /stream with chunks, /never not at all, /slow after half a second, /ws is
an echo. Everything else responds with the number of bytes that came as a body.
"""

import asyncio
import base64
import hashlib
import socket
import sys

BIG = 10 * 1024 * 1024
PIECE = b"x" * 65536


def header(head, name):
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None


async def read_body(reader, head):
    length = 0
    if header(head, b"transfer-encoding"):
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
            length += size
        while await reader.readline() != b"\r\n":
            pass
    left = int(header(head, b"content-length") or 0)
    while left:
        piece = await reader.read(min(left, 65536))
        if not piece:
            raise EOFError
        left -= len(piece)
        length += len(piece)
    return length


async def respond(target, length, writer):
    ok = b"HTTP/1.1 200 OK\r\n"
    if target.startswith(b"/big"):
        writer.write(ok + b"Content-Length: %d\r\n\r\n" % BIG)
        for _ in range(BIG // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
    elif target.startswith(b"/stream"):
        writer.write(ok + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            writer.write(b"400\r\n" + b"y" * 1024 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
    else:
        if target.startswith(b"/slow"):
            await asyncio.sleep(0.5)
        writer.write(ok + b"Content-Length: %d\r\n\r\n%d" % (len(str(length)), length))
    await writer.drain()


async def echo(head, reader, writer):
    key = header(head, b"sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while piece := await reader.read(4096):
        writer.write(piece)
        await writer.drain()


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1]
            if target.startswith(b"/never"):
                await reader.read()
                return
            if target.startswith(b"/ws"):
                return await echo(head, reader, writer)
            await respond(target, await read_body(reader, head), writer)
    except (EOFError, ConnectionError, ValueError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    # So that thousands of responses that nobody takes do not use up the kernel's memory for TCP.
    server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
