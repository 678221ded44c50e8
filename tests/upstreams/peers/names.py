"""A DNS server whose responses change while it runs, on UDP and TCP port 53 of the loopback interface."""

import ipaddress
import socket
import struct
import threading
import time

A, CNAME, SOA, AAAA = 1, 5, 6, 28


class Names:
    """`zone` has, for each name, its addresses, or one of the words nxdomain, servfail and silent."""

    def __init__(self):
        self.zone, self.ttl, self.queries = {}, 1, []
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 53))
        streams = socket.create_server(("127.0.0.1", 53))
        threading.Thread(target=self.serve_datagrams, args=(datagrams,), daemon=True).start()
        threading.Thread(target=self.serve_streams, args=(streams,), daemon=True).start()

    def serve_datagrams(self, server):
        while True:
            query, client = server.recvfrom(4096)
            if answer := self.answer(query):
                server.sendto(answer, client)

    def serve_streams(self, server):
        while True:
            client, _ = server.accept()
            with client:
                try:
                    while (size := client.recv(2)) and len(size) == 2:
                        if answer := self.answer(client.recv(struct.unpack(">H", size)[0])):
                            client.sendall(struct.pack(">H", len(answer)) + answer)
                except OSError:
                    pass

    def answer(self, query):
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        name = ".".join(labels)
        self.queries.append((time.monotonic(), name, kind))
        what = self.zone.get(name, "nxdomain")
        if what == "silent":
            return None
        code = {"nxdomain": 3, "servfail": 2}.get(what, 0) if isinstance(what, str) else 0
        records = []
        if not isinstance(what, str):
            for address in map(ipaddress.ip_address, what):
                if kind == (A if address.version == 4 else AAAA):
                    data = address.packed
                    records.append(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, self.ttl, len(data)) + data)
        authority = b""
        if not records and code != 2:
            # Says for how long there is nothing.
            data = b"\x02ns\x00\x05admin\x00" + struct.pack(">IIIII", 1, 60, 60, 60, self.ttl)
            authority = b"\xc0\x0c" + struct.pack(">HHIH", SOA, 1, self.ttl, len(data)) + data
        header = query[:2] + struct.pack(">HHHHH", 0x8580 | code, 1, len(records), bool(authority), 0)
        return header + query[12 : at + 5] + b"".join(records) + authority
