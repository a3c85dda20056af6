"""An application that behaves as badly as its environment tells it to. Python's standard library only."""

import base64
import fcntl
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "version")) as file:
    VERSION = file.read().strip()
BEGAN = time.monotonic()
PIECE = b"0123456789abcdef" * 64
FLAGS = {name: os.environ[name] for name in os.environ if name.startswith("BE_")}


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request, address):
        pass  # people go away; the load counts what it gets


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    timeout = 300

    def log_message(self, *arguments):
        pass

    def answer(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Version", VERSION)
        self.send_header("X-Pid", str(os.getpid()))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        page = getattr(self, "page_" + (url.path.strip("/").replace("/", "_") or "index"), None)
        if page is None:
            self.answer("no such page\n", 404)
        else:
            page(asked)

    def do_POST(self):
        self.answer(self.read_body())

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def page_index(self, asked):
        time.sleep(int(FLAGS.get("BE_LAGGING", "0")) / 1000)
        if fails():
            self.answer(f"version {VERSION} fails\n", 500)
        else:
            self.answer(f"version {VERSION} of process {os.getpid()}\n")

    def page_up(self, asked):
        if "BE_UNHEALTHY" in FLAGS:
            print(f"the check fails because {FLAGS['BE_UNHEALTHY']}", flush=True)
            self.answer(FLAGS["BE_UNHEALTHY"], 503)
        else:
            self.answer("up\n")

    def page_become(self, asked):
        """From now on as if it had been started with this flag."""
        FLAGS[asked["flag"]] = asked.get("value", "somebody asked for it")
        self.answer("changed\n")

    def page_state(self, asked):
        try:
            with open(state(asked["name"]), "rb") as file:
                self.answer(file.read())
        except FileNotFoundError:
            self.answer("no such file\n", 404)

    def page_write(self, asked):
        """Tries to write where nothing may be written."""
        try:
            with open(asked["path"], "w") as file:
                file.write("written")
            self.answer("written\n")
        except OSError as error:
            self.answer(f"{error}\n", 403)

    def page_slow(self, asked):
        time.sleep(int(asked.get("ms", "1000")) / 1000)
        self.answer(f"slow version {VERSION}\n")

    def page_stream(self, asked):
        """So many chunks of a kilobyte, one every few milliseconds."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Version", VERSION)
        self.end_headers()
        for _ in range(int(asked.get("chunks", "10"))):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
            self.wfile.flush()
            time.sleep(int(asked.get("ms", "10")) / 1000)
        self.wfile.write(b"0\r\n\r\n")

    def page_ws(self, asked):
        """A WebSocket that says every text back (frames below 126 bytes)."""
        key = self.headers.get("Sec-WebSocket-Key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            size = head[1] & 127
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(size)))
            if head[0] & 15 == 8:
                break
            self.wfile.write(bytes([head[0], len(text)]) + text)
            self.wfile.flush()

    def page_env(self, asked):
        value = os.environ.get(asked["name"])
        self.answer(value if value is not None else "", 200 if value is not None else 404)

    def page_call(self, asked):
        """Calls another service by the address in the environment, or by the one asked for, and answers as that did."""
        call = urllib.request.Request((asked.get("at") or os.environ[asked["url"]]) + asked.get("path", "/"))
        try:
            with urllib.request.urlopen(call, timeout=20) as answer:
                self.answer(answer.read(), answer.status)
        except urllib.error.HTTPError as error:
            self.answer(error.read(), error.code, [("X-Refused", error.headers.get("Rung-Error", ""))])
        except urllib.error.URLError as error:
            self.answer(f"{error.reason}\n", 424)

    def page_headers(self, asked):
        self.answer("".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items()))

    def page_crash(self, asked):
        print("crashing because somebody asked for it", flush=True)
        os._exit(int(asked.get("code", "3")))

    def page_fork(self, asked):
        """A child that nobody waits for, in a session of its own, deaf to SIGTERM."""
        code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        self.answer(f"{child.pid}\n")

    def page_print(self, asked):
        print(asked.get("text", ""), flush=True)
        self.answer("printed\n")

    def page_bytes(self, asked):
        """A line that is no text."""
        os.write(1, bytes.fromhex(asked["hex"]) + b"\n")
        self.answer("printed\n")

    def page_flood(self, asked):
        """As fast as it can."""
        lines = (b"x" * 999 + b"\n") * 100
        for _ in range(int(asked["megabytes"]) * 10):
            os.write(1, lines)
        print("the flood is over", flush=True)
        self.answer("flooded\n")

    def page_count(self, asked):
        """One more, in the file that one process alone may own."""
        with COUNT_LOCK:
            self.answer(f"{add_one()}\n")


COUNT_LOCK = threading.Lock()


ASKED = itertools.count()


def fails():
    """Whether this request is one of those in a hundred that BE_FAILING says, spread evenly."""
    rate = int(FLAGS.get("BE_FAILING", "0"))
    asked = next(ASKED)
    return (asked + 1) * rate // 100 > asked * rate // 100


def state(name):
    return os.path.join(os.environ.get("RUNG_VOLUME_STATE", HERE), name)


def add_one():
    with open(state("count"), "a+") as count:
        count.seek(0)
        number = int(count.read() or "0") + 1
        count.truncate(0)
        count.write(str(number))
    return number


def own_the_state():
    """Holds the lock as long as the process lives; another owner at the same time leaves a mark for ever."""
    lock = open(state("lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with open(state("two-at-a-time"), "a") as mark:
            mark.write(f"{os.getpid()}\n")
        sys.exit("two of me at a time")
    return lock


def release():
    """The release command of the stories."""
    with open(state("released"), "a") as released:
        released.write(f"{VERSION}\n")
    if "BE_RELEASE_FAILS" in FLAGS:
        sys.exit(f"the migration failed because {FLAGS['BE_RELEASE_FAILS']}")
    print(f"migrated to version {VERSION}")


def die_young():
    print("the cache can't be reached", flush=True)
    os._exit(7)


def main():
    if "release" in sys.argv:
        return release()
    if "BE_CRASHING" in FLAGS:
        sys.exit(f"crashed because {FLAGS['BE_CRASHING']}")
    lock = own_the_state() if "BE_EXCLUSIVE" in FLAGS else None
    time.sleep(int(FLAGS.get("BE_SLOW_TO_START", "0")) / 1000)
    if "PORT" not in os.environ:
        print(f"worker {VERSION} runs", flush=True)
        signal.sigwait({signal.SIGTERM})
        return None
    if "BE_DEAF" in FLAGS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = Server((FLAGS.get("BE_LISTENING_AT", "127.0.0.1"), int(os.environ["PORT"])), Handler)
    print(f"version {VERSION} listens on {server.server_port} after {time.monotonic() - BEGAN:.3f} s", flush=True)
    if "BE_SHORT_LIVED" in FLAGS:
        threading.Timer(int(FLAGS["BE_SHORT_LIVED"]) / 1000, die_young).start()
    server.serve_forever()
    return lock


if __name__ == "__main__":
    main()
