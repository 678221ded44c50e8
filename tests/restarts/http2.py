"""One HTTP/2 connection without TLS, one request at a time: as much as these tests need.

Of a response's header only the status is read. Nothing is compressed: this side sends literals, and
allows the other no table.
"""

import asyncio
import struct

from http1 import Broken, ClosedBetween, Connection, Response

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
REFUSED_STREAM = 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Huffman codes of digits (RFC 7541, appendix B).
DIGITS = {f"{number:05b}": number for number in (0, 1, 2)} | {f"{22 + number:06b}": number for number in range(3, 10)}
STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(text):
    data = text.encode()
    length = bytes([len(data)]) if len(data) < 127 else b"\x7f" + varint(len(data) - 127)
    return length + data


def varint(number):
    encoded = b""
    while number >= 128:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def read_number(block, at, bits):
    most = (1 << bits) - 1
    number, at = block[at] & most, at + 1
    shift = 0
    while number >= most:
        number += (block[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 128:
            break
    return number, at


def status_of(block):
    """The status is the first field, after changes of the table's size."""
    at = 0
    while block[at] & 0xE0 == 0x20:
        _, at = read_number(block, at, 5)
    if block[at] & 0x80:
        return STATUSES[block[at] & 0x7F]
    index, at = read_number(block, at, 6 if block[at] & 0x40 else 4)
    assert index in STATUSES, block
    is_huffman = block[at] & 0x80
    length, at = read_number(block, at, 7)
    data = block[at : at + length]
    if not is_huffman:
        return int(data)
    bits, digits, code = "".join(f"{byte:08b}" for byte in data), "", ""
    for bit in bits:
        code += bit
        if code in DIGITS:
            digits, code = f"{digits}{DIGITS[code]}", ""
    return int(digits)


class Http2Connection(Connection):
    async def open(self):
        await super().open()
        self.stream, self.window, self.ends = -1, 65_535, False
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, 1 << 20)
        more = frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        self.writer.write(PREFACE + frame(SETTINGS, 0, 0, settings) + more)
        self.frames = asyncio.Queue()
        self.task = asyncio.create_task(self.read_all(self.reader))

    async def read_all(self, reader):
        """Reads also while there is no request: a PING and GOAWAY may come at any time."""
        try:
            while True:
                self.frames.put_nowait(await self.read(reader))
        except (asyncio.IncompleteReadError, OSError) as error:
            self.frames.put_nowait(error)

    async def next(self):
        following = await self.frames.get()
        if isinstance(following, Exception):
            raise following
        return following

    @property
    def is_open(self):
        return super().is_open and not self.ends and not self.task.done()

    async def request(self, method, path, headers=(), body=None):
        if not self.is_open:
            self.close()
            await self.open()
        try:
            return await asyncio.wait_for(self.whole(method, path, headers, body), self.within)
        except asyncio.TimeoutError as error:
            self.abort()
            raise Broken(f"no response within {self.within} s") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            self.abort()
            raise Broken(f"HTTP/2: {error!r}"[:90]) from error
        except (Broken, ClosedBetween):
            self.abort()
            raise

    async def whole(self, method, path, headers, body):
        self.stream += 2
        pairs = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        for line in headers:
            name, _, value = line.partition(": ")
            pairs.append((name.lower(), value))
        if body is not None:
            pairs.append(("content-length", str(len(body))))
        block = b"".join(b"\x00" + literal(name) + literal(value) for name, value in pairs)
        message = frame(HEADERS, 4 if body else 5, self.stream, block)
        began = False
        try:
            self.writer.write(message)
            status, received, ended = 0, b"", False
            if body:
                while self.window < len(body):
                    await self.next()
                self.window -= len(body)
                self.writer.write(frame(DATA, 1, self.stream, body))
            while not ended:
                kind, flags, stream, payload = await self.next()
                if kind == GOAWAY and struct.unpack(">I", payload[:4])[0] < self.stream:
                    # The server says that it did nothing for this request.
                    raise ClosedBetween
                if stream != self.stream:
                    continue
                began = True
                if kind == RESET:
                    if struct.unpack(">I", payload)[0] == REFUSED_STREAM:
                        raise ClosedBetween
                    raise Broken(f"RST_STREAM {payload.hex()}")
                if kind == HEADERS and (first := status_of(payload)) >= 200 and not status:
                    status = first
                if kind == DATA:
                    received += payload
                ended = bool(flags & 1) and kind in (DATA, HEADERS)
        except (asyncio.IncompleteReadError, OSError) as error:
            # A server that has sent GOAWAY closes when all is done; one that dies sends none.
            if self.is_used and not began and not self.ends:
                raise ClosedBetween from error
            raise
        self.is_used = True
        return Response(status, {}, received)

    async def read(self, reader):
        """One frame; those of the connection are answered here."""
        header = await reader.readexactly(9)
        length, kind, flags = int.from_bytes(header[:3], "big"), header[3], header[4]
        stream = int.from_bytes(header[5:], "big") & 0x7FFFFFFF
        payload = await reader.readexactly(length)
        if kind == SETTINGS and not flags & 1 and self.writer:
            self.writer.write(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1 and self.writer:
            self.writer.write(frame(PING, 1, 0, payload))
        elif kind == WINDOW and stream == 0:
            self.window += struct.unpack(">I", payload)[0]
        elif kind == GOAWAY:
            self.ends = True
        return kind, flags, stream, payload
