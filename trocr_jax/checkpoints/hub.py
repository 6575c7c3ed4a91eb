"""A hub id or a folder -> a folder on this machine, with no more downloaded than is read; a folder -> the hub."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from trocr_jax.calibration import CALIBRATION_NAME
from trocr_jax.checkpoints.errors import CheckpointError
from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, read_json
from trocr_jax.processing.image import PREPROCESSOR_NAME, PROCESSOR_NAME
from trocr_jax.processing.tokenizer import FILE_NAMES as TOKENIZER_NAMES
from trocr_jax.registry import OFFICIAL

NATIVE_NAME = "flax_model.safetensors"
NATIVE_INDEX_NAME = "flax_model.safetensors.index.json"
TORCH_NAME = "model.safetensors"
TORCH_INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
# What weights may be called, best first.
NATIVE_NAMES = (NATIVE_NAME, NATIVE_INDEX_NAME)
TORCH_NAMES = (TORCH_NAME, TORCH_INDEX_NAME, BIN_NAME, BIN_INDEX_NAME)
WEIGHT_NAMES = (*NATIVE_NAMES, *TORCH_NAMES)

# A file of weights that this library writes, for either format: whole, a shard, or the index of shards.
_WEIGHTS = re.compile(r"(model|flax_model)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?")

# What peft writes instead of a model.
_ADAPTER_NAME = "adapter_config.json"
ADAPTER_REASON = (
    "holds the adapters of a fine-tune (LoRA), not a model: merge them into their base with peft "
    "(PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(merged)) and use what that writes"
)

# Files of which one is read instead of another, so that all of a group belong together.
_GROUPS = {"tokenizer": TOKENIZER_NAMES, "preprocessing": (PREPROCESSOR_NAME, PROCESSOR_NAME)}
_SMALL_FILES = (
    CONFIG_NAME, _ADAPTER_NAME, GENERATION_CONFIG_NAME, CALIBRATION_NAME,
    *(name for names in _GROUPS.values() for name in names),
)  # fmt: skip

# What the reference's from_pretrained takes and ours does not.
_INSTEAD = {
    "torch_dtype": ": a model's precision is its dtype",
    "device": ": JAX's devices are used",
    "device_map": ": JAX's devices are used",
    "use_fast": ": there is one processor",
    **dict.fromkeys(("trust_remote_code", "use_safetensors", "weights_only"), ": nothing in any file is executed"),
    "low_cpu_mem_usage": ": weights are read without a second copy",
    "attn_implementation": ": there is one attention",
}

_TOKEN_ADVICE = {
    401: "the hub wants a valid token; log in (`hf auth login`) or pass token=",
    403: "the token lacks the permission; pass a token= that has it, or ask the repository's owner",
}


def local_folder(
    source: str | os.PathLike[str],
    *,
    with_weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    **unknown: Any,
) -> pathlib.Path:
    """The folder of a checkpoint: `source` itself if it is one, else the hub repository "org/name", downloaded.

    The options are huggingface_hub's. Of the weights one file is fetched: the native one, else safetensors, else .bin.
    Raises FileNotFoundError or OSError saying what is wrong and what to do, CheckpointError for adapters without their
    base, TypeError for another option.
    """
    for name in unknown:
        raise TypeError(f"there is no option {name!r}{_INSTEAD.get(name, '')}")
    if os.fspath(source) and pathlib.Path(source).is_dir():
        folder = pathlib.Path(source)
        if with_weights:
            _check_is_model(folder, source)
        return folder
    repo_id = os.fspath(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or repo_id.startswith("."):
        kind = "a file, neither a folder" if os.path.isfile(repo_id) else "neither a folder"
        raise FileNotFoundError(f"{repo_id!r} is {kind} nor a hub id of the form org/name")
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    return _download(repo_id, options, with_weights=with_weights)


def dataset_file(repo_id: str, name: str) -> pathlib.Path:
    """One file of a dataset on the hub, downloaded or from the cache. Raises OSError saying what is wrong."""
    import huggingface_hub

    unreachable = f"{name} of {repo_id} is not in the local cache, and the hub cannot be reached"
    with _explained(repo_id, None, "downloaded", lambda: f"the hub has no dataset {repo_id}", unreachable):
        return pathlib.Path(huggingface_hub.hf_hub_download(repo_id, name, repo_type="dataset"))


def _check_is_model(folder: pathlib.Path, source: str | os.PathLike[str]) -> None:
    has_weights = any((folder / name).is_file() for name in WEIGHT_NAMES)
    if (folder / _ADAPTER_NAME).is_file() and not has_weights:
        raise CheckpointError(f"{source} {ADAPTER_REASON}")


def upload_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    files: Collection[str] | None = None,
    yields: Mapping[str, str] | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """The address of the one commit (or pull request) that puts a folder's files into the hub's repository `repo_id`.

    `repo_id` is "org/name", or "name" for one of your own; a repository that is not there is made, and only then does
    `private` count. `files` are names inside the folder, by default all but those of .git and .cache; `yields` are
    those that give way to one of the repository's own, each with the mark by which one of ours is known. Files of an
    earlier upload that would be read in the new ones' place go; see `stale_files`. `revision` is the branch to commit
    to. Raises ValueError for what cannot be a repository, FileNotFoundError for a folder or a
    file that is not there, both before the hub is asked, and OSError saying what to do if the hub does not take them.
    """
    # Imported here: it takes longer than reading a small checkpoint.
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_repo_id(repo_id)
    paths = _paths(pathlib.Path(folder), files)
    api = HfApi(token=token)
    absent = f"the hub lets you write to no {repo_id}; log in (`hf auth login`) or pass a token= that may"
    unreachable = f"{repo_id} cannot be uploaded: the hub cannot be reached; check the connection and HF_HUB_OFFLINE"
    with _explained(repo_id, revision, "uploaded", lambda: absent, unreachable):
        # Not upload_folder: where it can, that one makes several commits of many files.
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        there = set(api.list_repo_files(name, revision=revision))
        marks = {file: mark for file, mark in (yields or {}).items() if file in there}
        kept = {file for file, mark in marks.items() if not _holds(api, name, file, revision, mark)}
        stale = stale_files(there, paths)
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, path) for file, path in paths.items() if file not in kept),
                *(CommitOperationDelete(file) for file in sorted(stale)),
            ],
            commit_message=commit_message or "Upload with trocr_jax",
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def stale_files(there: Iterable[str], written: Collection[str]) -> set[str]:
    """Of the files that are there, those that would be read beside or instead of what was written.

    That is, weights in the same format, tokenizer and preprocessing files where any of those were written, and the
    calibration of other weights.
    """
    groups = {group for name in written if (group := _group(name))}
    stale = {name for name in there if _group(name) in groups}
    has_weights = any(_WEIGHTS.fullmatch(name) for name in written)
    return (stale | ({CALIBRATION_NAME} & set(there) if has_weights else set())) - set(written)


def _group(name: str) -> str | None:
    if match := _WEIGHTS.fullmatch(name):
        return match[1]
    return next((group for group, names in _GROUPS.items() if name in names), None)


def _holds(api: Any, repo_id: str, name: str, revision: str | None, mark: str) -> bool:
    path = api.hf_hub_download(repo_id, name, revision=revision)
    return mark in pathlib.Path(path).read_text(encoding="utf-8", errors="replace")


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError unless this can be the id of a repository: "org/name" or "name"."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"{repo_id!r} is no hub id of the form org/name or name: {error}") from error


def _paths(folder: pathlib.Path, files: Collection[str] | None) -> dict[str, pathlib.Path]:
    """The files to upload by their names in the repository. Raises FileNotFoundError for what is not there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: nothing to upload")
    if files is None:
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        # The hub refuses these two: what git and huggingface_hub keep in a folder for themselves.
        files = [name.as_posix() for name in found if not {".git", ".cache"} & set(name.parts)]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder} holds no {', '.join(missing) or 'files'}: nothing to upload")
    return {name: folder / name for name in files}


