"""Tells each visitor a number that nobody else gets. Python's standard library only."""

import hashlib
import itertools
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = os.environ.get("GREETING", "Hello")
SALT = os.environ["COUNTER_SALT"]
COUNT = itertools.count(1)


class Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = hashlib.sha256(f"{SALT} {os.getpid()} {next(COUNT)}".encode()).hexdigest()[:8]
        body = f"{GREETING} {name}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        print(f"the salt has {len(SALT)} characters")
    else:
        ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Counter).serve_forever()
