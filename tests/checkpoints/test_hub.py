from __future__ import annotations

import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub.utils import close_session

import trocr_jax
from trocr_jax import cli
from trocr_jax.checkpoints import names, store
from trocr_jax.checkpoints.hub import local_folder

EMBEDDED = pathlib.Path(trocr_jax.__file__).parent / "assets" / "trocr-nano-printed"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
SMALL = {
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"
}  # fmt: skip
UNWANTED = {
    ".gitattributes": b"*",
    "README.md": b"# A model",
    "pytorch_model.bin": b"weights",
    "flax_model.msgpack": b"weights",
    "onnx/model.onnx": b"weights",
    "runs/config.json": b"{}",
    "training_args.bin": b"settings",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that downloads need."""

    def do_GET(self):
        self.answer_request()

    def do_HEAD(self):
        self.answer_request()

    def answer_request(self):
        hub = self.server.hub
        path = urlsplit(self.path).path
        hub.requests.append((self.command, path))
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.is_breaking_off:
            return
        if hub.status != 200:
            self.answer(hub.status)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        else:
            self.answer(404)

    def is_refused(self, repository, revision):
        hub = self.server.hub
        if repository not in hub.repositories:
            self.answer(hub.unknown_status, code="RepoNotFound")
        elif revision not in REVISIONS:
            self.answer(404, code="RevisionNotFound")
        else:
            return False
        return True

    def describe(self, repository, kind, revision):
        if self.is_refused(repository, revision):
            return
        files = self.server.hub.repositories[repository]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            content = {"id": repository, "sha": COMMIT, "siblings": siblings}
        else:
            content = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, repository, revision, name):
        if self.is_refused(repository, revision):
            return
        hub = self.server.hub
        body = hub.repositories[repository].get(name)
        if hub.gate_status is not None and self.headers.get("Authorization") != "Bearer hf_good":
            self.answer(hub.gate_status, code="GatedRepo")
        elif body is None:
            self.answer(404, code="EntryNotFound", headers={"X-Repo-Commit": COMMIT})
        else:
            tag = hashlib.sha1(body).hexdigest()
            self.answer(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def answer(self, status, body=b"", headers=None, code=None):
        self.send_response(status)
        for name, value in {**(headers or {}), **({"X-Error-Code": code} if code else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Hub:
    """A model hub on this machine, and what it was asked for."""

    def __init__(self):
        self.repositories = {}
        self.requests, self.tokens = [], []
        self.status, self.unknown_status, self.gate_status = 200, 404, None
        self.is_breaking_off = False
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def add(self, repository, *files, **contents):
        self.repositories[repository] = {name: name.encode() for name in files} | contents

    def fetched(self):
        """Names of the files that were downloaded, not only asked about."""
        found = [re.fullmatch(r"/.+?/.+?/resolve/[^/]+/(.+)", path) for kind, path in self.requests if kind == "GET"]
        return sorted(match[1] for match in found if match)

    def asked(self):
        found = [re.fullmatch(r"/.+?/.+?/resolve/[^/]+/(.+)", path) for _, path in self.requests]
        return {match[1] for match in found if match}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running hub that huggingface_hub in this process takes for the real one, with an empty cache."""
    running = Hub()
    constants = {
        "ENDPOINT": running.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": running.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield running
    close_session()
    running.stop()


@pytest.fixture(scope="module")
def nano():
    """The embedded model's files, and some that nobody needs."""
    return {path.name: path.read_bytes() for path in EMBEDDED.iterdir()} | UNWANTED


@pytest.fixture(scope="module")
def embedded():
    return trocr_jax.TrOCR.from_pretrained()


def torch_weights(ocr):
    return store.to_torch(ocr.params, names.table(ocr.config))


def image():
    sample = np.full((40, 200, 3), 255, np.uint8)
    sample[8:32, 20:180:12] = 0
    return sample


def test_a_model_is_downloaded_and_reads_as_the_embedded_one(hub, nano, embedded):
    hub.repositories["org/nano"] = nano | {"model.safetensors": b"not needed"}
    ocr = trocr_jax.TrOCR.from_pretrained("org/nano")
    assert ocr(image()) == embedded(image())
    assert hub.fetched() == sorted({*SMALL, "flax_model.safetensors"})
    assert hub.asked() == {*SMALL, "flax_model.safetensors"}
    assert set(hub.tokens) == {None}


def test_the_second_load_needs_no_hub(hub, nano, embedded):
    hub.repositories["org/nano"] = nano
    trocr_jax.TrOCR.from_pretrained("org/nano")
    hub.stop()
    hub.requests.clear()
    for options in ({"local_files_only": True}, {}):
        start = time.monotonic()
        assert trocr_jax.TrOCR.from_pretrained("org/nano", **options)(image()) == embedded(image())
        assert time.monotonic() - start < 15
    assert hub.requests == []


def test_a_torch_checkpoint_is_loaded_and_again_without_the_hub(hub, nano, embedded):
    weights = safetensors.numpy.save(torch_weights(embedded))
    hub.repositories["org/torch"] = {k: v for k, v in nano.items() if k != "flax_model.safetensors"} | {
        "model.safetensors": weights
    }
    assert trocr_jax.TrOCR.from_pretrained("org/torch")(image()) == embedded(image())
    assert hub.fetched() == sorted({*SMALL, "model.safetensors"})
    hub.stop()
    start = time.monotonic()
    assert trocr_jax.TrOCR.from_pretrained("org/torch", local_files_only=True)(image()) == embedded(image())
    # Without being told that there is no hub, too: no time must go into asking it again and again.
    assert trocr_jax.TrOCR.from_pretrained("org/torch")(image()) == embedded(image())
    assert time.monotonic() - start < 15


def test_a_checkpoint_in_shards_is_loaded(hub, nano, embedded):
    weights = torch_weights(embedded)
    shards = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    weight_map = {}
    for i, (name, tensor) in enumerate(sorted(weights.items())):
        shard = list(shards)[i % 2]
        shards[shard][name] = tensor
        weight_map[name] = shard
    files = {name: safetensors.numpy.save(tensors) for name, tensors in shards.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repositories["org/shards"] = {k: v for k, v in nano.items() if k != "flax_model.safetensors"} | files
    assert trocr_jax.TrOCR.from_pretrained("org/shards")(image()) == embedded(image())
    assert hub.fetched() == sorted({*SMALL, *files})
    hub.stop()
    assert trocr_jax.TrOCR.from_pretrained("org/shards", local_files_only=True)(image()) == embedded(image())


def test_a_processor_needs_no_weights(hub, nano):
    hub.repositories["org/nano"] = nano
    processor = trocr_jax.TrOCRProcessor.from_pretrained("org/nano")
    assert processor(image()).pixel_values.shape == (1, 3, 32, 320)
    assert hub.fetched() == sorted(SMALL)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"], []),
        (["sentencepiece.bpe.model"], []),
        (["model.safetensors", "flax_model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors.index.json"]),
    ],
    ids=str,
)
def test_only_files_that_are_read_are_fetched(hub, files, expected):
    weights = [] if any("model.safetensors" in name for name in files) else ["flax_model.safetensors"]
    hub.add("org/model", "config.json", *files, *weights, *UNWANTED)
    folder = local_folder("org/model")
    wanted = sorted({"config.json", *files, *weights} - set(expected))
    assert hub.fetched() == wanted
    assert sorted(path.name for path in folder.iterdir()) == wanted
    assert all((folder / name).read_bytes() == name.encode() for name in wanted)


def test_revision_cache_folder_and_token_are_used(hub, tmp_path):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    hub.gate_status = 403
    cache = tmp_path / "elsewhere"
    folder = local_folder("org/model", revision="v1", cache_dir=cache, token="hf_good")
    assert folder.is_relative_to(cache)
    assert folder.name == COMMIT
    assert not (tmp_path / "hub").exists()
    assert ("GET", "/api/models/org/model/revision/v1") in hub.requests
    assert set(hub.tokens) == {"Bearer hf_good"}
    # A commit that is in the cache can be asked for by its own name.
    hub.stop()
    assert local_folder("org/model", revision=COMMIT, cache_dir=cache, local_files_only=True) == folder


def test_cached_files_are_fetched_again_only_when_forced(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    folder = local_folder("org/model")
    hub.requests.clear()
    assert local_folder("org/model") == folder
    assert hub.fetched() == []
    assert local_folder("org/model", force_download=True) == folder
    assert hub.fetched() == ["config.json", "flax_model.safetensors"]


def test_folders_are_used_as_they_are(hub, tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    hub.add("org/model", "config.json", "flax_model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/model") == pathlib.Path("org/model")
    assert local_folder(tmp_path) == tmp_path
    assert hub.requests == []


@pytest.mark.parametrize("source", ["model", "a/b/c", "./model", "../model", "/no/such", "org/", "org/a b"])
def test_what_cannot_be_a_hub_id_is_refused_without_asking(hub, source):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        local_folder(source)
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 404])
def test_an_unknown_repository_is_named(hub, status):
    hub.unknown_status = status
    with pytest.raises(FileNotFoundError, match="org/absent is not a folder here and no model on the hub"):
        trocr_jax.TrOCR.from_pretrained("org/absent")


def test_an_unknown_revision_is_named(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    with pytest.raises(FileNotFoundError, match="org/model has no revision 'v9'"):
        trocr_jax.TrOCR.from_pretrained("org/model", revision="v9")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_is_named(hub, status):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    hub.gate_status = status
    for options in ({}, {"token": "hf_bad"}):
        with pytest.raises(OSError, match="org/model is gated: accept its terms"):
            trocr_jax.TrOCR.from_pretrained("org/model", **options)


def test_a_repository_without_weights_is_named(hub):
    hub.add("org/old", "config.json", "flax_model.msgpack", "tf_model.h5")
    with pytest.raises(FileNotFoundError, match=r"org/old holds none of .*flax_model\.safetensors"):
        trocr_jax.TrOCR.from_pretrained("org/old")


def test_bin_is_fetched_where_there_is_nothing_better(hub):
    hub.add("org/old", "config.json", "pytorch_model.bin", "training_args.bin", "flax_model.msgpack")
    local_folder("org/old")
    assert hub.fetched() == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize("trouble", ["down", "error", "offline", "local_files_only"])
def test_an_unreachable_hub_is_named_at_once(hub, trouble, monkeypatch):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    options = {}
    if trouble == "down":
        hub.stop()
    elif trouble == "error":
        hub.status = 503
    elif trouble == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        options["local_files_only"] = True
    start = time.monotonic()
    with pytest.raises(OSError, match="org/model is neither a folder nor in the local cache, and the hub cannot"):
        trocr_jax.TrOCR.from_pretrained("org/model", **options)
    assert time.monotonic() - start < 5


def test_a_connection_that_breaks_off_is_named(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    hub.is_breaking_off = True
    with pytest.raises(OSError, match="org/model could not be downloaded"):
        trocr_jax.TrOCR.from_pretrained("org/model")


def test_a_download_that_lacks_its_weights_is_named(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    local_folder("org/model", with_weights=False)
    hub.stop()
    with pytest.raises(OSError, match="org/model is neither a folder nor in the local cache"):
        local_folder("org/model", local_files_only=True)


def test_a_request_that_the_hub_refuses_is_named(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    hub.status = 401
    with pytest.raises(OSError, match="org/model"):
        local_folder("org/model")


def test_the_command_line_says_what_is_wrong_with_a_model(hub, tmp_path, capsys):
    (tmp_path / "line.png").write_bytes(b"")
    assert cli.main(["read", "--model", "org/absent", str(tmp_path / "line.png")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trocr-jax: org/absent is not a folder here and no model on the hub")


def test_the_command_line_downloads_by_the_hubs_environment(hub, nano, embedded, tmp_path):
    from PIL import Image

    hub.repositories["org/nano"] = nano
    path = tmp_path / "line.png"
    Image.fromarray(image()).save(path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "trocr_jax", "read", "--model", "org/nano", str(path)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{embedded(image()).text}\n"
    assert hub.fetched() == sorted({*SMALL, "flax_model.safetensors"})
    assert any((tmp_path / "home").rglob("flax_model.safetensors"))
