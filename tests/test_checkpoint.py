from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from stored_tensors import DTYPES, random_tensor, same_bits

from fastbert.checkpoint import (
    CheckpointError,
    canonical_names,
    canonical_tensors,
    read_checkpoint,
    read_safetensors,
    save_checkpoint,
)
from fastbert.config import BertConfig


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        read_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no weights \(model\.safetensors"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_safetensors(tmp_path / "absent")


def test_the_default_model(minilm_dir: Path) -> None:
    tensors = canonical_tensors(read_checkpoint(minilm_dir))
    expected = transformers.BertModel.from_pretrained(minilm_dir).state_dict()
    names = canonical_names(expected)
    assert {names[name] for name in expected if name in names} == set(tensors)
    assert all(same_bits(tensors[names[n]].torch(), expected[n]) for n in names)


def sharded(directory: Path, weight_map: Any, shards: dict[str, list[str]], kind: str) -> None:
    tensors = {name: torch.full((2,), float(ord(name))) for name in "abc"}
    for shard, names in shards.items():
        chosen = {name: tensors[name] for name in names}
        if kind == "safetensors":
            save_file(chosen, directory / shard)
        else:
            torch.save(chosen, directory / shard)
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (directory / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    sharded(tmp_path, {"a": "1", "b": "2", "c": "2"}, {"1": ["a"], "2": ["b", "c"]}, kind)
    found = read_checkpoint(tmp_path, allow_pickle=kind == "bin")
    assert {name: t.numpy().tolist() for name, t in found.items()} == {
        name: [float(ord(name))] * 2 for name in "abc"
    }


BOTH = {"1": ["a"], "2": ["b", "c"]}
BAD_SHARDS: dict[str, tuple[Any, dict[str, list[str]], str]] = {
    "shard absent": ({"a": "1", "b": "3"}, BOTH, "names the shard '3', which is not there"),
    "name in two shards": ({"a": "1", "b": "2"}, {"1": ["a"], "2": ["a", "b"]}, "'a' is in two"),
    "name in the other shard": ({"a": "2", "b": "2", "c": "1"}, BOTH, "2 tensors are not in"),
    "name in none": ({"a": "1", "b": "2", "d": "1"}, BOTH, "1 tensors are not in.*'d'"),
    "parent": ({"a": "../1"}, BOTH, "name of a file beside it"),
    "absolute": ({"a": "/etc/passwd"}, BOTH, "name of a file beside it"),
    "folder": ({"a": "x/1"}, BOTH, "name of a file beside it"),
    "backslash": ({"a": "..\\1"}, BOTH, "name of a file beside it"),
    "itself": ({"a": "."}, BOTH, "name of a file beside it"),
    "no text": ({"a": 1}, BOTH, "name of a file beside it"),
    "no map": (["1"], BOTH, "weight_map"),
    "empty": ({}, BOTH, "weight_map"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_bad_indexes(tmp_path: Path, case: str) -> None:
    weight_map, shards, match = BAD_SHARDS[case]
    (tmp_path / "model").mkdir()
    (tmp_path / "1").write_bytes(b"")
    sharded(tmp_path / "model", weight_map, shards, "safetensors")
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_indexes_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_checkpoint(tmp_path)


def test_pickles_only_on_the_flag(tmp_path: Path) -> None:
    tensors = {name: random_tensor(name, 2, 3) for name in DTYPES}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        read_checkpoint(tmp_path)
    found = read_checkpoint(tmp_path, allow_pickle=True)
    assert all(same_bits(found[name].torch(), tensor) for name, tensor in tensors.items())
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(read_checkpoint(tmp_path, allow_pickle=True)) == {"x"}  # safetensors first


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "value", [[1], {"a": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}, None]
)
def test_pickles_of_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        read_checkpoint(tmp_path, allow_pickle=True)


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    torch.save({"a": Evil(tmp_path / "was-here")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="UnpicklingError"):
        read_checkpoint(tmp_path, allow_pickle=True)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, on what the damage made of it
@settings(max_examples=100, deadline=None)
@given(where=st.integers(0, 1200), old=st.booleans(), change=st.integers(0, 255), cut=st.booleans())
def test_damaged_pickles(
    where: int, old: bool, change: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pickle")
    file = folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=not old)
    raw = bytearray(file.read_bytes())
    where %= len(raw)
    raw[where] = change
    file.write_bytes(raw[:where] if cut else raw)
    try:
        tensors = read_checkpoint(folder, allow_pickle=True)
    except CheckpointError:
        return
    assert all(t.numpy().shape == t.shape for t in tensors.values())


def test_saving_onto_the_mapped_file(tmp_path: Path, minilm_dir: Path) -> None:
    config = BertConfig.from_pretrained(minilm_dir)
    save_checkpoint(tmp_path, canonical_tensors(read_checkpoint(minilm_dir)), config)
    mapped = read_checkpoint(tmp_path)
    views = {name: tensor.numpy() for name, tensor in mapped.items()}
    before = {name: view.copy() for name, view in views.items()}
    save_checkpoint(tmp_path, mapped, config)
    again = read_checkpoint(tmp_path)
    for name, array in before.items():
        np.testing.assert_array_equal(again[name].numpy(), array)
        np.testing.assert_array_equal(views[name], array)


def test_weights_and_config_are_saved_both_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, {"a": np.ones(3)}, BertConfig(vocab_size=50))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.fsync, []

    def full_at_the_second(descriptor: int) -> None:  # the config fits, the weights don't
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match=r"No space left.*model\.safetensors"):
        save_checkpoint(tmp_path, {"a": np.zeros(4)}, BertConfig(vocab_size=60))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_to_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(hidden_size=24)
    save_checkpoint(tmp_path, {"a": np.ones(3)}, config, metadata={"step": "1"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"model.safetensors", "config.json"}
    assert b'"step":"1"' in before["model.safetensors"]
    assert b'"format":"pt"' in before["model.safetensors"]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*config\.json"):
        save_checkpoint(tmp_path, {"a": np.zeros(3)}, config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_what_is_no_tensor_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="b: a list"):
        save_checkpoint(
            tmp_path / "x",
            {"a": np.zeros(3), "b": [1.0]},  # type: ignore[dict-item]
            BertConfig(),
        )
    assert not (tmp_path / "x").exists()


def test_saving_integers_keeps_the_configs_dtype(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"a": np.zeros(3, np.int64)}, BertConfig(dtype="float16"))
    assert BertConfig.from_pretrained(tmp_path).dtype == "float16"