@contextlib.contextmanager
def _explained(
    repo_id: str, revision: str | None, done: str, absent: Callable[[], str], unreachable: str
) -> Iterator[None]:
    """Turns the errors of huggingface_hub into FileNotFoundError or OSError saying what is wrong and what to do.

    `done` is "downloaded" or "uploaded", `absent` says why the hub does not have the repository, and `unreachable` is
    the message where the hub was not asked or did not answer. Other OSErrors and ValueErrors are left as they are.
    """
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:
        cause = _cause(error)
        reason = " ".join(dict.fromkeys(str(part).strip() for part in (error, cause)))
        status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
        if isinstance(cause, errors.GatedRepoError):
            text = f"{repo_id} is gated: accept its terms on the hub's page and log in (`hf auth login`) or pass token="
            raise OSError(text) from error
        if isinstance(cause, errors.RevisionNotFoundError):
            text = f"{repo_id} has no revision {revision!r}; the hub's page lists its branches and tags"
            raise FileNotFoundError(text) from error
        if isinstance(cause, errors.RepositoryNotFoundError):
            raise FileNotFoundError(absent()) from error
        if isinstance(cause, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            raise OSError(unreachable) from error
        if status is not None and status < 500:
            advice = _TOKEN_ADVICE.get(status, "the hub refuses")
            raise OSError(f"{repo_id} cannot be {done}: {advice} ({reason})") from error
        # A hub in trouble, a connection that broke off, or a network's own page in the hub's place: it may pass.
        is_passing = status is not None or isinstance(cause, (ConnectionError, TimeoutError, json.JSONDecodeError))
        if not is_passing and isinstance(cause, (OSError, ValueError)):
            raise
        raise OSError(f"{repo_id} could not be {done} ({reason}); check the connection and try again") from error


def _cause(error: Exception) -> BaseException:
    """The hub's answer, where huggingface_hub raised something vaguer from it; else the error itself."""
    from huggingface_hub import errors

    cause = error.__cause__
    # An upload or a forced download that "failed"; a hub that "cannot be reached" when in fact it said no.
    is_vague = type(error) in (RuntimeError, ValueError) and isinstance(cause, errors.HTTPError)
    is_no = isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < 500
    if cause is not None and (is_vague or (is_no and isinstance(error, errors.LocalEntryNotFoundError))):
        return cause
    return error


def _absent(repo_id: str, token: str | bool | None) -> str:
    """Why the hub has no such model; asks it whether something else goes by that name."""
    from huggingface_hub import HfApi

    for kind in ("dataset", "space"):
        # This only improves a message: whatever goes wrong here must not take the place of the error it is about.
        with contextlib.suppress(Exception):
            HfApi().repo_info(repo_id, repo_type=kind, token=token, timeout=5)
            return f"{repo_id} is a {kind} on the hub, not a model; pass the id of a model"
    check = f"check the spelling{_spelling(repo_id)}, or log in if it is private"
    return f"{repo_id} is not a folder here and no model on the hub; {check}"


def _spelling(repo_id: str) -> str:
    """A question, where an official model has nearly this name."""
    name = repo_id.split("/")[-1]
    near = difflib.get_close_matches(name, OFFICIAL, n=1, cutoff=0.9)
    return f" (is microsoft/{near[0]} meant?)" if near and repo_id != f"microsoft/{near[0]}" else ""


def _download(repo_id: str, options: dict[str, Any], *, with_weights: bool) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import constants

    advice = "the hub cannot be reached; check the connection, or pass a folder"
    if options["local_files_only"]:
        advice = "local_files_only forbids to ask the hub; load it once without, or pass a folder"
    elif constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE forbids to ask the hub; unset it, or pass a folder"
    advice += _spelling(repo_id)
    unreachable = f"{repo_id} is neither a folder nor wholly in the local cache, and {advice}"
    absent = functools.partial(_absent, repo_id, options["token"])
    with _explained(repo_id, options["revision"], "downloaded", absent, unreachable):
        folder = pathlib.Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(_SMALL_FILES), **options))
        if with_weights:
            _download_weights(repo_id, folder, options)
    return folder


def _download_weights(repo_id: str, folder: pathlib.Path, options: dict[str, Any]) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    # A snapshot never changes. Asking for a better name than it has would, without a connection, take half a minute.
    present = [name for name in WEIGHT_NAMES if (folder / name).is_file()]
    missing: Exception | None = None
    for name in present or WEIGHT_NAMES:
        try:
            path = huggingface_hub.hf_hub_download(repo_id, name, **options)
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError as error:
            missing = error
            continue
        if name.endswith(".index.json"):
            for shard in sorted(set(read_json(path).get("weight_map", {}).values())):
                huggingface_hub.hf_hub_download(repo_id, shard, **options)
        return
    _check_is_model(folder, repo_id)
    raise FileNotFoundError(
        f"{repo_id} holds none of {list(WEIGHT_NAMES)}: it is no model of transformers or of this library"
    ) from missing
