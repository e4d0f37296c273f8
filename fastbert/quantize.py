"""Sentence vectors in fewer bytes, with the meaning that sentence-transformers gives the names."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_FEW = 100  # vectors; fewer give unsteady ranges


def quantize(vectors: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """Convert (B, C) float32 vectors.

    Args:
        vectors: (B, C).
        precision: ``float32`` changes nothing; ``uint8`` maps each dimension's range over these
            very vectors to 0…255, ``int8`` to -128…127, so a vector's bytes depend on the others;
            ``ubinary`` packs the signs of 8 dimensions into a byte, ``binary`` the same minus 128.

    Returns:
        (B, C) for the 8-bit kinds, (B, ⌈C/8⌉) for the binary ones.

    Raises:
        ValueError: on another name, or for an 8-bit kind of a single vector, which has no range.

    Warns:
        UserWarning: 8-bit ranges from fewer than 100 vectors.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    kind = np.uint8 if precision == "uint8" else np.int8
    if len(vectors) == 0:
        return np.zeros(vectors.shape, kind)
    if len(vectors) == 1:
        raise ValueError(f"{precision} takes its ranges from the vectors, and one vector has none")
    if len(vectors) < _FEW:
        warnings.warn(
            f"{precision} ranges from {len(vectors)} vectors only; {_FEW} or more are steadier",
            stacklevel=3,
        )
    low, high = vectors.min(axis=0), vectors.max(axis=0)  # (C,)
    step = (high - low) / 255
    steps = np.clip(np.floor((vectors - low) / np.where(step == 0, 1, step)), 0, 255)
    return (steps if precision == "uint8" else steps - 128).astype(kind)
