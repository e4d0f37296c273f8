"""Heads in directories: what transformers wrote and reads, and when two models agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from heads_pair import NAMES, PREDICTING, head_pair, make_batch
from safetensors.torch import load_file, save_file
from torch import Tensor

KINDS = [*((name, True) for name in NAMES), *((name, False) for name in PREDICTING)]
"""Heads and whether their word embeddings are tied, where that makes a difference."""
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
BIAS = "cls.predictions.bias"
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
Tensors = dict[str, Tensor]


def save_theirs(place: Path, name: str, **changes: Any) -> tuple[Path, Any, Any]:
    """(directory that transformers wrote, its model, ours) of a head."""
    ours, theirs = head_pair(name, **changes)
    theirs.save_pretrained(place / "theirs")
    return place / "theirs", theirs, ours


def load_theirs(name: str, directory: Path) -> Any:
    """transformers' model of a directory, in float64; nothing may be missing or left over."""
    import transformers

    model, info = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager", dtype=torch.float64
    )
    assert not any(info[fault] for fault in FAULTS), info
    return model


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write the directory's tensors again after `change`, which returns them."""
    file = directory / "model.safetensors"
    tensors = change({name: tensor.clone() for name, tensor in load_file(file).items()})
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, file, {"format": "pt"})


def assert_same(a: Any, b: Any, name: str, *, exact: bool = False) -> None:
    """Equal outputs of two models, ours or transformers'."""
    batch = make_batch(name)
    with torch.no_grad():
        left, right = a(**batch.inputs()), b(**batch.inputs())
    assert tuple(left.keys()) == tuple(right.keys())
    for key in left.keys():  # noqa: SIM118  # an output's iterator gives values
        if exact:
            assert torch.equal(left[key], right[key]), key
        else:
            torch.testing.assert_close(left[key], right[key], rtol=0.0, atol=1e-10)
