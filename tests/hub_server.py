"""A stand-in for the Hugging Face hub on this machine: the endpoints through which data sets are found and read."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """Serves data sets whose commits are dictionaries of file names and bytes.

    Attributes:
        commits: By data set, by revision: the commit's hash and its files.
        cut_after: Files are cut after so many bytes, as if the connection broke; None serves them whole.
        num_bytes: Of data files, served so far.
        asked: Paths asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.cut_after: int | None = None
        self.num_bytes, self.asked = 0, list[str]()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, files: dict[str, bytes], *revisions: str) -> str:
        """Make a commit the newest, and that of some tags; its hash."""
        sha = hashlib.sha1(json.dumps({key: value.hex() for key, value in files.items()}).encode()).hexdigest()
        for revision in ("main", sha, *revisions):
            self.commits.setdefault(name, {})[revision] = (sha, files)
        return sha


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._api(urlsplit(self.path).path, body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/"):
            return self._api(path)
        if not path.startswith("/datasets/"):
            return self._missing("EntryNotFound")
        name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        sha, files = self.server.commits.get(name, {}).get(revision, ("", {}))
        if not sha:
            return self._missing("RepoNotFound" if name not in self.server.commits else "RevisionNotFound")
        if file not in files:
            return self._missing("EntryNotFound", sha)
        self._send_file(files[file], sha)

    def _api(self, path: str, body: bytes = b"") -> None:
        name, *rest = path.removeprefix("/api/datasets/").rsplit("/revision/", 1)
        for word in ("/tree/", "/paths-info/"):
            if word in path:
                name, _, after = path.removeprefix("/api/datasets/").partition(word)
                rest = [after.partition("/")[0]]
        if name not in self.server.commits:
            return self._missing("RepoNotFound")
        sha, files = self.server.commits[name].get(rest[0] if rest else "main", ("", {}))
        if not sha:
            return self._missing("RevisionNotFound")
        entries = [
            {"type": "file", "path": key, "size": len(value), "oid": hashlib.sha1(value).hexdigest()}
            for key, value in files.items()
        ]
        folders = {parent.as_posix() for key in files for parent in PurePosixPath(key).parents} - {"."}
        entries += [{"type": "directory", "path": folder, "size": 0, "oid": "0"} for folder in sorted(folders)]
        if "/tree/" in path:
            under = PurePosixPath(path.partition("/tree/")[2].partition("/")[2])
            is_deep = "recursive=true" in self.path.lower()
            parents = [(entry, list(PurePosixPath(str(entry["path"])).parents)) for entry in entries]
            return self._json([entry for entry, above in parents if under in (above if is_deep else above[:1])])
        if "/paths-info/" in path:
            wanted = json.loads(body)["paths"]
            return self._json([entry for entry in entries if entry["path"] in wanted])
        self._json({"id": name, "sha": sha, "siblings": [{"rfilename": key} for key in files], "private": False})

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, code: str, sha: str = "") -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if sha:
            self.send_header("X-Repo-Commit", sha)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, data: bytes, sha: str) -> None:
        start, stop, status = 0, len(data), 200
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.cut_after
        part = data[start : stop if limit is None else min(stop, max(start, limit))]
        self.server.num_bytes += len(part)
        self.wfile.write(part)
        if len(part) < stop - start:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """One that runs meanwhile."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(server: HubServer, monkeypatch: object, cache: Path) -> None:
    """Let ``datasets`` and ``huggingface_hub`` of this process ask the stand-in, with a cache of their own."""
    import datasets
    import huggingface_hub

    constants = huggingface_hub.constants
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for place, name, value in (
        (constants, "ENDPOINT", server.url),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        (constants, "HF_HUB_CACHE", str(cache / "hub")),
        (constants, "HF_HUB_OFFLINE", False),
        (datasets.config, "HF_HUB_OFFLINE", False),
        (datasets.config, "HF_ENDPOINT", server.url),
        (datasets.config, "HF_DATASETS_CACHE", cache / "datasets"),
        (datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0),
        (datasets.config, "STREAMING_READ_MAX_RETRIES", 2),
    ):
        monkeypatch.setattr(place, name, value)  # type: ignore[attr-defined]
