"""What the tensors of a BERT are called: old and foreign names, tied decoders, fused QKV."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fastbert.safetensors_file import CheckpointError, StoredTensor

Array = TypeVar("Array")

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_ENCODER = ("embeddings.", "encoder.", "pooler.")
_OLD_NORM = re.compile(r"((?:^|.*\.)LayerNorm)\.(gamma|beta)")
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")

_WORDS = "bert.embeddings.word_embeddings.weight"
_DECODER = "cls.predictions.decoder.weight"
_DECODER_BIAS = "cls.predictions.decoder.bias"
_PREDICTIONS_BIAS = "cls.predictions.bias"

_FUSED = re.compile(r"(.*\battention\.self)\.qkv\.(weight|bias)")
_PARTS = ("query", "key", "value")  # the order of the rows in a fused tensor
_LISTED = 20


@dataclass(frozen=True)
class LoadReport:
    """Which tensors a model expected and did not find, and which it found and did not expect."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every name matched."""
        return not self.missing and not self.unexpected

    def __str__(self) -> str:
        if self.ok:
            return "Every tensor of the model was found and every tensor of the checkpoint used."
        sentences = []
        if self.missing:
            sentences.append(
                f"{_count(self.missing)} of the model not in the checkpoint: {_list(self.missing)}."
            )
        if self.unexpected:
            sentences.append(
                f"{_count(self.unexpected)} of the checkpoint not in the model: "
                f"{_list(self.unexpected)}."
            )
        return " ".join(sentences)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names in a file to the names used here; buffers that a config implies are left out.

    A wrapper's `module.` goes; encoder weights get the prefix `bert.`; `LayerNorm.gamma` and
    `.beta`, only there and only as the last component, become weight and bias; the heads' names and
    those that nobody knows stay. Two names may map to one: see `canonical_tensors`.
    """
    result = {}
    for raw in names:
        name = raw
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        if name.startswith(_ENCODER):
            name = f"bert.{name}"
        old = _OLD_NORM.fullmatch(name)
        if old:
            name = f"{old[1]}.{'weight' if old[2] == 'gamma' else 'bias'}"
        if name not in _BUFFERS:
            result[raw] = name
    return result


def canonical_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under their canonical names.

    Raises:
        CheckpointError: Two tensors that differ claim one name.
    """
    result: dict[str, StoredTensor] = {}
    source: dict[str, str] = {}
    for raw, name in canonical_names(tensors).items():
        tensor = StoredTensor.of(name, tensors[raw])
        other = result.setdefault(name, tensor)
        if other is tensor:
            source[name] = raw
        elif (
            tensor.dtype != other.dtype
            or tensor.shape != other.shape
            or not np.array_equal(tensor.data, other.data)
        ):
            raise CheckpointError(
                f"{raw!r} and {source[name]!r} both mean {name!r}, and their values differ"
            )
    return result


def tied_sources(found: Collection[str], *, tie_word_embeddings: bool = True) -> dict[str, str]:
    """Map each absent tensor of a tied decoder to the present one that holds its values.

    The masked-LM decoder shares its weight with the word embeddings where the config ties them, and
    `cls.predictions.bias` is always its bias; a file may hold any one name of each pair.

    Args:
        found: Canonical names in the checkpoint.
        tie_word_embeddings: As the config says.
    """
    names = set(found)
    pairs = [(_DECODER_BIAS, _PREDICTIONS_BIAS), (_PREDICTIONS_BIAS, _DECODER_BIAS)]
    if tie_word_embeddings:
        pairs += [(_DECODER, _WORDS), (_WORDS, _DECODER)]
    return {absent: there for absent, there in pairs if absent not in names and there in names}


def compare_names(
    expected: Iterable[str], found: Collection[str], *, tie_word_embeddings: bool = True
) -> LoadReport:
    """Compare a model's names with a checkpoint's, both canonical and unfused.

    A tensor that `tied_sources` can supply is not missing.
    """
    wanted, names = set(expected), set(found)
    supplied = tied_sources(names, tie_word_embeddings=tie_word_embeddings)
    return LoadReport(
        missing=tuple(sorted(wanted - names - set(supplied))),
        unexpected=tuple(sorted(names - wanted)),
    )


def check_shapes(
    expected: Mapping[str, Sequence[int]], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise CheckpointError for the first tensor whose shape is not the one the config implies."""
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != tuple(shape):
            raise CheckpointError(
                f"{name}: the checkpoint holds shape {list(tensors[name].shape)}, the config "
                f"implies {list(shape)}"
            )


def qkv_parts(name: str) -> tuple[str, ...]:
    """Return the three names that a fused name stands for, `()` for any other name."""
    fused = _FUSED.fullmatch(name)
    return tuple(f"{fused[1]}.{part}.{fused[2]}" for part in _PARTS) if fused else ()


def split_qkv(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Replace each fused qkv, (3C, C) or (3C,), by its query, key and value: views of C rows.

    Args:
        arrays: Anything that slices along its first axis: NumPy arrays, torch tensors.

    Raises:
        CheckpointError: A fused tensor's rows are no multiple of three.
    """
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        parts = qkv_parts(name)
        if not parts:
            result[name] = array
            continue
        rows: Any = array
        if len(rows) % 3:
            raise CheckpointError(f"{name}: {len(rows)} rows, expected a multiple of three")
        C = len(rows) // 3
        result.update((part, rows[i * C : (i + 1) * C]) for i, part in enumerate(parts))
    return result


def _count(names: tuple[str, ...]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _list(names: tuple[str, ...]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
