"""A gRPC service with all four kinds of calls, on messages that are plain bytes.

    python3 grpc_server.py PORT

An interceptor notes each call's x-id in LOG, and rejects calls without the gateway's x-openid if
IDENTITY is set. With CERT and KEY it speaks TLS. On SIGTERM it finishes what is in flight.
"""

import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

NAME, LOG, IDENTITY = (os.environ.get(name, "") for name in ("NAME", "LOG", "IDENTITY"))


class Noted(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        metadata = dict(details.invocation_metadata)
        if LOG and "x-id" in metadata:
            with open(LOG, "a") as log:
                log.write(f"{metadata['x-id']} {details.method}\n")
        if IDENTITY and not metadata.get("x-openid"):
            refuse = lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no identity")
            return grpc.unary_unary_rpc_method_handler(refuse)
        return continuation(details)


def trailers(context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata(
        (("x-server", NAME), ("x-seen-openid", metadata.get("x-openid", "")), ("x-bin-bin", b"\x00\xff"))
    )


def get(request, context):
    trailers(context)
    time.sleep(random.uniform(0.002, 0.01))
    return request


def get_list(request, context):
    trailers(context)
    for number in range(int(request)):
        yield b"%d" % number


def put(requests, context):
    trailers(context)
    count = length = 0
    for request in requests:
        count, length = count + 1, length + len(request)
    return b"%d %d" % (count, length)


def chat(requests, context):
    trailers(context)
    for request in requests:
        yield request


def fail(request, context):
    trailers(context)
    context.abort(grpc.StatusCode.NOT_FOUND, "no such order: 50 % off, é")


def deadline(request, context):
    """Milliseconds that are left, after waiting for as many as the request says."""
    left = context.time_remaining()
    time.sleep(int(request) / 1000)
    return b"%d" % (1000 * left) if left is not None and left < 1e6 else b"none"


class Orders(grpc.GenericRpcHandler):
    methods = {
        "/shop.Orders/Get": grpc.unary_unary_rpc_method_handler(get),
        "/shop.Orders/List": grpc.unary_stream_rpc_method_handler(get_list),
        "/shop.Orders/Put": grpc.stream_unary_rpc_method_handler(put),
        "/shop.Orders/Chat": grpc.stream_stream_rpc_method_handler(chat),
        "/shop.Orders/Fail": grpc.unary_unary_rpc_method_handler(fail),
        "/shop.Orders/Deadline": grpc.unary_unary_rpc_method_handler(deadline),
    }

    def service(self, details):
        return self.methods.get(details.method)


options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
server = grpc.server(ThreadPoolExecutor(64), handlers=[Orders()], interceptors=[Noted()], options=options)
address = f"127.0.0.1:{sys.argv[1]}"
if "CERT" in os.environ:
    key, certificate = (open(os.environ[name], "rb").read() for name in ("KEY", "CERT"))
    server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
else:
    server.add_insecure_port(address)
server.start()
ends = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ends.set())
ends.wait()
server.stop(10).wait()
