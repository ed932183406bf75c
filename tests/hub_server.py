"""A server on this machine that answers as a Hugging Face hub does, with faults on request."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"

Answer = tuple[int, bytes, dict[str, str]]


class Hub:
    """Repositories by name, each with one commit that is ``main`` and ``v1``.

    ``org/broken`` loses the connection in the middle of the weights, once; ``org/short`` sends half
    of them; ``org/wrong`` sends others of the same size; ``secret/*`` is gated. Uploads make
    repositories.
    """

    def __init__(self, folder: Path) -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        files["notes.bin"] = b"not asked for"
        wrong = bytearray(files[WEIGHTS])
        wrong[-3] ^= 1
        self.repos = {name: dict(files) for name in ("org/name", "org/broken", "org/short")}
        self.repos["org/wrong"] = {**files, WEIGHTS: bytes(wrong)}
        self.breaks_left = 1
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.ranges: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                hub.serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815, as http.server calls them

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(request.path).path)
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests.append(f"{request.command} {path}")
        self.tokens.append(request.headers.get("authorization"))
        if request.command in ("GET", "HEAD"):
            status, body, headers = self.read(path)
        else:
            status, body, headers = self.write(path, sent)
        repo = "/".join(path.split("/")[1:3])
        size = len(body)
        asked = request.headers.get("Range", "")
        if asked and status == 200:
            self.ranges.append(f"{repo} {asked}")
            first = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            status, body = 206, body[first:]
        loses = request.command == "GET" and path.endswith(WEIGHTS)
        if loses and repo == "org/short":
            body = body[: size // 2]
        request.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if loses and repo == "org/broken" and self.breaks_left:
            self.breaks_left -= 1
            request.wfile.write(body[: size // 3])
            request.close_connection = True
        elif request.command != "HEAD":
            request.wfile.write(body)

    def read(self, path: str) -> Answer:
        """What is at an address."""
        parts = path.strip("/").split("/")
        place = parts[2:] if parts[:2] == ["api", "models"] else parts
        repo = "/".join(place[:2])
        if repo.startswith("secret/"):
            return 401, b"", {"X-Error-Code": "GatedRepo"}
        if repo not in self.repos:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        files = self.repos[repo]
        match place[2:]:
            case ["revision", "main" | "v1" | "dev"] | []:
                siblings = [{"rfilename": name} for name in files]
                return _json({"id": repo, "sha": COMMIT, "siblings": siblings})
            case ["tree", *_]:
                return _json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                        for name, data in files.items()
                    ]
                )
            case ["resolve", _, name] if name in files:
                return 200, files[name], {"ETag": f'"{_oid(files[name])}"'}
            case ["resolve", _, _]:
                return 404, b"", {"X-Error-Code": "EntryNotFound"}
        return 404, b"", {"X-Error-Code": "RevisionNotFound"}

    def write(self, path: str, sent: bytes) -> Answer:
        """Take an upload."""
        parts = path.strip("/").split("/")
        if "secret" in path or b'"secret"' in sent:
            return 403, b'{"error": "you may not"}', {"X-Error-Message": "you may not"}
        if path == "/api/repos/create":
            content = json.loads(sent)
            repo = f"{content.get('organization') or 'org'}/{content['name']}"
            self.repos.setdefault(repo, {})
            return _json({"url": f"{self.url}/{repo}", "name": repo})
        if path == "/api/validate-yaml":  # the front matter of a card
            return _json({"errors": [], "warnings": []})
        if parts[0] == "large":
            self.large[parts[1]] = sent
            return 200, b"", {}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}}
                for o in json.loads(sent)["objects"]
            ]
            return _json({"transfer": "basic", "objects": objects})
        repo = "/".join(parts[2:4])
        match "".join(parts[4:5]):
            case "branch":
                return 201, b"", {}
            case "preupload":
                names = [file["path"] for file in json.loads(sent)["files"]]
                return _json({"files": [{**_mode(n), "path": n} for n in names]})
            case "commit":
                for line in sent.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        self.repos[repo][value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        self.repos[repo][value["path"]] = self.large[value["oid"]]
                url = f"{self.url}/{repo}/commit/{COMMIT}"
                return _json({"commitUrl": url, "commitOid": COMMIT, "success": True})
        return 404, b"", {}


def _mode(name: str) -> dict[str, Any]:
    large = name.endswith(".safetensors")
    return {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


def _json(content: Any) -> Answer:
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
