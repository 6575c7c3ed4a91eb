from __future__ import annotations

import importlib.metadata
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from tests.checkpoints.conftest import hub  # noqa: F401 - a fixture
from trocr_jax import TrOCR, cli, doctor, registry
from trocr_jax.commands.doctor import to_lines
from trocr_jax.findings import Finding
from trocr_jax.modeling.model import VisionEncoderDecoder, abstract_params
from trocr_jax.official_check import FIXTURES, official_name
from trocr_jax.recognizer import EMBEDDED

NAMES = ["versions", "devices", "precision", "compile cache", "memory", "arithmetic", "timing", "hub"]
BASE = "microsoft/trocr-base-handwritten"


@pytest.fixture(autouse=True)
def one_model(monkeypatch, cache_home):
    """Every doctor of this file gets one embedded model, so that its programs are compiled once."""
    load, loaded = TrOCR.from_pretrained, {}

    def load_once(source=None, *, dtype="auto"):
        if source is not None:
            return load(source, dtype=dtype)
        return loaded.setdefault(dtype, _MODELS.setdefault(dtype, load(dtype=dtype)))

    monkeypatch.setattr(TrOCR, "from_pretrained", load_once)


_MODELS: dict[str, TrOCR] = {}


@pytest.fixture
def run(capsys):
    """Runs `trocr-jax doctor --json` in this process -> (exit status, findings by their names)."""

    def run(*arguments):
        status = cli.main(["doctor", "--json", *arguments])
        content = json.loads(capsys.readouterr().out)
        assert content["is_broken"] == (status == 1)
        return status, {finding["name"]: finding for finding in content["findings"]}

    return run


def test_a_sound_machine(run, hub, cache_home):  # noqa: F811
    hub.repositories[doctor.HUB_MODEL] = {}
    status, found = run()
    assert status == 0
    assert list(found) == NAMES
    assert {name for name in NAMES if found[name]["status"] != "ok"} <= {"memory", "devices"}
    assert found["versions"]["details"]["jax"] == jax.__version__
    assert found["precision"]["details"] == {"policy": "float32", "asked": "auto", "backend": "cpu"}
    assert found["compile cache"]["details"]["folder"].startswith(str(cache_home))
    assert 0 < found["arithmetic"]["details"]["largest_difference"] < 5e-4
    assert found["timing"]["details"]["images_per_second"] > 1
    assert found["memory"]["details"]["free_bytes"] > 1e6
    assert hub.requests == [("GET", f"/api/models/{doctor.HUB_MODEL}")]


def test_people_see_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_versions", lambda: Finding("versions", "note", "old " * 40, "renew them"))
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("note    versions        old old")
    end = lines.index("                        -> renew them") + 1
    assert max(map(len, lines[:end])) <= 120
    assert lines[end].startswith("ok      devices")
    assert to_lines(Finding("a", "ok", "b\nc")) == ["ok      a               b c"]


@pytest.mark.parametrize("damage", [0.1, np.nan])
def test_broken_arithmetic_breaks_it(run, monkeypatch, damage):
    ids, columns, logits, text = doctor.stored_logits()
    logits[3, 2] += damage
    monkeypatch.setattr(doctor, "stored_logits", lambda: (ids, columns, logits, text))
    status, found = run()
    assert status == 1
    assert found["arithmetic"]["status"] == "broken"
    assert "JAX_PLATFORMS=cpu" in found["arithmetic"]["advice"]
    difference = found["arithmetic"]["details"]["largest_difference"]
    assert difference is None if np.isnan(damage) else abs(difference - damage) < 1e-3
    assert found["timing"]["status"] == "ok"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_precisions_are_sound_within_their_rounding(dtype):
    found = doctor.check_arithmetic(dtype, [].append)
    assert (found.status, found.details["policy"]) == ("ok", dtype)
    # The strict policy's limit would not do: it is this precision that was used.
    assert doctor.TOLERANCES["float32"] < found.details["largest_difference"] < doctor.TOLERANCES[dtype]


