"""One HTTP/1.1 connection, which tells apart the ways in which an exchange can fail."""

import asyncio
import os
import base64
from dataclasses import dataclass


class Refused(Exception):
    """No connection, so nothing was sent."""


class ClosedBetween(Exception):
    """A kept connection ended before a byte of the response. HTTP allows this at any time."""


class Broken(Exception):
    """A new connection ended before the response, or any within it."""


@dataclass
class Response:
    status: int
    headers: dict
    body: bytes = b""


class Connection:
    """`address` is host and port, `tls` a context for HTTPS."""

    def __init__(self, address, tls=None, within=30):
        self.address, self.tls, self.within = address, tls, within
        self.reader = self.writer = None
        self.is_used = False

    @property
    def is_open(self):
        """Whether it is, as far as this side knows."""
        return self.writer is not None and not self.reader.at_eof() and not self.writer.is_closing()

    async def open(self):
        host, port = self.address
        more = {"ssl": self.tls, "server_hostname": "localhost"} if self.tls else {}
        try:
            opened = asyncio.open_connection(host, port, limit=1 << 20, **more)
            self.reader, self.writer = await asyncio.wait_for(opened, self.within)
        except (ConnectionRefusedError, ConnectionResetError) as error:
            # Reset: it waited to be accepted when the listener was closed.
            raise Refused(f"no connection: {error!r}"[:90]) from error
        except (OSError, asyncio.TimeoutError) as error:
            raise Broken(f"no connection: {error!r}"[:90]) from error
        self.is_used = False

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    def abort(self):
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    async def request(self, method, path, headers=(), body=None):
        """Opens the connection if it is not."""
        if not self.is_open:
            self.close()
            await self.open()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        message = "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
        try:
            return await asyncio.wait_for(self.exchange(message), self.within)
        except asyncio.TimeoutError as error:
            self.abort()
            raise Broken(f"no response within {self.within} s") from error
        except (Broken, ClosedBetween):
            self.abort()
            raise

    async def exchange(self, message):
        response = await self.begin(message)
        if response.status not in (101, 204, 304):
            response.body = await self.body(response.headers)
        self.is_used = True
        if response.headers.get("connection", "").lower() == "close":
            self.close()
        return response

    async def begin(self, message):
        """Status and headers of the response; the body is still to be read."""
        received = b""
        try:
            self.writer.write(message)
            await self.writer.drain()
            received = await self.reader.read(1)
            if not received:
                raise ConnectionError("closed")
            received += await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as error:
            if self.is_used and not received:
                raise ClosedBetween from error
            where = "within the header" if received else "before a response"
            raise Broken(f"{where}: {error!r}"[:90]) from error
        first, *lines = received.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.lower()] = value.strip()
        return Response(int(first.split(" ", 2)[1]), headers)

    async def body(self, headers):
        try:
            if headers.get("transfer-encoding") != "chunked":
                return await self.reader.readexactly(int(headers.get("content-length", 0)))
            pieces = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readuntil(b"\r\n")
            return b"".join(pieces)
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Broken(f"within the body: {error!r}"[:90]) from error


def websocket_lines():
    key = base64.b64encode(os.urandom(16)).decode()
    return [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
