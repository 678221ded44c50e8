#!/usr/bin/python3
"""The same service for Apache's mod_cgid."""

import hashlib
import json
import os
import sys

body = sys.stdin.buffer.read(int(os.environ.get("CONTENT_LENGTH") or 0))
seen = {
    "method": os.environ["REQUEST_METHOD"],
    "path": os.environ["REQUEST_URI"],
    "openid": os.environ.get("HTTP_X_OPENID"),
    "host": os.environ["HTTP_HOST"],
    "length": len(body),
    "sha256": hashlib.sha256(body).hexdigest(),
}
print("Content-Type: application/json\n")
print(json.dumps(seen))
