"""Scores between sentence vectors."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbert.checks import check_choice

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def similarity(first: Any, second: Any, name: str = "cosine") -> Any:
    """Scores of each vector of `first` with each of `second`; higher is closer.

    Args:
        first: (A, C), or one vector (C,).
        second: (B, C), or one vector (C,).
        name: ``cosine``, ``dot``, or the negated distance ``euclidean`` or ``manhattan``.

    Returns:
        (A, B) float32: a tensor where both are tensors, else a NumPy array.

    Raises:
        ValueError: on another name, or vectors of different widths.
    """
    check_choice("similarity", name, SIMILARITIES)
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch
    tensors = torch is not None and all(isinstance(v, torch.Tensor) for v in (first, second))
    a, b = _matrix(first), _matrix(second)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} numbers have no similarity")
    scores = _scores(a, b, name).astype(np.float32)
    return torch.from_numpy(scores) if torch is not None and tensors else scores


def _matrix(vectors: Any) -> NDArray[np.float32]:
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu().float().numpy()
    elif isinstance(vectors, list) and vectors and hasattr(vectors[0], "detach"):
        vectors = [vector.detach().cpu().float().numpy() for vector in vectors]
    matrix = np.asarray(vectors, dtype=np.float32)
    if matrix.ndim == 1:
        matrix = matrix[None]
    if matrix.ndim != 2:
        raise ValueError(f"vectors must be (B, C) or (C,), not {matrix.shape}")
    return matrix


def _scores(a: NDArray[np.float32], b: NDArray[np.float32], name: str) -> NDArray[Any]:
    if name == "cosine":
        return _unit(a) @ _unit(b).T
    if name == "dot":
        return a @ b.T
    order = 2 if name == "euclidean" else 1
    # One row at a time: a whole (A, B, C) of differences would be too much.
    rows = [-np.linalg.norm(b - row, ord=order, axis=1) for row in a]
    return np.stack(rows) if rows else np.zeros((0, len(b)))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
