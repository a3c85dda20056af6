"""The web service: shows the guestbook and takes new messages."""

import contextlib
import html
import os
import signal
import socket
import sqlite3
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from urllib.parse import parse_qs

import database

HERE = Path(__file__).parent
PAGE = Template((HERE / "page.html").read_text())
STYLE = (HERE / "static" / "style.css").read_bytes()
BODY_MAX = 16 * 1024  # a name and a message of the allowed length, percent-encoded


class Guestbook(ThreadingHTTPServer):
    """One thread a connection. Ends gracefully: idle connections are closed, requests in flight are answered."""

    request_queue_size = 1024
    daemon_threads = False  # server_close() waits for them

    def __init__(self, port: int):
        self.stopping = False
        self._idle: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    @contextlib.contextmanager
    def idle(self, connection: socket.socket):
        """Between two requests of a connection."""
        with self._lock:
            self._idle.add(connection)
            if self.stopping:
                self._wake(connection)
        try:
            yield
        finally:
            with self._lock:
                self._idle.discard(connection)

    def stop(self) -> None:
        with self._lock:
            self.stopping = True
            for connection in self._idle:
                self._wake(connection)
        self.shutdown()
        self.server_close()

    @staticmethod
    def _wake(connection: socket.socket) -> None:
        """Ends the wait for a next request; one that has arrived is still read and answered."""
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # people close their browsers
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept and used again
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # head and body leave in one packet
    timeout = 120  # longer than any proxy keeps an idle connection

    def handle(self) -> None:
        self.close_connection = False
        try:
            while not self.close_connection:
                with self.server.idle(self.connection):
                    if not self.rfile.peek(1):
                        return
                self.handle_one_request()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            database.close()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self.show()
        elif path == "/up":
            database.connection().execute("SELECT count(*) FROM migrations")
            self.answer(HTTPStatus.OK, b"up\n", "text/plain; charset=utf-8")
        elif path == "/static/style.css":
            self.answer(HTTPStatus.OK, STYLE, "text/css; charset=utf-8", {"Cache-Control": "max-age=300"})
        else:
            self.answer(HTTPStatus.NOT_FOUND, b"There is no such page.\n", "text/plain; charset=utf-8")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        form = self.read_form()
        if form is None:
            return
        name, text = form.get("name", [""])[0].strip(), form.get("text", [""])[0].strip()
        if not name or not text:
            self.show(HTTPStatus.UNPROCESSABLE_ENTITY, "Please write both your name and a message.", name, text)
        elif len(name) > 60 or len(text) > 1000:
            self.show(HTTPStatus.UNPROCESSABLE_ENTITY, "That is too long for this book.", name, text)
        else:
            number = database.add_message(database.connection(), name, text)
            print(f"message {number} was written", flush=True)
            self.answer(HTTPStatus.SEE_OTHER, b"", "text/plain; charset=utf-8", {"Location": "/"})

    def read_form(self) -> dict[str, list[str]] | None:
        """The posted form; None when it was refused, which closes the connection, for its body was not read."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_MAX:
            self.close_connection = True
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if length.isdecimal() else HTTPStatus.LENGTH_REQUIRED
            self.answer(status, b"The form is too large or has no length.\n", "text/plain; charset=utf-8")
            return None
        return parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"), keep_blank_values=True)

    def show(self, status: HTTPStatus = HTTPStatus.OK, problem: str = "", name: str = "", text: str = "") -> None:
        connection = database.connection()
        page = render(database.newest_messages(connection), database.favourite_words(connection), problem, name, text)
        self.answer(status, page.encode(), "text/html; charset=utf-8", {"Cache-Control": "no-store"})

    def answer(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Instance", instance())
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        if self.close_connection or self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        """The ingress keeps the access log; errors go through here too, so keep those."""
        if not format.startswith('"%s"'):
            sys.stderr.write(format % args + "\n")


def instance() -> str:
    return os.environ.get("RUNG_INSTANCE") or f"the process on port {os.environ.get('PORT', '?')}"


def render(messages: list[sqlite3.Row], words: list[sqlite3.Row], problem: str, name: str, text: str) -> str:
    e = html.escape  # everything that people wrote goes through it
    shown = [
        f"<article><h2>{e(m['name'])} <time datetime=\"{e(m['written_at'])}\">{e(m['written_at'][:16].replace('T', ' '))}"
        f"</time></h2><p>{e(m['text'])}</p></article>"
        for m in messages
    ]
    favourites = " ".join(f"<b>{e(w['word'])}</b>" for w in words)
    return PAGE.substitute(
        title=e(os.environ.get("PAGE_TITLE", "Guestbook")),
        problem=f'<p class="problem" role="alert">{e(problem)}</p>' if problem else "",
        name=e(name),
        text=e(text),
        words=f'<p class="words">Often heard here: {favourites}</p>' if favourites else "",
        messages="\n".join(shown) or "<article><p>Nobody yet. Be the first!</p></article>",
        instance=e(instance()),
    )


def main() -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before any thread: they inherit it, and sigwait takes them
    server = Guestbook(int(os.environ.get("PORT", "8000")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    signal.sigwait(signals)
    print("stopping: finishing what is in flight", flush=True)
    server.stop()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
