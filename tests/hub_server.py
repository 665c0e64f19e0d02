"""A small server that speaks as much of the Hugging Face hub's protocol as its client needs to fetch a model.

In a shell: `python tests/hub_server.py 8000 some/bert=FOLDER`, then `HF_ENDPOINT=http://127.0.0.1:8000`; a line on
stdin is a mode of `HubServer.mode`, or `NAME=FOLDER` for a new commit of main.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".h5", ".bin")  # what a repository keeps in LFS


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories of local folders.

    Attributes:
      mode: how it answers: "" well; `gated`, `denied`, `token`, `429`, `500`, `portal` (a login page, 200), `firewall`
        (a page, 403), `hang` (accepts and never answers), `drip` (an answer byte by byte), `stall` (files stop
        halfway), `hang_files` (commits are answered, files never), `corrupt`, `corrupt_once` (a large file with one
        byte changed), `cut` (large files end early).
      calls: (method, path) of each request, in order.
      refs: {name: {branch or tag: commit}}.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.mode = ""
        self.calls: list[tuple[str, str]] = []
        self.refs: dict[str, dict[str, str]] = {}
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.closing = threading.Event()

    def commit(self, name: str, folder: Path, *branches: str) -> str:
        """Makes a folder's files the latest commit of branches (of main if none is named); gives its digits."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        told = [(file, hashlib.sha256(content).hexdigest()) for file, content in files.items()]
        sha = hashlib.sha1(json.dumps([name, told]).encode()).hexdigest()
        self.commits[name, sha] = files
        for branch in branches or ("main",):
            self.refs.setdefault(name, {})[branch] = sha
        return sha

    def paths(self, word: str = "") -> list[str]:
        """The paths asked for that hold a word, HEAD and GET of one once."""
        return list(dict.fromkeys(path for _, path in self.calls if word in path))

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        mode, file = self.server.mode, "resolve" in parts or parts[0] == "cdn"
        self.server.calls.append((self.command, url.path))
        if mode == "hang" or (mode == "hang_files" and file):
            self.server.closing.wait(600)
        elif mode == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.closing.wait(0.2):
                self.wfile.write(b".")
        elif mode == "portal":
            self._send(200, b"<html>Log in to this network</html>", {"Content-Type": "text/html"})
        elif mode == "firewall":
            self._send(403, b"<html>Not from here</html>", {"Content-Type": "text/html"})
        elif mode in ("429", "500"):
            self._send(int(mode), b"", {"X-Request-Id": "1"})
        elif mode == "token":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif mode == "denied":
            self._refuse(403, "", "Your token does not reach gated repositories")
        elif mode == "gated" and file:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        elif parts[:2] == ["api", "models"]:
            self._tell_commit(parts[2:], "blobs" in parse_qs(url.query))
        elif parts[0] == "cdn":
            self._send_content(parts[3], self.server.commits["/".join(parts[1:-2]), parts[-2]][parts[-1]], parts)
        elif "resolve" in parts:
            self._send_file(parts)
        else:
            self._send(404, b"", {})

    def _find(self, name: str, revision: str) -> str | None:
        """The commit; answers with the hub's errors where there is none."""
        if name not in self.server.refs:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif (sha := self.server.refs[name].get(revision, revision)) in (
            s for n, s in self.server.commits if n == name
        ):
            return sha
        else:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _tell_commit(self, parts: list[str], blobs: bool) -> None:
        at = parts.index("revision") if "revision" in parts else len(parts)
        name, revision = "/".join(parts[:at]), "/".join(parts[at + 1 :]) or "main"
        if (sha := self._find(name, revision)) is None:
            return
        files = []
        for file, content in self.server.commits[name, sha].items():
            told: dict[str, object] = {"rfilename": file}
            if blobs:
                told |= {"size": len(content), "blobId": _blob(content)}
                if file.endswith(LARGE):
                    told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content),
                                   "pointerSize": 134}  # fmt: skip
            files.append(told)
        content = json.dumps({"_id": "1", "id": name, "modelId": name, "sha": sha, "private": False, "siblings": files})
        self._send(200, content.encode(), {"Content-Type": "application/json"})

    def _send_file(self, parts: list[str]) -> None:
        at = parts.index("resolve")
        name, revision, file = "/".join(parts[:at]), parts[at + 1], parts[at + 2]
        if (sha := self._find(name, revision)) is None:
            return
        content = self.server.commits[name, sha].get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        elif file.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            self._send(302, b"", {"X-Repo-Commit": sha, "X-Linked-ETag": f'"{digest}"', "ETag": '"other"',
                                  "X-Linked-Size": str(len(content)), "X-Xet-Hash": digest,
                                  "X-Xet-Refresh-Route": f"{self.server.url}/xet",
                                  "Location": f"{self.server.url}/cdn/{name}/{sha}/{file}"})  # fmt: skip
        else:
            headers = {"X-Repo-Commit": sha, "ETag": f'"{_blob(content)}"'}
            if self.server.mode == "stall" and self.command == "GET":
                self._stall(content, headers)
            else:
                self._send(200, content, headers)

    def _send_content(self, name: str, content: bytes, parts: list[str]) -> None:
        mode = self.server.mode
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if mode in ("corrupt", "corrupt_once"):
            content = content[:-1] + bytes([content[-1] ^ 1])
            self.server.mode = "" if mode == "corrupt_once" else mode
        if mode == "stall":
            self._stall(content, {})
        elif mode == "cut":
            self._send(200, content[: len(content) // 2], {})
        elif start:
            self._send(206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
        else:
            self._send(200, content, {})

    def _stall(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.server.closing.wait(600)

    def _refuse(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (more or {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> str:
    """What git names a file's content by."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


if __name__ == "__main__":
    with HubServer(int(sys.argv[1])) as server:
        for argument in sys.argv[2:]:
            name, folder = argument.split("=", 1)
            print(name, server.commit(name, Path(folder)), flush=True)
        for line in sys.stdin:
            if "=" in line:
                name, folder = line.strip().split("=", 1)
                print(name, server.commit(name, Path(folder)), flush=True)
            else:
                server.mode = line.strip()
            print(server.calls, flush=True)
            server.calls.clear()
