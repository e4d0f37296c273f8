"""The safetensors format, read by its header and written in one pass; no torch.

A file is 8 bytes (little-endian length n), n bytes of JSON, then the tensors' bytes, which the
JSON's offsets must tile without hole or overlap (https://github.com/huggingface/safetensors).
The library's NumPy API can't hold BF16, so bytes are mapped here and widened where asked.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fastbert.atomic import atomic_write
from fastbert.checks import short

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 32

# The format's name -> NumPy's; BF16 has no NumPy type, its bytes travel as uint16.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_FROM_NUMPY = {np.dtype(code): name for name, code in _NUMPY.items() if name != "BF16"}
_FROM_TORCH = {name: ours for ours, name in _TORCH.items()}


class CheckpointError(ValueError):
    """A checkpoint that can't be what it says; the message names the file or tensor."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor as it lies in a file: bytes, and how to read them.

    Attributes:
        name: Its name in the file.
        dtype: F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL.
        shape: Its sizes; `()` for a scalar.
        data: Its bytes, little-endian and C-contiguous (uint8, read-only where memory-mapped).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def numpy(self) -> NDArray[Any]:
        """Return the values as a read-only array over `data`; BF16 as a float32 copy (exact)."""
        # Not every writer pads its header, and native code wants aligned numbers.
        code = np.dtype(_NUMPY[self.dtype])
        aligned = self.data.ctypes.data % code.itemsize == 0
        flat = (self.data if aligned else self.data.copy()).view(code)
        if self.dtype == "BF16":
            return (flat.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        array = flat.reshape(self.shape)
        array.flags.writeable = False
        return array

    def torch(self) -> torch.Tensor:
        """Return a fresh torch tensor of the stored dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH[self.dtype])
        if not self.data.size:  # an empty array's stride is 0, which no view takes
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.data.copy()).view(dtype).reshape(self.shape)

    @classmethod
    def of(cls, name: str, value: object) -> StoredTensor:
        """Wrap a NumPy array, a torch tensor (any device) or a stored tensor under `name`.

        Raises:
            TypeError: Another type, or a dtype that is none of the ten (a checkpoint of ours
                holds no complex, sparse or quantised tensors).
        """
        if isinstance(value, StoredTensor):
            return cls(name, value.dtype, value.shape, value.data)
        if isinstance(value, np.ndarray):
            dtype = _FROM_NUMPY.get(value.dtype.newbyteorder("<"))
            if dtype is None:
                raise TypeError(f"{name}: NumPy dtype {value.dtype}, expected {_names(_NUMPY)}")
            flat = np.ascontiguousarray(value, dtype=_NUMPY[dtype]).reshape(-1)
            return cls(name, dtype, value.shape, flat.view(np.uint8))
        torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch
        if torch is not None and isinstance(value, torch.Tensor):
            dtype = _FROM_TORCH.get(str(value.dtype).removeprefix("torch."))
            if dtype is None or value.layout is not torch.strided:
                raise TypeError(
                    f"{name}: {value.layout} tensor of {value.dtype}, expected a dense one of "
                    f"{_names(_FROM_TORCH)}"
                )
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return cls(name, dtype, tuple(value.shape), flat)
        raise TypeError(f"{name}: a {type(value).__name__}, expected an array or a tensor")


def read_safetensors(file: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Map a safetensors file and return its tensors by name, nothing read but the header.

    The tensors stay readable after the file was replaced (not after it was overwritten in place).

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is not exactly what the format allows.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as source:
        header, start = _read_header(path, source)
        mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)[start:]
    tensors: dict[str, StoredTensor] = {}
    entries = [(*_parse_entry(path, name, value), name) for name, value in header.items()]
    position = 0
    for begin, end, dtype, shape, name in sorted(entries):
        if begin != position:
            what = (
                "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            )
            raise CheckpointError(f"{path}: tensor {name!r} {what} ({begin}, expected {position})")
        tensors[name] = StoredTensor(name, dtype, shape, data[begin:end])
        position = end
    if position != len(data):
        what = "truncated" if position > len(data) else "bytes that no tensor owns at its end"
        raise CheckpointError(
            f"{path}: its tensors need {position} bytes, the file holds {len(data)} ({what})"
        )
    return tensors


def write_safetensors(
    file: str | os.PathLike[str],
    tensors: Iterable[StoredTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a safetensors file, atomically; also onto the file they are mapped from.

    Args:
        file: The target.
        tensors: Their names must differ. Large items come first, so that each is aligned.
        metadata: Text for the header's `__metadata__`.

    Raises:
        ValueError: Two tensors of one name, or metadata that is not text.
        OSError: The file can't be written; an old one is still there.
    """
    ordered = sorted(tensors, key=lambda t: (-np.dtype(_NUMPY[t.dtype]).itemsize, t.name))
    header: dict[str, Any] = {}
    if metadata:
        if not _is_text_map(metadata):
            raise ValueError(f"metadata is {short(metadata)}, expected names and values of text")
        header["__metadata__"] = dict(metadata)
    position = 0
    for tensor in ordered:
        if tensor.name in header or tensor.name == "__metadata__":
            raise ValueError(f"a second tensor is named {tensor.name!r}")
        end = position + tensor.data.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(file) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            out.write(tensor.data.data)


def _read_header(path: Path, source: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header's tensor entries and where the data begin."""
    size = os.fstat(source.fileno()).st_size
    if size < 8:
        raise CheckpointError(f"{path}: {size} bytes, too short for a safetensors file")
    length = int.from_bytes(source.read(8), "little")
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise CheckpointError(
            f"{path}: claims a header of {length} bytes, but the file has {size} and a header "
            f"at most {MAX_HEADER_BYTES} (truncated, or not safetensors)"
        )
    return _parse_header(path, source.read(length)), 8 + length


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    """Return the header's tensor entries, its metadata checked and taken out."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise CheckpointError(f"{path}: the header names {short(twice)} twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{path}: its header is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise CheckpointError(f"{path}: its __metadata__ is {short(metadata)}, expected text")
    return header


def _parse_entry(path: Path, name: str, entry: object) -> tuple[int, int, str, tuple[int, ...]]:
    """Return (begin, end, dtype, shape) of a header entry whose size is what its shape needs."""
    where = f"{path}: tensor {short(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: {short(entry)}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NUMPY:
        raise CheckpointError(f"{where}: dtype {short(dtype)}, supported: {_names(_NUMPY)}")
    if not _is_list_of_counts(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{where}: shape {short(shape)}, expected up to {MAX_RANK} counts")
    if not _is_list_of_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {short(offsets)}, expected [begin, end]")
    needed = math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{where}: shape {short(shape)} of {dtype} needs {short(needed)} bytes, "
            f"its data_offsets span {short(offsets[1] - offsets[0])}"
        )
    return offsets[0], offsets[1], dtype, tuple(shape)


def _is_list_of_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _is_text_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(part, str) for pair in value.items() for part in pair
    )


def _names(table: Mapping[str, str]) -> str:
    return ", ".join(table)