def test_a_wrong_text_breaks_it(run, monkeypatch):
    stored = doctor.stored_logits()
    monkeypatch.setattr(doctor, "stored_logits", lambda: (*stored[:3], "Total 31.42 EUR"))
    status, found = run()
    assert (status, found["timing"]["status"]) == (1, "broken")
    assert "'Total 31.41 EUR', not 'Total 31.42 EUR'" in found["timing"]["text"]


def test_a_model_that_does_not_load_ends_no_other_check(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(TrOCR, "from_pretrained", fail)
    status, found = run()
    assert status == 1
    assert list(found) == NAMES
    assert found["arithmetic"]["text"] == "RuntimeError: no kernel image"
    assert found["timing"]["status"] == "note"


def test_no_device_is_told(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "local_devices", fail)
    found = doctor.check_devices()
    assert found.status == "broken"
    assert "JAX_PLATFORMS=cpu" in found.advice


def test_an_accelerator_that_jax_does_not_use_is_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ACCELERATORS", {str(tmp_path): "cuda"})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert 'pip install "trocr-jax[cuda]"' in doctor.check_devices().advice
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = doctor.check_devices()
    assert (found.status, found.details["variables"]["JAX_PLATFORMS"]) == ("note", "cpu")
    assert "unset JAX_PLATFORMS" in found.advice


@pytest.mark.parametrize(("version", "status"), [((0, 11, 0), "note"), ((0, 11, 1), "ok")])
def test_a_jax_that_trains_wrongly_on_gpus_is_noted(monkeypatch, version, status):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version_info__", version)
    found = doctor.check_devices()
    assert found.status == status
    assert ("0.11.1 or later" in (found.advice or "")) == (status == "note")


def test_a_missing_package_is_told(monkeypatch):
    version = importlib.metadata.version

    def without_flax(name):
        if name == "flax":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_flax)
    found = doctor.check_versions()
    assert found.status == "broken"
    assert "flax missing" in found.text


def test_a_cache_that_cannot_be_written_is_noted(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = doctor.check_cache()
    assert (found.status, found.details["is_writable"]) == ("note", False)
    assert "XDG_CACHE_HOME" in found.advice
    assert jax.config.jax_compilation_cache_dir is None  # or every compilation would warn


def test_a_cache_that_others_can_write_is_noted(cache_home):
    folder = pathlib.Path(doctor.check_cache().details["folder"])
    (folder / "jit_f-1-cache").write_bytes(b"12345")
    found = doctor.check_cache()
    assert (found.status, found.details["bytes"], found.details["programs"]) == ("ok", 5, 1)
    folder.chmod(0o777)
    found = doctor.check_cache()
    assert found.status == "note"
    assert f"chmod o-w {folder}" in found.advice


def test_little_memory_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 10**9)
    found = doctor.check_memory()
    assert (found.status, found.details["free_bytes"]) == ("note", 10**9)
    assert "2.4 GB" in found.advice
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert doctor.check_memory().status == "ok"
    tree = abstract_params(VisionEncoderDecoder(registry.OFFICIAL["trocr-large-printed"]))
    assert sum(4 * leaf.size for leaf in jax.tree.leaves(tree)) == pytest.approx(doctor.LARGE_WEIGHTS, rel=0.01)


@pytest.mark.parametrize(("status", "is_ok"), [(200, True), (503, False)])
def test_the_hub_is_asked(hub, status, is_ok):  # noqa: F811
    hub.repositories[doctor.HUB_MODEL] = {}
    hub.status = status
    found = doctor.check_hub()
    assert (found.status == "ok") == is_ok
    assert found.details == {"endpoint": hub.endpoint, "is_offline": False, "status": status}


def test_no_hub_is_a_note(hub, monkeypatch):  # noqa: F811
    hub.stop()
    found = doctor.check_hub()
    assert found.status == "note"
    assert f"{hub.endpoint} cannot be reached" in found.text
    assert "or pass --model a folder; models that" in doctor.check_hub("org/name").advice
    assert "HF_ENDPOINT; models that" in doctor.check_hub(str(EMBEDDED)).advice
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = doctor.check_hub()
    assert found.status == "note"
    assert "HF_HUB_OFFLINE is set" in found.text


