"""Downloading and publishing, against a server on this machine that answers as a hub does."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub

from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.hub import save_pretrained

# HF_ENDPOINT is read when huggingface_hub is imported, so a new interpreter asks.
PROGRAM = """
import sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1024  # a download goes on at a whole chunk; these files are small
from spadnet.weights.hub import load_tokenizer
from spadnet.weights.publish import push_to_hub

for line in sys.stdin:
    verb, source, *options = line.strip().split(" ", 2)
    options = eval(options[0]) if options else {}
    try:
        if verb == "push":
            print(push_to_hub(source, **options))
        else:
            tokenizer = load_tokenizer(source, **options)
            print(float(sum(v.double().sum() for v in tokenizer.state_dict().values())))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
"""


def ask(lines: dict[str, str], *, url: str, cache: Path, **settings: str) -> None:
    """Run one command per line; each must answer one line of text that starts as expected."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), **settings}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2", "HF_TOKEN": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == len(lines), f"an answer took more than one line: {answers}"
    for (line, expected), answer in zip(lines.items(), answers, strict=True):
        assert answer.startswith(expected), (line, answer)


@pytest.fixture
def model() -> Tokenizer:
    return Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8)


@pytest.fixture
def hub(model: Tokenizer, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(save_pretrained(model, tmp_path / "model"))
    yield hub
    hub.close()


def test_hub_is_asked_once_faults_are_one_line_and_uploads_come_back(
    hub: Hub, model: Tokenizer, tmp_path: Path
) -> None:
    total = str(float(sum(v.double().sum() for v in model.state_dict().values())))
    folder, cache = tmp_path / "model", tmp_path / "cache"
    new = f"{hub.url}/org/new/commit/{COMMIT}"
    online = {
        # revision, token, cache
        'load hf-hub:org/name@v1 {"token": "hf_abc"}': total,
        'load org/name@v1 {"local_files_only": True}': total,
        f'load org/name@{COMMIT} {{"local_files_only": True}}': total,
        'load org/name {"local_files_only": True}': "OSError: hf-hub:org/name: not in the cache",
        f'load org/name {{"revision": "v1", "cache_dir": "{tmp_path / "other"}"}}': total,
        # faults
        "load org/name@v9": "ValueError: hf-hub:org/name@v9: the repository has no such revision",
        "load org/other": "ValueError: hf-hub:org/other: no such folder here and no such reposit",
        "load secret/name": "ValueError: hf-hub:secret/name: access is restricted",
        "load hf-hub:org--name/x": "ValueError: hf-hub:org--name/x: ",
        "load org/broken": total,
        "load org/short": "OSError: hf-hub:org/short: download failed: Consistency check failed",
        "load org/wrong": "ValueError: hf-hub:org/wrong: ",
        'load org/wrong {"local_files_only": True}': "OSError: hf-hub:org/wrong: ",
        # uploads
        f'push {folder} {{"repo": "org/new", "token": "hf_up"}}': new,
        "load org/new": total,
        f'push {folder} {{"repo": "org/new@dev", "private": True}}': new,
        f'push {tmp_path} {{"repo": "org/new"}}': f"ValueError: {tmp_path}: not a chec",
        f'push {folder} {{"repo": "name"}}': "ValueError: name: a hub id has the form",
        f'push {folder} {{"repo": "secret/x"}}': "OSError: hf-hub:secret/x: upload failed: ",
    }
    ask(online, url=hub.url, cache=cache)
    assert not any("notes.bin" in request for request in hub.requests)
    downloads = [r for r in hub.requests if r.startswith("GET /org/name/resolve/")]
    assert len(downloads) == 2 * 4  # once for each cache, the four files of a folder
    assert {"Bearer hf_abc", "Bearer hf_up"} <= set(hub.tokens)
    (range_asked,) = hub.ranges  # the rest of what was lost, and not all of it again
    assert re.fullmatch(r"org/broken bytes=[1-9]\d+-", range_asked)
    assert set(hub.repos["org/new"]) == {path.name for path in folder.iterdir()}
    assert any(r.startswith("POST /api/models/org/new/branch/dev") for r in hub.requests)
    seen = len(hub.requests)
    offline = {
        "load org/name@v1": total,
        "load org/broken": total,
        "load org/short": "OSError: hf-hub:org/short: not in the cache",
        "load org/other": "OSError: hf-hub:org/other: not in the cache",
        f'push {folder} {{"repo": "org/new"}}': "OSError: hf-hub:org/new: upload failed: HF_HUB",
    }
    ask(offline, url=hub.url, cache=cache, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == seen
