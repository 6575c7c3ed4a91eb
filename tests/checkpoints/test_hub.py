from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
import types

import huggingface_hub.constants
import huggingface_hub.errors
import huggingface_hub.file_download
import numpy as np
import pytest
import safetensors.numpy

import trocr_jax
from tests.checkpoints.hub_server import COMMIT
from tests.twins import torch_tensors
from trocr_jax import cli
from trocr_jax.checkpoints.hub import local_folder

EMBEDDED = pathlib.Path(trocr_jax.__file__).parent / "assets" / "trocr-nano-printed"
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


@pytest.fixture(scope="module")
def nano():
    """The embedded model's files, and some that nobody needs."""
    return {path.name: path.read_bytes() for path in EMBEDDED.iterdir()} | UNWANTED


@pytest.fixture(scope="module")
def embedded():
    return trocr_jax.TrOCR.from_pretrained()


def torch_weights(ocr):
    return torch_tensors(ocr.params, ocr.config)


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
    assert processor(image()).pixel_values.shape == (1, 3, 32, 512)
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


def test_adapters_without_their_base_are_named(hub):
    hub.add("org/adapters", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    with pytest.raises(ValueError, match=r"org/adapters holds the adapters .*merge_and_unload"):
        trocr_jax.TrOCR.from_pretrained("org/adapters")
    assert hub.fetched() == ["adapter_config.json", "tokenizer.json"]
    hub.add("org/both", "config.json", "adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"org/both holds the adapters .*merge_and_unload"):
        trocr_jax.TrOCR.from_pretrained("org/both")


def test_bin_is_fetched_where_there_is_nothing_better(hub):
    hub.add("org/old", "config.json", "pytorch_model.bin", "training_args.bin", "flax_model.msgpack")
    local_folder("org/old")
    assert hub.fetched() == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize(("kind", "name"), [("datasets", "dataset"), ("spaces", "space")])
def test_what_is_no_model_is_named(hub, kind, name):
    hub.others["org/other"] = kind
    with pytest.raises(FileNotFoundError, match=f"org/other is a {name} on the hub, not a model"):
        local_folder("org/other")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503, None])
def test_asking_what_is_no_model_hides_no_error(hub, status):
    hub.others_status = status
    with pytest.raises(FileNotFoundError, match="org/absent is not a folder here and no model on the hub") as caught:
        local_folder("org/absent")
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.RepositoryNotFoundError)
    assert [path for _, path in hub.requests if path.startswith(("/api/datasets", "/api/spaces"))] == [
        "/api/datasets/org/absent",
        "/api/spaces/org/absent",
    ]


def test_what_is_no_model_is_asked_only_where_the_model_is_missing(hub):
    hub.others["org/model"] = "datasets"
    hub.add("org/model", "config.json", "flax_model.safetensors")
    local_folder("org/model")
    with pytest.raises(FileNotFoundError, match="no revision"):
        local_folder("org/model", revision="v9")
    assert not [path for _, path in hub.requests if path.startswith(("/api/datasets", "/api/spaces"))]


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
    reason = {"local_files_only": "local_files_only forbids", "offline": "HF_HUB_OFFLINE forbids"}.get(
        trouble, "the hub cannot be reached"
    )
    start = time.monotonic()
    with pytest.raises(OSError, match=f"org/model is neither a folder nor wholly in the local cache, and {reason}"):
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
    with pytest.raises(OSError, match="org/model is neither a folder nor wholly in the local cache"):
        local_folder("org/model", local_files_only=True)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "wants a valid token; log in"), (403, "the token lacks the permission"), (429, "the hub refuses .*429")],
)
def test_a_request_that_the_hub_refuses_is_named(hub, status, reason):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    hub.status = status
    with pytest.raises(OSError, match=f"(?s)org/model cannot be downloaded: .*{reason}"):
        local_folder("org/model")


def test_another_page_in_the_hubs_place_is_named(hub):
    hub.page = b"<html>Log in to this network</html>"
    with pytest.raises(OSError, match=r"org/model could not be downloaded .*check the connection"):
        local_folder("org/model")


def test_a_forced_download_without_the_hub_is_named(hub):
    hub.add("org/model", "config.json", "flax_model.safetensors")
    local_folder("org/model")
    hub.stop()
    with pytest.raises(OSError, match=r"org/model could not be downloaded .*check the connection"):
        local_folder("org/model", force_download=True)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that huggingface_hub would have waited before it tried to download again."""
    seconds = []
    monkeypatch.setattr(huggingface_hub.file_download, "time", types.SimpleNamespace(sleep=seconds.append))
    # What arrived of an unfinished chunk is lost, and chunks are of 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    return seconds


def random_bytes(count, seed):
    return np.random.default_rng(seed).bytes(count)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, waits):
    body = random_bytes(200_000, 0)
    hub.add("org/model", "config.json", **{"flax_model.safetensors": body})
    hub.breaks["flax_model.safetensors"] = [70_000, 0, 90_000]
    folder = local_folder("org/model")
    assert (folder / "flax_model.safetensors").read_bytes() == body
    assert [part for part in hub.sent if part[0] == "flax_model.safetensors"] == [
        ("flax_model.safetensors", 0, 70_000),
        ("flax_model.safetensors", 70_000, 0),
        ("flax_model.safetensors", 70_000, 90_000),
        ("flax_model.safetensors", 160_000, 40_000),
    ]
    assert len(waits) == 3


@pytest.fixture
def half_downloaded(hub, waits):
    """The files of "org/shards", of which the second shard broke off until huggingface_hub gave up."""
    shards = {f"model-{i}.safetensors": random_bytes(100_000, i) for i in (1, 2)}
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    hub.add("org/shards", "config.json", **shards, **{"model.safetensors.index.json": index})
    hub.breaks["model-2.safetensors"] = [50_000, 0, 0, 0, 0, 0]
    with pytest.raises(OSError, match=r"org/shards could not be downloaded .*check the connection and try again"):
        local_folder("org/shards")
    assert hub.breaks["model-2.safetensors"] == []
    return hub.repositories["org/shards"]


def test_the_load_after_a_broken_one_fetches_only_what_is_missing(hub, half_downloaded):
    first = sum(count for *_, count in hub.sent)
    hub.sent.clear()
    folder = local_folder("org/shards")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == half_downloaded
    # Files that were complete are not sent again. The other one may be, from its beginning: huggingface_hub 2.4 deletes
    # the part that it had, because on some filesystems two processes could write to it at once (its issue 4228).
    assert {name for name, *_ in hub.sent} == {"model-2.safetensors"}
    assert sum(count for *_, count in hub.sent) <= 100_000 < first
    hub.stop()
    assert local_folder("org/shards", local_files_only=True) == folder


def test_half_a_download_is_never_taken_for_a_whole_one(hub, half_downloaded, tmp_path):
    # What a process that was killed leaves behind.
    body = half_downloaded["model-2.safetensors"]
    for end in ("incomplete", "0123abcd.incomplete"):
        path = next((tmp_path / "hub").rglob("blobs")) / f"{hashlib.sha1(body).hexdigest()}.{end}"
        path.write_bytes(body[:50_000])
    with pytest.raises(OSError, match=r"org/shards is neither .* wholly in the local cache, .* load it once without"):
        local_folder("org/shards", local_files_only=True)
    folder = local_folder("org/shards")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == half_downloaded


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
