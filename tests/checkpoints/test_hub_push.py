from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types

import huggingface_hub.constants
import huggingface_hub.utils._http
import jax
import numpy as np
import pytest
import safetensors.numpy

import trocr_jax
from tests.checkpoints.test_store import assert_same
from tests.test_calibration import CALIBRATION
from trocr_jax.checkpoints.hub import local_folder, upload_folder

# huggingface_hub sends large files in a way that its HTTP library no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

WEIGHTS = "flax_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint's folder, and what git and huggingface_hub keep in folders."""
    tensors = {"weight": np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)}
    written = tmp_path / "checkpoint"
    for name, body in {
        "config.json": json.dumps({"model_type": "trocr"}).encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        WEIGHTS: safetensors.numpy.save(tensors),
        "logs/train.txt": b"loss 0.1\n",
        ".git/HEAD": b"ref: refs/heads/main\n",
        ".cache/huggingface/CACHEDIR.TAG": b"",
    }.items():
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).write_bytes(body)
    return written


def contents(folder):
    """The files of a folder by their names, as a repository holds them."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((".git/", ".cache/"))}


def test_a_folder_arrives_whole_in_one_commit_and_comes_back(hub, folder):
    address = upload_folder(folder, "org/new", token="hf_good", commit_message="First")
    assert hub.commits == [("org/new", "main", "First", ["README.md", "config.json", WEIGHTS, "logs/train.txt"])]
    commit, files = hub.snapshot("org/new")
    assert address == f"{hub.endpoint}/org/new/commit/{commit}"
    assert files == contents(folder)
    assert [repository for repository, _ in hub.created] == ["org/new"]
    # The weights went to the storage for large files, and nothing else did.
    assert list(hub.storage.values()) == [files[WEIGHTS]]
    assert [kind for kind, path in hub.requests if path.startswith("/storage/")] == ["PUT"]
    back = local_folder("org/new")
    assert back.name == commit
    assert contents(back) == {name: files[name] for name in ("config.json", WEIGHTS)}


def test_a_model_is_pushed_and_read_back(hub):
    ocr = trocr_jax.TrOCR.from_pretrained()
    ocr.calibration = CALIBRATION
    address = ocr.push_to_hub("org/nano", token="hf_good")
    assert address == f"{hub.endpoint}/org/nano/commit/{hub.snapshot('org/nano')[0]}"
    image = np.full((40, 200, 3), 255, np.uint8)
    image[8:32, 20:180:12] = 0
    again = trocr_jax.TrOCR.from_pretrained("org/nano")
    assert again.calibration == CALIBRATION
    assert again(image) == ocr(image)
    commit, files = hub.snapshot("org/nano")
    assert "\n# nano\n" in files["README.md"].decode()
    # What is made of it says where it comes from.
    assert again._network.source == ("org/nano", commit)
    # Weights pushed without a calibration do not keep that of others.
    ocr.calibration = None
    ocr.push_to_hub("org/nano", token="hf_good")
    assert pushed(hub, "org/nano") == set(files) - {"calibration.json"} < set(files)


def pushed(hub, repository):
    return set(hub.snapshot(repository)[1])


def test_weights_of_an_earlier_push_are_not_read_in_the_new_ones_place(hub):
    ocr = trocr_jax.TrOCR.from_pretrained()
    ocr.push_to_hub("org/nano", token="hf_good")
    whole = pushed(hub, "org/nano")
    ocr._network.params = jax.tree.map(lambda leaf: leaf + leaf, ocr.params)
    ocr.push_to_hub("org/nano", token="hf_good", max_shard_size="4MB")
    shards = {name for name in pushed(hub, "org/nano") if "flax_model-" in name}
    assert len(shards) == 2
    assert pushed(hub, "org/nano") == whole - {WEIGHTS} | shards | {f"{WEIGHTS}.index.json"}
    assert_same(trocr_jax.TrOCR.from_pretrained("org/nano").params, ocr.params)
    ocr.push_to_hub("org/nano", token="hf_good")
    assert pushed(hub, "org/nano") == whole


def test_tokenizer_and_preprocessing_of_an_earlier_push_go(hub):
    hub.add("org/nano", "special_tokens_map.json", "added_tokens.json", "processor_config.json", "notes.txt")
    ocr = trocr_jax.TrOCR.from_pretrained()
    ocr.push_to_hub("org/nano", token="hf_good")
    files = pushed(hub, "org/nano")
    assert "notes.txt" in files
    assert not {"special_tokens_map.json", "added_tokens.json", "processor_config.json"} & files
    again = trocr_jax.TrOCR.from_pretrained("org/nano")
    assert again.processor.tokenizer.get_vocab() == ocr.processor.tokenizer.get_vocab()


def test_a_persons_card_in_the_repository_is_kept(hub):
    hub.add("org/nano", "README.md", "model.safetensors")
    ocr = trocr_jax.TrOCR.from_pretrained()
    ocr.push_to_hub("org/nano", token="hf_good")
    files = hub.snapshot("org/nano")[1]
    assert files["README.md"] == b"README.md"
    assert files["model.safetensors"] == b"model.safetensors"  # of another format
    ocr.push_to_hub("org/other", token="hf_good")
    first = hub.snapshot("org/other")[1]["README.md"]
    ocr._network.params = jax.tree.map(lambda leaf: leaf + leaf, ocr.params)
    ocr.push_to_hub("org/other", token="hf_good")
    assert hub.snapshot("org/other")[1]["README.md"] != first  # ours gives way to ours


def test_saving_pushes_as_well_if_asked(hub, tmp_path):
    ocr = trocr_jax.TrOCR.from_pretrained()
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "diary.txt").write_text("mine")
    ocr.save_pretrained(tmp_path / "nano", push_to_hub=True, repo_id="org/first", token="hf_good")
    ocr.save_pretrained(tmp_path / "nano", push_to_hub=True, token="hf_good")  # the folder's name, of one's own
    written = contents(tmp_path / "nano")
    del written["diary.txt"]  # was there before, and is nobody's business
    assert hub.snapshot("org/first")[1] == hub.snapshot("me/nano")[1] == written
    ocr.processor.push_to_hub("org/processor", token="hf_good")
    assert set(hub.snapshot("org/processor")[1]) == {
        "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


def test_a_wrong_id_is_refused_before_anything_is_written(hub, tmp_path):
    ocr = trocr_jax.TrOCR.from_pretrained()
    with pytest.raises(ValueError, match="a/b/c"):
        ocr.save_pretrained(tmp_path / "nano", push_to_hub=True, repo_id="a/b/c")
    with pytest.raises(ValueError, match="no hub id"):
        ocr.push_to_hub("org/..")
    assert not list(tmp_path.glob("nano*"))
    assert hub.requests == []


def test_a_repository_that_exists_keeps_its_other_files(hub, folder):
    hub.add("org/model", "notes.txt", "config.json")
    upload_folder(folder, "org/model", token="hf_good")
    assert hub.created == []
    assert hub.snapshot("org/model")[1] == {"notes.txt": b"notes.txt", **contents(folder)}


def test_what_is_there_already_is_not_uploaded_again(hub, folder):
    first = upload_folder(folder, "org/model", token="hf_good")
    assert upload_folder(folder, "org/model", token="hf_good") == first
    (folder / "config.json").write_text("{}")
    assert upload_folder(folder, "org/model", token="hf_good") != first
    assert [names for *_, names in hub.commits[1:]] == [["config.json"]]
    assert hub.snapshot("org/model")[1] == contents(folder)
    assert [kind for kind, path in hub.requests if path.startswith("/storage/")] == ["PUT"]


@pytest.mark.parametrize("private", [None, False, True])
def test_a_new_repository_is_private_if_asked(hub, folder, private):
    upload_folder(folder, "org/new", token="hf_good", private=private)
    [(_, options)] = hub.created
    # The field was renamed in huggingface_hub 2.
    found = options.get("private", {"private": True, "public": False}.get(options.get("visibility")))
    assert found is private


def test_a_bare_name_is_the_users_own(hub, folder):
    address = upload_folder(folder, "new", token="hf_good")
    assert address.startswith(f"{hub.endpoint}/me/new/commit/")
    assert hub.snapshot("me/new")[1] == contents(folder)
    assert upload_folder(folder, "new", token="hf_good") == address


def test_only_the_named_files_are_uploaded(hub, folder):
    upload_folder(folder, "org/new", token="hf_good", files=["config.json", "logs/train.txt"])
    assert set(hub.snapshot("org/new")[1]) == {"config.json", "logs/train.txt"}


def test_a_revision_is_committed_to_and_main_is_left_alone(hub, folder):
    hub.add("org/model", "config.json")
    upload_folder(folder, "org/model", token="hf_good", revision="v1")
    assert hub.commits[0][1] == "v1"
    assert hub.snapshot("org/model")[1] == {"config.json": b"config.json"}
    back = local_folder("org/model", revision="v1")
    assert (back / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    with pytest.raises(FileNotFoundError, match="org/model has no revision 'v9'"):
        upload_folder(folder, "org/model", token="hf_good", revision="v9")
    assert len(hub.commits) == 1


@pytest.mark.parametrize("repository", ["org/model", "other/model"])
def test_a_pull_request_needs_no_right_to_write(hub, folder, repository):
    hub.add(repository, "config.json")
    address = upload_folder(folder, repository, token="hf_good", create_pr=True)
    assert address == f"{hub.endpoint}/{repository}/discussions/1"
    assert hub.snapshot(repository)[1] == {"config.json": b"config.json"}
    back = local_folder(repository, revision="refs/pr/1")
    assert (back / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("token", [None, "hf_bad"])
def test_who_is_not_logged_in_is_told_so(hub, folder, token):
    with pytest.raises(OSError, match="org/new cannot be uploaded: the hub wants a valid token; log in") as caught:
        upload_folder(folder, "org/new", token=token)
    assert token is None or token not in str(caught.value)
    hub.add("org/model", "config.json")
    with pytest.raises(OSError, match="the hub lets you write to no org/model; log in"):
        upload_folder(folder, "org/model", token=token)
    assert hub.repositories == {"org/model": {"config.json": b"config.json"}}
    assert hub.commits == hub.created == []


@pytest.mark.parametrize(
    ("repository", "token"), [("other/new", "hf_good"), ("other/model", "hf_good"), ("org/new", "hf_read")]
)
def test_who_may_not_write_is_told_so(hub, folder, repository, token):
    hub.add("other/model", "config.json")
    with pytest.raises(
        OSError, match=f"(?s){repository} cannot be uploaded: the token lacks the permission.*rights|no "
    ):
        upload_folder(folder, repository, token=token)
    assert hub.commits == hub.created == []


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("down", "could not be uploaded .*check the connection and try again"),
        ("error", "could not be uploaded .*503.*check the connection and try again"),
        ("breaking off", "could not be uploaded .*check the connection and try again"),
        ("page", "could not be uploaded .*check the connection and try again"),
        ("offline", "cannot be uploaded: the hub cannot be reached; check the connection and HF_HUB_OFFLINE"),
    ],
)
def test_an_unreachable_hub_is_named_at_once(hub, folder, trouble, message, monkeypatch):
    if trouble == "down":
        hub.stop()
    elif trouble == "error":
        hub.status = 503
    elif trouble == "breaking off":
        hub.is_breaking_off = True
    elif trouble == "page":
        hub.page = b"<html>Log in to this network</html>"
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(OSError, match=f"(?s)org/new {message}"):
        upload_folder(folder, "org/new", token="hf_good")
    assert time.monotonic() - start < 5
    assert len(hub.requests) == (0 if trouble in ("down", "offline") else 1)


def test_an_upload_that_the_hub_refuses_is_named(hub, folder):
    hub.card_error = '"license" must be one of many'
    with pytest.raises(OSError, match=r'(?s)org/new cannot be uploaded: the hub refuses .*README\.md.*"license" must'):
        upload_folder(folder, "org/new", token="hf_good")
    hub.card_error, hub.storage_statuses = None, [403]
    with pytest.raises(OSError, match=rf"(?s)org/new cannot be uploaded: the token lacks .*'{WEIGHTS}'.*403"):
        upload_folder(folder, "org/new", token="hf_good")
    hub.batch_error = "too large"
    with pytest.raises(ValueError, match="too large"):
        upload_folder(folder, "org/new", token="hf_good")
    hub.batch_error, hub.commit_error = None, "no space left in org"
    with pytest.raises(OSError, match=r"(?s)org/new cannot be uploaded: the hub refuses .*413.*no space left in org"):
        upload_folder(folder, "org/new", token="hf_good")
    assert hub.snapshot("org/new")[1] == {}
    # And then, nothing having gone wrong, what was started is finished; the weights are there already.
    hub.commit_error = None
    upload_folder(folder, "org/new", token="hf_good")
    assert hub.snapshot("org/new")[1] == contents(folder)
    assert len(hub.storage) == len(hub.commits) == 1


def test_a_large_file_that_does_not_get_through_is_sent_again(hub, folder, monkeypatch):
    waits = []
    monkeypatch.setattr(huggingface_hub.utils._http, "time", types.SimpleNamespace(sleep=waits.append))
    hub.storage_statuses = [503, 500]
    upload_folder(folder, "org/new", token="hf_good")
    assert len(waits) == 2
    assert hub.snapshot("org/new")[1] == contents(folder)


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "./model", "org/", "/name", "org/a b", "org/a--b", "org/name.git"])
def test_what_cannot_be_a_repository_is_refused_without_asking(hub, folder, repo_id):
    with pytest.raises(ValueError, match="is no hub id of the form org/name or name"):
        upload_folder(folder, repo_id, token="hf_good")
    assert hub.requests == []


def test_what_is_not_there_is_refused_without_asking(hub, folder, tmp_path):
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "empty" / ".git" / "HEAD").write_text("")
    for name, files, message in (
        ("absent", None, "absent is no folder"),
        ("checkpoint/config.json", None, "config.json is no folder"),
        ("empty", None, "empty holds no files"),
        ("checkpoint", [], "checkpoint holds no files"),
        ("checkpoint", ["config.json", "a", "b"], "checkpoint holds no a, b"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            upload_folder(tmp_path / name, "org/new", files=files, token="hf_good")
    assert hub.requests == []


def test_a_process_uploads_by_the_hubs_environment(hub, folder, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_good",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "JAX_PLATFORMS": "cpu",
    }
    code = "import sys; from trocr_jax.checkpoints.hub import upload_folder; print(upload_folder(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(folder), "org/new"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == f"{hub.endpoint}/org/new/commit/{hub.snapshot('org/new')[0]}"
    assert hub.snapshot("org/new")[1] == contents(folder)
