"""Downloading, against a server on this machine that answers as a hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.hub import save_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository ``org/name`` with one commit, served as the hub serves it."""

    def __init__(self, folder: Path) -> None:
        self.files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.files["notes.bin"] = b"not asked for"
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815, the name that http.server calls

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        self.tokens.append(request.headers.get("authorization"))
        body, headers, status = b"", {"X-Repo-Commit": COMMIT}, 200
        if path.startswith("/api/models/org/name/tree/"):
            body = json.dumps(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": self.oid(data)}
                    for name, data in self.files.items()
                ]
            ).encode()
        elif path in ("/api/models/org/name/revision/v1", "/api/models/org/name/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith("/org/name/resolve/") and (name := path.split("/")[-1]) in self.files:
            body = self.files[name]
            headers["ETag"] = f'"{self.oid(body)}"'
        else:
            status = 401 if "/secret/" in path else 404
            gone = "RevisionNotFound" if "/org/name/" in path else "RepoNotFound"
            headers["X-Error-Code"] = "GatedRepo" if "/secret/" in path else gone
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    @staticmethod
    def oid(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()


# HF_ENDPOINT is read when huggingface_hub is imported, so a new interpreter asks.
PROGRAM = """
import sys
from spadnet.weights.hub import load_tokenizer

for line in sys.stdin:
    source, _, options = line.strip().partition(" ")
    try:
        tokenizer = load_tokenizer(source, **eval(options or "{}"))
        print(float(sum(v.double().sum() for v in tokenizer.state_dict().values())))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def ask(lines: list[str], *, url: str, cache: Path) -> list[str]:
    """Load one source per line; return what came of each, one line of text."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_download_then_cache_then_faults(tmp_path: Path) -> None:
    model = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8)
    total = str(float(sum(v.double().sum() for v in model.state_dict().values())))
    hub, cache = Hub(save_pretrained(model, tmp_path / "model")), tmp_path / "cache"
    lines = {
        'hf-hub:org/name@v1 {"token": "hf_abc"}': total,
        'org/name@v1 {"local_files_only": True}': total,
        f'org/name@{COMMIT} {{"local_files_only": True}}': total,
        'org/name {"local_files_only": True}': "OSError: hf-hub:org/name: not in the cache",
        "org/name@v9": "ValueError: hf-hub:org/name@v9: the repository has no such revision",
        "org/other": "ValueError: hf-hub:org/other: no such folder here and no such repository",
        "secret/name": "ValueError: hf-hub:secret/name: access is restricted",
        "hf-hub:org--name/x": "ValueError: hf-hub:org--name/x: ",
    }
    try:
        answers = ask(list(lines), url=hub.url, cache=cache)
    finally:
        hub.server.shutdown()
        hub.server.server_close()
    assert len(answers) == len(lines), "an answer took more than one line"
    for line, expected, answer in zip(lines, lines.values(), answers, strict=True):
        assert answer.startswith(expected), (line, answer)
    assert not any("notes.bin" in request for request in hub.requests)
    downloads = [request for request in hub.requests if request.startswith("GET /org/name/res")]
    assert len(downloads) == 3
    assert "Bearer hf_abc" in hub.tokens
