"""Checkpoint directories: the tensors of a Hugging Face directory, and one that it can load."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastbert.atomic import atomic_write
from fastbert.checkpoint_names import (
    LoadReport,
    canonical_names,
    canonical_tensors,
    check_shapes,
    compare_names,
    qkv_parts,
    split_qkv,
    tied_sources,
)
from fastbert.checks import short
from fastbert.config import CONFIG_FILE, BertConfig
from fastbert.json_file import json_text, read_json_object
from fastbert.safetensors_file import (
    CheckpointError,
    StoredTensor,
    read_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "FLOATS",
    "CheckpointError",
    "LoadReport",
    "StoredTensor",
    "canonical_names",
    "canonical_tensors",
    "check_shapes",
    "compare_names",
    "qkv_parts",
    "read_checkpoint",
    "read_safetensors",
    "save_checkpoint",
    "split_qkv",
    "tied_sources",
    "write_safetensors",
]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"

# What damaged pickles made torch.load raise, found by damaging 12,000 of them.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_checkpoint(
    directory: str | os.PathLike[str], *, allow_pickle: bool = False
) -> dict[str, StoredTensor]:
    """Return the tensors of a model directory under the names in its files.

    In this order: `model.safetensors`, its shards by `model.safetensors.index.json`, and, only
    where allowed, `pytorch_model.bin` or its shards (read with `weights_only=True`, in memory).

    Args:
        directory: The directory that holds the weights.
        allow_pickle: Open PyTorch's pickles where there is no safetensors file.

    Raises:
        FileNotFoundError: No directory, or no weights in it.
        CheckpointError: Weights that are not what they claim, or only as a pickle.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such directory")
    if (root / WEIGHTS_FILE).exists():
        return read_safetensors(root / WEIGHTS_FILE)
    if (root / INDEX_FILE).exists():
        return _read_shards(root / INDEX_FILE, read_safetensors)
    for name in (PICKLE_FILE, PICKLE_INDEX_FILE):
        if not (root / name).exists():
            continue
        if not allow_pickle:
            raise CheckpointError(
                f"{root}: holds its weights only as a pickle ({name}), which is not opened unless "
                "you trust it and pass allow_pickle=True; no model.safetensors there"
            )
        return (
            _read_pickle(root / name)
            if name == PICKLE_FILE
            else _read_shards(root / name, _read_pickle)
        )
    raise FileNotFoundError(f"{root}: no weights ({WEIGHTS_FILE} or {INDEX_FILE}) in it")


def save_checkpoint(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | torch.Tensor | StoredTensor],
    config: BertConfig,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`, both or neither; transformers loads the result.

    The config's `dtype` becomes the one that holds every float tensor, since transformers loads in
    that dtype. The directory is made if absent; it may be the one that the tensors are mapped from.

    Args:
        directory: Where to.
        tensors: Canonical, unfused names to values (see `split_qkv`); any device, any layout.
        config: What `config.json` is to say.
        metadata: More text for the file's header, beside `"format": "pt"`.

    Raises:
        TypeError: A value that is no tensor, or of a dtype that no checkpoint holds.
        OSError: A file can't be written; the old one is still there.
    """
    stored = [StoredTensor.of(name, value) for name, value in tensors.items()]
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    dtype = _common_dtype(stored)
    config = config if dtype is None else config.replace(dtype=dtype)
    # The two belong together: the config lies on the disk, unnamed, before the weights are
    # renamed, so that only a crash between two renames could part them.
    with atomic_write(root / CONFIG_FILE, "w") as out:
        out.write(json_text(config.to_dict()))
        out.flush()
        os.fsync(out.fileno())
        write_safetensors(root / WEIGHTS_FILE, stored, {**(metadata or {}), "format": "pt"})


def _common_dtype(tensors: list[StoredTensor]) -> str | None:
    """Return the narrowest float dtype that holds every float tensor exactly, None without one."""
    found = {FLOATS[tensor.dtype] for tensor in tensors if tensor.dtype in FLOATS}
    if len(found) == 1:
        return found.pop()
    if "float64" in found:
        return "float64"
    return "float32" if found else None


def _read_shards(
    index: Path, read: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """Return the tensors of the shards that an index names."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {short(weight_map)}, expected names to files"
        )
    tensors: dict[str, StoredTensor] = {}
    holder: dict[str, str] = {}
    for shard in sorted({_shard_name(index, file) for file in weight_map.values()}):
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index}: names the shard {shard!r}, which is not there")
        for name, tensor in read(index.parent / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{index.parent}: {name!r} is in two shards, {holder[name]} and {shard}"
                )
            tensors[name], holder[name] = tensor, shard
    wrong = [name for name, file in weight_map.items() if holder.get(name) != file]
    if wrong:
        raise CheckpointError(
            f"{index}: {len(wrong)} tensors are not in the shard it names, first {short(wrong[0])} "
            f"({short(weight_map[wrong[0]])})"
        )
    return tensors


def _shard_name(index: Path, file: object) -> str:
    """Return a shard's name if it is one beside its index (with a folder, it could be anywhere)."""
    if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
        raise CheckpointError(
            f"{index}: shard {short(file)}, expected the name of a file beside it"
        )
    return file


def _read_pickle(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a PyTorch pickle, read without running code of its own."""
    import torch

    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        raise CheckpointError(
            f"{file}: damaged, or a pickle of more than weights ({type(error).__name__})"
        ) from error
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{file}: holds a {type(values).__name__}, expected names to tensors")
    try:
        return {name: StoredTensor.of(name, value) for name, value in values.items()}
    except TypeError as error:
        raise CheckpointError(f"{file}: {error}") from error
