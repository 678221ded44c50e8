"""A service that believes its environment, as WSGI folds headers into it, and writes down what
it believed: one line of JSON a request, in the file that it is given."""

import json
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def believe(environ, start_response):
    openid = environ.get("HTTP_X_OPENID", "")
    target = environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else "")
    seen = {
        "id": environ.get("HTTP_X_REQUEST_ID", ""),
        "openid": openid,
        "line": f"{environ['REQUEST_METHOD']} {target} {environ['SERVER_PROTOCOL']}",
    }
    with open(sys.argv[1], "a") as log:
        log.write(json.dumps(seen) + "\n")
    body = json.dumps({"openid": [openid], "target": target}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


server = make_server("127.0.0.1", 0, believe, handler_class=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