def test_official_models_are_known_by_id_folder_and_cache(tmp_path):
    assert official_name(BASE) == "trocr-base-handwritten"
    assert official_name("me/trocr-base-handwritten") is None
    assert official_name("microsoft/other") is None
    named, cached = tmp_path / "trocr-small-printed", tmp_path / "models--microsoft--trocr-base-str" / "snapshots" / "a"
    for folder in (named, cached):
        folder.mkdir(parents=True)
    assert official_name(str(named)) == "trocr-small-printed"
    assert official_name(str(cached)) == "trocr-base-str"
    assert official_name(str(tmp_path)) is None


@pytest.fixture
def official(hub, monkeypatch, tmp_path):  # noqa: F811
    """The embedded model in the place of an official one: (what its logits are, the hub)."""
    image = tmp_path / "line.png"
    shutil.copy(doctor.SELF_CHECK / "line.png", image)
    hub.repositories[BASE] = {path.name: path.read_bytes() for path in EMBEDDED.iterdir()}
    hub.repositories[FIXTURES] = {"iam_picture.jpeg": image.read_bytes()}
    ids, columns, logits, _ = doctor.stored_logits()
    assert columns[0] == 0
    monkeypatch.setitem(
        registry.GOLDEN_LOGITS,
        "trocr-base-handwritten",
        registry.GoldenLogits("iam_picture.jpeg", (float(logits[0, 0]),)),
    )
    assert ids[0] == 2
    return hub


def only_model(monkeypatch):
    """Leaves the check of the model alone."""
    for name in NAMES:
        check = "check_" + {"compile cache": "cache"}.get(name, name)
        monkeypatch.setattr(doctor, check, lambda *_, name=name: Finding(name, "ok", ""))


def test_published_logits_are_compared(run, official, monkeypatch):
    only_model(monkeypatch)
    status, found = run("--model", BASE)
    assert (status, found["model"]["status"]) == (0, "ok")
    assert found["model"]["details"]["largest_difference"] < 1e-3
    wrong = registry.GoldenLogits("iam_picture.jpeg", (1.0,))
    monkeypatch.setitem(registry.GOLDEN_LOGITS, "trocr-base-handwritten", wrong)
    status, found = run("--model", BASE)
    assert (status, found["model"]["status"]) == (1, "broken")
    difference = abs(doctor.stored_logits()[2][0, 0] - 1)
    assert f"off by {difference:.3g}" in found["model"]["text"]


def test_a_model_without_its_image_or_published_logits_is_a_note(run, official, monkeypatch):
    only_model(monkeypatch)
    del official.repositories[FIXTURES]
    status, found = run("--model", BASE)
    assert (status, found["model"]["status"]) == (0, "note")
    assert FIXTURES in found["model"]["advice"]
    status, found = run("--model", str(EMBEDDED))
    assert (status, found["model"]["status"]) == (0, "note")
    assert "no logits of it were published" in found["model"]["text"]


def test_a_model_that_is_not_there_is_broken(run, hub, monkeypatch):  # noqa: F811
    only_model(monkeypatch)
    status, found = run("--model", "org/none")
    assert (status, found["model"]["status"]) == (1, "broken")
    assert "org/none is not a folder here and no model on the hub" in found["model"]["text"]
    for absent in ("org/none", "nosuch"):
        assert run("--model", absent)[1]["model"]["advice"].startswith("pass --model a folder that is there")


def test_a_model_that_is_here_and_does_not_load_can_be_looked_at(run, hub, monkeypatch, tmp_path):  # noqa: F811
    only_model(monkeypatch)
    (tmp_path / "config.json").write_text("{")
    hub.repositories["org/broken"] = {"config.json": b"{", "model.safetensors": b""}
    for source in (str(tmp_path), "org/broken"):
        found = run("--model", source)[1]["model"]
        assert (found["status"], found["advice"]) == ("broken", f"see what there is with `trocr-jax inspect {source}`")


def test_a_wrong_option_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "--dtype", "int4"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_the_stored_logits_are_those_of_transformers():
    pytest.importorskip("transformers")
    from benchmarks.self_check import answers

    computed, stored = answers(), json.loads((doctor.SELF_CHECK / "logits.json").read_text())
    np.testing.assert_allclose(computed.pop("logits"), stored.pop("logits"), rtol=0, atol=1e-4)
    assert computed == stored
