"""gRPC: all four kinds of calls through the gateway, its errors as statuses, and deadlines."""

import time

import grpc

from gateway import Authority, Gateway, free_port, route, upstream
from services import grpc_server


class WithToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """As apps add their token to every call."""

    def __init__(self, token):
        self.token = token

    def continued(self, continuation, details, message):
        metadata = [*(details.metadata or ()), ("x-3rd-session", self.token), ("x-openid", "mallory")]
        return continuation(details._replace(metadata=metadata), message)

    def intercept_unary_unary(self, continuation, details, message):
        return self.continued(continuation, details, message)

    intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = intercept_unary_unary


def channel(port, token=None):
    plain = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", 64 << 20)])
    return grpc.intercept_channel(plain, WithToken(token)) if token else plain


def status_of(call):
    """Name of the status, its message and its trailers."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details(), dict(error.trailing_metadata() or ())
    return "OK", "", {}


def all_calls(gateway, token, openid):
    """What is not as it should be."""
    wrong = []

    def expect(what, got, wanted):
        if got != wanted:
            wrong.append(f"{what}: {got!r}, not {wanted!r}"[:200])

    with channel(gateway.port, token) as orders:
        reply, call = orders.unary_unary("/shop.Orders/Get").with_call(b"an order", timeout=20)
        expect("unary", reply, b"an order")
        seen = dict(call.trailing_metadata())
        expect("the identity", seen.get("x-seen-openid"), openid)
        expect("a binary trailer", seen.get("x-bin-bin"), b"\x00\xff")
        reply = list(orders.unary_stream("/shop.Orders/List")(b"1000", timeout=20))
        expect("server streaming", reply, [b"%d" % number for number in range(1000)])
        reply = orders.stream_unary("/shop.Orders/Put")((b"a" * 10_000 for _ in range(500)), timeout=20)
        expect("client streaming", reply, b"500 5000000")
        sent = [b"%d" % number for number in range(200)]
        expect("bidirectional", list(orders.stream_stream("/shop.Orders/Chat")(iter(sent), timeout=20)), sent)
        big = b"b" * (8 << 20)
        expect("8 MiB", orders.unary_unary("/shop.Orders/Get")(big, timeout=30) == big, True)
        code, words, seen = status_of(lambda: orders.unary_unary("/shop.Orders/Fail")(b"", timeout=20))
        expect("an error of the service", (code, words), ("NOT_FOUND", "no such order: 50 % off, é"))
        expect("its trailers", seen.get("x-seen-openid"), openid)
        expect(
            "no such method",
            status_of(lambda: orders.unary_unary("/shop.Orders/None")(b"", timeout=20))[0],
            "UNIMPLEMENTED",
        )
    return wrong


def grpc_calls(world):
    authority = Authority(world.work / "authority")
    certificate, key = authority.issue()
    plain, _, _ = grpc_server(world, "plain", IDENTITY=1)
    secure, _, _ = grpc_server(world, "secure", IDENTITY=1, CERT=certificate, KEY=key)
    h2 = 'protocol = "h2"\n'
    for kind, section in (
        ("h2c", upstream("orders", [plain], h2)),
        ("TLS", upstream("orders", [secure], h2, tls=f'server_name = "localhost"\nca_file = "{authority.file}"')),
    ):
        sections = section + upstream("nobody", [free_port()], h2)
        sections += route("/", "orders", 'max_body = "32MiB"\n', auth="required")
        sections += route("/shop.Nobody", "nobody") + route(
            "/shop.Orders/Deadline", "orders", 'read_timeout = "5s"', auth="required"
        )
        gateway = Gateway(world.wxgate, world.work / kind, sections)
        wrong = all_calls(gateway, gateway.login(), gateway.openid())
        world.promise(
            f"grpcio over {kind}: four kinds of calls, identity, trailers, errors",
            not wrong,
            "; ".join(wrong) or "9 of 9 as sent",
        )

    token = gateway.login()
    with channel(gateway.port, token) as orders, channel(gateway.port) as stranger:
        code, words, _ = status_of(lambda: stranger.unary_unary("/shop.Orders/Get")(b"", timeout=20))
        world.promise("a call without a token is UNAUTHENTICATED", code == "UNAUTHENTICATED", f"{code}, {words}")
        code, words, _ = status_of(lambda: stranger.unary_unary("/shop.Nobody/Get")(b"", timeout=20))
        world.promise("a service that is down is UNAVAILABLE", code == "UNAVAILABLE", f"{code}, {words}")
        code, words, _ = status_of(
            lambda: stranger.stream_stream("/shop.Nobody/Chat")(iter([b"a"]), timeout=20).__next__()
        )
        world.promise("a bidirectional call to a service that is down too", code == "UNAVAILABLE", f"{code}, {words}")
        left = int(orders.unary_unary("/shop.Orders/Deadline")(b"0", timeout=2))
        world.promise("grpc-timeout arrives at the service", 1000 < left <= 2050, f"{left} of 2000 ms")
        began = time.monotonic()
        code, words, _ = status_of(lambda: orders.unary_unary("/shop.Orders/Deadline")(b"3000", timeout=0.5))
        world.promise(
            "a deadline ends a call", code == "DEADLINE_EXCEEDED", f"{code} after {time.monotonic() - began:.2f} s"
        )
        # Without a deadline of its own the call ends with the route's.
        began = time.monotonic()
        code, words, _ = status_of(lambda: orders.unary_unary("/shop.Orders/Deadline")(b"9000"))
        took = time.monotonic() - began
        world.promise(
            "the route's timeout is DEADLINE_EXCEEDED",
            code == "DEADLINE_EXCEEDED" and 4.5 < took < 5.5,
            f"{code} after {took:.2f} s, of 5",
        )


SCENARIOS = [grpc_calls]
