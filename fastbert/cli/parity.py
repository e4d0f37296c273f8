"""How far two computations of the same hidden states are apart, layer by layer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbert import ops
from fastbert.cli.common import signals_deferred
from fastbert.cli.padded import pad
from fastbert.model import BertModel
from fastbert.packing import Packed, pack, token_budget_batches

if TYPE_CHECKING:
    from fastbert.engine import Engine

BATCH_TOKENS = 2048
LARGEST = float(np.finfo(np.float64).max)  # and not inf, which JSON cannot hold
Rows = NDArray[np.float64]  # (N, C)


@dataclass(frozen=True)
class Bar:
    """The largest difference from float64 that sentence vectors of length 1 may have."""

    cosine_mean: float
    cosine_min: float
    max_abs: float | None


# float16 has no bar of its own; with three more bits than bfloat16 it must meet that one.
BARS = {
    "float64": Bar(0.999999, 0.999999, 1e-5),
    "float32": Bar(0.999999, 0.999999, 1e-5),
    "bfloat16": Bar(0.9999, 0.9995, None),
    "float16": Bar(0.9999, 0.9995, None),
}
REFERENCE_BAR = 1e-10  # between our float64 and that of transformers, at real tokens


class Difference:
    """Largest |a - b| and the cosine of a and b, gathered over batches of rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.max_abs = 0.0
        self.cosine_min = 1.0
        self._cosine_sum = 0.0

    @property
    def cosine_mean(self) -> float:
        """Mean cosine of all rows."""
        return self._cosine_sum / self.rows if self.rows else 1.0

    def add(self, got: NDArray[Any], want: NDArray[Any]) -> None:
        """Count rows (N, C) against what they should be; NaN and inf count as the largest gap."""
        a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if a.shape != b.shape:
            raise ValueError(f"shapes {a.shape} and {b.shape} differ")
        if not len(a):
            return
        gap = np.nan_to_num(np.abs(a - b), nan=LARGEST, posinf=LARGEST).max()
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
        cosines[~(a.any(axis=1) | b.any(axis=1))] = 1.0  # two rows of zeros agree
        cosines = np.nan_to_num(cosines, nan=-1.0)
        self.max_abs = max(self.max_abs, float(gap))
        self.cosine_min = min(self.cosine_min, float(cosines.min()))
        self._cosine_sum += float(cosines.sum())
        self.rows += len(a)

    def within(self, bar: Bar) -> bool:
        """Say whether this difference is at most what ``bar`` allows."""
        return (
            self.cosine_mean >= bar.cosine_mean
            and self.cosine_min >= bar.cosine_min
            and (bar.max_abs is None or self.max_abs <= bar.max_abs)
        )

    def as_dict(self) -> dict[str, float]:
        """Return the figures under their names."""
        return {
            "max_abs": self.max_abs,
            "cosine_mean": self.cosine_mean,
            "cosine_min": self.cosine_min,
        }


def to_rows(tensor: Tensor) -> Rows:
    """Return a tensor of any float dtype and device as float64 NumPy."""
    rows: Rows = tensor.detach().to("cpu", torch.float64).numpy()
    return rows


def batches(ids: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Group token ids into batches of about ``BATCH_TOKENS``, so that big models fit."""
    for chosen in token_budget_batches([len(row) for row in ids], BATCH_TOKENS):
        yield [ids[int(index)] for index in chosen]


def hidden_states(model: BertModel, packed: Packed) -> list[Rows]:
    """Return the L + 1 hidden states (T, C), the embeddings first."""
    with torch.inference_mode():
        output = model(packed, output_hidden_states=True)
    return [to_rows(state) for state in output.hidden_states]


def reference_states(model: BertModel, packed: Packed) -> list[Rows]:
    """Return the same of a float64 model, on the plain-torch reference whatever else serves."""
    with ops.use("reference"):
        return hidden_states(model, packed)


def transformers_installed() -> bool:
    """Say whether transformers can be compared with."""
    return importlib.util.find_spec("transformers") is not None


def load_transformers(directory: Path, dtype: torch.dtype) -> Any:
    """Return transformers' own model of a directory, its loading reports silenced."""
    with signals_deferred():
        import transformers

        bert = transformers.BertModel  # transformers imports its modules at the first access
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return bert.from_pretrained(
        directory, dtype=dtype, add_pooling_layer=False, local_files_only=True
    ).eval()


def transformers_states(model: Any, ids: Sequence[Sequence[int]], pad_id: int) -> list[Rows]:
    """Return transformers' hidden states at real tokens, (T, C) each, in packed order."""
    padded, mask = pad(ids, pad_id)
    with torch.inference_mode():
        output = model(padded, attention_mask=mask.long(), output_hidden_states=True)
    return [to_rows(state[mask]) for state in output.hidden_states]


class LayerParity:
    """The differences of every layer, gathered batch by batch.

    Attributes:
        layers: of this machine's states from float64's; the embeddings first, L + 1 in all.
        engine: of the engine's last states from float64's; no rows where there is no engine.
        reference: of our float64 from that of transformers, over all layers; no rows without it.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [Difference() for _ in range(layers + 1)]
        self.engine = Difference()
        self.reference = Difference()


def layer_parity(
    ids: Sequence[Sequence[int]],
    model: BertModel,
    exact: BertModel,
    engine: Engine | None,
    theirs: Any | None,
) -> LayerParity:
    """Compare every layer on the given token ids.

    Args:
        ids: texts as token ids.
        model: this machine's path, in the dtype and on the device in question.
        exact: the same checkpoint in float64 on the CPU.
        engine: the CPU inference way, or None.
        theirs: transformers' model in float64, or None.
    """
    parity = LayerParity(len(exact.encoder.layer))
    pad_id = exact.config.pad_token_id or 0
    for batch in batches(ids):
        packed = pack(batch)
        want = reference_states(exact, packed.to("cpu"))
        got = hidden_states(model, packed.to(model.device))
        for difference, ours, truth in zip(parity.layers, got, want, strict=True):
            difference.add(ours, truth)
        if engine is not None:
            parity.engine.add(engine(packed), want[-1])
        if theirs is not None:
            for ours, other in zip(want, transformers_states(theirs, batch, pad_id), strict=True):
                parity.reference.add(ours, other)
    return parity


def transformers_ids(directory: Path, texts: list[str], max_length: int) -> list[list[int]]:
    """Return the ids that transformers' tokenizer of a directory gives each text."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
