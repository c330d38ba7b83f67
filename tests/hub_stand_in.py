"""A hub on 127.0.0.1: repositories in memory, served with the routes and headers that huggingface_hub reads."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1000  # bytes from which a file is served as git-lfs files are: with its SHA-256


@dataclass
class Repository:
    """Files by path, at one commit, which is what every known revision names."""

    files: dict[str, bytes] = field(repr=False)
    revisions: tuple[str, ...] = ("main",)
    commit: str = "c" * 40
    false_digests: dict[str, str] = field(default_factory=dict)  # what the hub claims, where it errs
    lost: tuple[str, ...] = ()  # listed, but not there
    gated: bool = False


@dataclass
class StandIn:
    """What is served, how it fails, and what was asked."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict, repr=False)
    cuts: list[int] = field(default_factory=list)  # the next bodies end after so many bytes
    halfway: Callable[[], None] | None = None  # called in the middle of the next body, which ends there
    refuse: int | None = None  # a status that answers everything
    portal: bool = False  # answer with a web page, as hotel networks do
    asked: list[str] = field(default_factory=list)  # method and path
    sent: int = 0  # bytes of large files' bodies

    def bodies(self) -> list[str]:
        """List the files whose bodies were asked for."""
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[StandIn]:
    """Serve repositories within."""
    stand_in = StandIn(repositories=repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stand_in))
    server.daemon_threads = True
    stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.route()

        def do_HEAD(self) -> None:
            self.route()

        def log_message(self, *arguments: object) -> None:
            pass

        def route(self) -> None:
            path = unquote(urlsplit(self.path).path)
            stand_in.asked.append(f"{self.command} {path}")
            if stand_in.refuse is not None:
                return self.fail(stand_in.refuse, "")
            if stand_in.portal:
                return self.send(200, b"<html>Welcome</html>", {"Content-Type": "text/html"})
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                return self.tell(name, revision or "main")
            if path.startswith("/cdn/"):
                return self.send_body(path.removeprefix("/cdn/"))
            name, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            return self.resolve(name, revision, file)

        def find(self, name: str, revision: str) -> Repository | None:
            repository = stand_in.repositories.get(name)
            if repository is None:
                self.fail(404, "RepoNotFound")
            elif repository.gated and self.headers.get("authorization") != "Bearer hf_right":
                self.fail(401, "GatedRepo")
            elif revision not in (*repository.revisions, repository.commit):
                self.fail(404, "RevisionNotFound")
            else:
                return repository
            return None

        def tell(self, name: str, revision: str) -> None:
            repository = self.find(name, revision)
            if repository is None:
                return
            siblings = []
            for file, content in repository.files.items():
                facts: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": "b" * 40}
                if len(content) >= LARGE:
                    digest = repository.false_digests.get(file, _sha256(content))
                    facts["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
                siblings.append(facts)
            answer = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings}
            self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def resolve(self, name: str, revision: str, file: str) -> None:
            repository = self.find(name, revision)
            if repository is None:
                return None
            if file not in repository.files or file in repository.lost:
                return self.fail(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
            content = repository.files[file]
            digest = repository.false_digests.get(file, _sha256(content))
            headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
            if len(content) < LARGE:
                headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.send(200, content, headers)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            if self.command == "HEAD":
                return self.send(200, content, headers | {"ETag": f'"{digest}"'})
            return self.send(302, b"", headers | {"Location": f"{stand_in.endpoint}/cdn/{name}/{file}"})

        def send_body(self, place: str) -> None:
            owner, name, file = place.split("/", 2)
            content = stand_in.repositories[f"{owner}/{name}"].files[file]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            part = content[start:]
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
            self.send(206 if start else 200, part, headers, cut=stand_in.cuts.pop(0) if stand_in.cuts else None)

        def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

        def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            halfway, stand_in.halfway = (
                (stand_in.halfway, None) if self.path.startswith("/cdn/") else (None, stand_in.halfway)
            )
            if halfway is not None:
                cut = len(body) // 2
            sent = body if cut is None else body[:cut]
            self.wfile.write(sent)
            if self.path.startswith("/cdn/"):
                stand_in.sent += len(sent)
            if cut is not None:
                self.wfile.flush()
                if halfway is not None:
                    halfway()
                self.close_connection = True

    return Handler


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
