"""A hub id or a folder -> a folder on this machine, with no more downloaded than is read."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from trocr_jax.config import CONFIG_NAME, GENERATION_CONFIG_NAME, read_json

NATIVE_NAME = "flax_model.safetensors"
NATIVE_INDEX_NAME = "flax_model.safetensors.index.json"
TORCH_NAME = "model.safetensors"
TORCH_INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
# What weights may be called, best first.
WEIGHT_NAMES = (NATIVE_NAME, NATIVE_INDEX_NAME, TORCH_NAME, TORCH_INDEX_NAME, BIN_NAME, BIN_INDEX_NAME)

_SMALL_FILES = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)


def local_folder(
    source: str | os.PathLike[str],
    *,
    with_weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> pathlib.Path:
    """The folder of a checkpoint: `source` itself if it is one, else the hub repository "org/name", downloaded.

    The options are huggingface_hub's. Of the weights one file is fetched: the native one, else safetensors,
    else .bin. Raises
    FileNotFoundError or OSError saying what is wrong and what to do.
    """
    if os.fspath(source) and pathlib.Path(source).is_dir():
        return pathlib.Path(source)
    repo_id = os.fspath(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or repo_id.startswith("."):
        raise FileNotFoundError(f"{repo_id!r} is neither a folder nor a hub id of the form org/name")
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    return _download(repo_id, options, with_weights=with_weights)


def _download(repo_id: str, options: dict[str, Any], *, with_weights: bool) -> pathlib.Path:
    # Imported here: it takes longer than reading a small checkpoint.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(_SMALL_FILES), **options))
        if with_weights:
            _download_weights(repo_id, folder, options)
    except errors.GatedRepoError as error:
        raise OSError(
            f"{repo_id} is gated: accept its terms on the hub's page and log in (`hf auth login`) or pass token="
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {options['revision']!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is not a folder here and no model on the hub; check the spelling, or log in if it is private"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise OSError(
            f"{repo_id} is neither a folder nor in the local cache, and the hub cannot be reached; "
            "check the connection, or pass a folder"
        ) from error
    except errors.HfHubHTTPError as error:
        raise OSError(f"the hub refused {repo_id}: {error}") from error
    except (OSError, ValueError):
        raise
    except Exception as error:
        # The HTTP library's own errors, of a connection that broke off for one, are neither.
        raise OSError(f"{repo_id} could not be downloaded ({error}); check the connection and try again") from error
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
    raise FileNotFoundError(
        f"{repo_id} holds none of {list(WEIGHT_NAMES)}: it is no model of transformers or of this library"
    ) from missing
