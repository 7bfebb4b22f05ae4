"""A local OpenAI-compatible endpoint that does what a script says, good or bad."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "sk-not-for-anybodys-eyes"


class Stub:
    """A local endpoint; ``script`` names what is done with the i-th request."""

    def __init__(self) -> None:
        self.script: Callable[[int], str] = lambda i: "good"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paid = 0
        self.slow_s = 0.8  # how late a slow answer is; one that drips takes twice as long
        self.lock = threading.Lock()
        self.text = "Fine.\nRating: [[7]]"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    number = len(stub.requests)
                    stub.requests.append(body)
                    stub.headers.append(dict(self.headers))
                getattr(stub, f"do_{stub.script(number)}")(self, body)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def send(self, to: BaseHTTPRequestHandler, status: int, data: bytes, cut: int = 0, **headers: str) -> None:
        """Answer; a whole reply is counted before the client can have it."""
        if status == 200 and not cut and b'"choices"' in data:
            with self.lock:
                self.paid += 1
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name.replace("_", "-"), value)
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        to.wfile.write(data[: len(data) - cut])

    def reply(self, text: object, n: int = 1) -> bytes:
        choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for _ in range(n)]
        return json.dumps({"model": "stub-0", "choices": choices, "usage": {"total_tokens": 9}}).encode()

    def do_good(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, self.reply(self.text, body.get("n", 1)))

    def do_no_rating(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, self.reply("I would rather not say."))

    def do_eleven(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, self.reply("Rating: [[11]]"))

    def do_busy(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 429, b"{}", Retry_After="0")

    def do_broken(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 500, b"<html>oh</html>")

    def do_cut(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, self.reply(self.text), cut=20)

    def do_hang_up(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        to.connection.close()

    def do_error_in_200(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, b'{"error": "overloaded"}')

    def do_slow(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        time.sleep(self.slow_s)

    def do_drip(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        to.send_response(200)
        to.end_headers()
        for _ in range(40):
            to.wfile.write(b" ")
            to.wfile.flush()
            time.sleep(self.slow_s / 20)

    def do_late(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        self.do_good(to, body)

    def do_denied(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 401, json.dumps({"error": f"wrong key {to.headers['Authorization']}"}).encode())

    def do_flagged(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 400, b'{"error": "content policy"}')

    def do_too_long(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 400, b'{"error": "This exceeds the maximum context length of 2048 tokens"}')

    def do_no_model(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 400, b'{"error": "The model `stub` does not exist."}')

    def do_forbidden(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 403, b"{}")

    def do_page(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, b"<html><h1>Welcome</h1></html>", Content_Type="text/html")

    def do_stream(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 200, b'data: {"choices": []}\n\ndata: [DONE]\n\n')

    def do_elsewhere(self, to: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.send(to, 302, b"", Location=f"{self.url}/other")
