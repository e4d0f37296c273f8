from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fastbert.checkpoint import (
    CheckpointError,
    LoadReport,
    StoredTensor,
    canonical_names,
    canonical_tensors,
    check_shapes,
    compare_names,
    fuse_qkv,
    qkv_parts,
    read_checkpoint,
    read_safetensors,
    save_checkpoint,
    split_names,
    split_qkv,
    tied_sources,
    write_safetensors,
)
from fastbert.config import BertConfig

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("F64", "F32", "F16", "BF16")
TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}
DECODER = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias")


def random_tensor(dtype: str, *shape: int) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (values * 3).to(DTYPES[dtype])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


# The file format


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4), (1, 2, 3, 4)])
def test_reads_what_the_library_wrote(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensors = {"odd": random_tensor("U8", 3), "x": random_tensor(dtype, *shape)}
    save_file(tensors, tmp_path / "f.safetensors")
    found = read_safetensors(tmp_path / "f.safetensors")
    assert set(found) == set(tensors)
    stored = found["x"]
    assert (stored.name, stored.dtype, stored.shape) == ("x", dtype, shape)
    assert same_bits(stored.torch(), tensors["x"])
    array = stored.numpy()
    assert array.shape == shape
    assert array.ctypes.data % array.itemsize == 0
    widened = tensors["x"].float() if dtype == "BF16" else tensors["x"]
    np.testing.assert_array_equal(array, widened.numpy())
    assert array.dtype == widened.numpy().dtype


def test_bf16_widens_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    stored = StoredTensor("x", "BF16", (2**16,), bits.view(np.uint8))
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(stored.numpy().view(np.uint32), expected.view(np.uint32))


def test_the_library_reads_what_we_wrote(tmp_path: Path) -> None:
    tensors = {name.lower(): random_tensor(name, 3, 5) for name in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    stored = [StoredTensor.of(name, tensor) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "f.safetensors", stored, {"format": "pt"})
    found = load_file(tmp_path / "f.safetensors")
    assert set(found) == set(tensors)
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    ours = read_safetensors(tmp_path / "f.safetensors")
    assert all(same_bits(ours[name].torch(), tensor) for name, tensor in tensors.items())
    raw = (tmp_path / "f.safetensors").read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] % 8 == 0


def test_stored_tensor_of_everything(tmp_path: Path) -> None:
    base = random_tensor("F32", 4, 6)
    for value in (base.T, base[:, ::2], base.numpy().T, base.numpy().astype(">f4"), base[1, 2]):
        stored = StoredTensor.of("x", value)
        np.testing.assert_array_equal(stored.numpy(), np.asarray(value))
    parameter = torch.nn.Parameter(base)
    assert same_bits(StoredTensor.of("x", parameter).torch(), base)
    assert StoredTensor.of("y", StoredTensor.of("x", base)).name == "y"
    refused = (
        [1.0],
        None,
        np.zeros(2, np.complex64),
        np.array(["a"]),
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
    )
    for value in refused:
        with pytest.raises(TypeError, match="the_name"):
            StoredTensor.of("the_name", value)


def test_results_are_apart_from_the_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "f.safetensors")
    stored = read_safetensors(tmp_path / "f.safetensors")["x"]
    stored.torch().zero_()
    with pytest.raises(ValueError, match="read-only"):
        stored.numpy()[0] = 7
    assert stored.torch().tolist() == [1, 1, 1]


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes, too short"),
    "seven bytes": (b"1234567", "7 bytes, too short"),
    "a header of 10 GB": (file_of(b"{}", length=10**10), "claims a header of 10000000000 bytes"),
    "a header of 2**64": (file_of(b"{}", length=2**64 - 1), "claims a header"),
    "a header past the end": (file_of(b"{}", length=3), "claims a header of 3 bytes"),
    "not JSON": (file_of(b"{x}"), "not valid JSON"),
    "an empty header": (file_of(b""), "not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not valid JSON"),
    "a long integer": (file_of(b'{"a": ' + b"9" * 9999 + b"}"), "not valid JSON"),
    "nested": (file_of(b"[" * 100_000), "nested"),
    "not an object": (file_of([]), "not an object"),
    "a name twice": (
        file_of(b'{"a": {}, "bb": {}, "a": {}}'),
        "names 'a' twice",
    ),
    "a key twice": (
        file_of(b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}'),
        "'dtype' twice",
    ),
    "metadata no object": (file_of({"__metadata__": 3}), "__metadata__"),
    "metadata no text": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry no object": (file_of({"a": 1}), "tensor 'a'"),
    "entry without shape": (file_of({"a": {"dtype": "U8", "data_offsets": [0, 0]}}), "tensor 'a'"),
    "entry with more": (file_of({"a": {**entry(0, 0), "x": 1}}), "tensor 'a'"),
    "dtype unknown": (file_of({"a": entry(0, 1, dtype="F8_E4M3")}, b"1"), "'F8_E4M3', supported"),
    "dtype no text": (file_of({"a": entry(0, 1, dtype=["U8"])}, b"1"), "dtype"),
    "shape negative": (file_of({"a": entry(0, 1, [-1])}, b"1"), "shape"),
    "shape twice negative": (file_of({"a": entry(0, 1, [-1, -1])}, b"1"), "shape"),
    "shape no integer": (file_of({"a": entry(0, 1, [1.0])}, b"1"), "shape"),
    "shape of bool": (file_of({"a": entry(0, 1, [True])}, b"1"), "shape"),
    "shape no list": (file_of({"a": entry(0, 1, 1)}, b"1"), "shape"),
    "shape huge": (file_of({"a": entry(0, 1, [2**62] * 30)}, b"1"), "needs an integer of"),
    "shape overflowing to 0": (file_of({"a": entry(0, 0, [2**32, 2**32])}), "needs"),
    "shape of rank 100": (file_of({"a": entry(0, 1, [1] * 100)}, b"1"), "shape"),
    "size off by one": (file_of({"a": entry(0, 8, [7])}, bytes(8)), "needs 7 bytes.*span 8"),
    "offsets reversed": (file_of({"a": entry(1, 0, [0])}, b"1"), "data_offsets"),
    "offsets negative": (file_of({"a": entry(-1, 0, [1])}, b"1"), "data_offsets"),
    "offsets three": (
        file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"1"),
        "data_offsets",
    ),
    "overlap": (file_of({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "'b' overlaps"),
    "same bytes twice": (file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "'b' overlaps"),
    "hole": (file_of({"a": entry(0, 4), "b": entry(5, 6)}, bytes(6)), "'b' leaves a hole"),
    "hole at the start": (file_of({"a": entry(1, 4)}, bytes(4)), "'a' leaves a hole"),
    "truncated": (file_of({"a": entry(0, 4)}, bytes(3)), r"need 4 bytes.*holds 3 \(truncated"),
    "bytes left over": (file_of({"a": entry(0, 4)}, bytes(5)), "no tensor owns"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, match = BAD_FILES[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_safetensors(tmp_path / "model.safetensors")
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


def test_unaligned_data_is_aligned_for_the_reader(tmp_path: Path) -> None:
    values = np.arange(3, dtype=np.float64)
    header = json.dumps({"a": entry(0, 24, [3], "F64")}).encode()
    header += b" " * ((3 - len(header)) % 8)
    (tmp_path / "f").write_bytes(file_of(header, values.tobytes()))
    array = read_safetensors(tmp_path / "f")["a"].numpy()
    assert array.ctypes.data % 8 == 0
    np.testing.assert_array_equal(array, values)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_whole_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "f"
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 2, dtype=torch.int8)}, file)
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw) - 1))
        raw[where] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(raw), len(raw) - 1, 8, 40]))
    file.write_bytes(raw[:end])
    try:
        tensors = read_safetensors(file)
    except CheckpointError:
        return
    assert all(t.numpy().shape == t.shape and t.torch().shape == t.shape for t in tensors.values())


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    x = StoredTensor.of("x", np.zeros(1))
    for tensors in ([x, x], [StoredTensor.of("__metadata__", x)]):
        with pytest.raises(ValueError, match="second tensor"):
            write_safetensors(tmp_path / "f", tensors)
    with pytest.raises(ValueError, match="metadata"):
        write_safetensors(tmp_path / "f", [x], {"a": 1})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


# Directories


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


# Names


def test_canonical_names() -> None:
    pairs = {
        "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
        "bert.pooler.dense.bias": "bert.pooler.dense.bias",
        "module.encoder.layer.0.output.dense.bias": "bert.encoder.layer.0.output.dense.bias",
        "module.bert.pooler.dense.bias.x": "bert.pooler.dense.bias.x",
        "_orig_mod.module.embeddings.LayerNorm.gamma": "bert.embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.beta": "bert.embeddings.LayerNorm.bias",
        "cls.predictions.transform.LayerNorm.gamma": "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.bias": "cls.predictions.bias",
        "classifier.weight": "classifier.weight",
        "qa_outputs.bias": "qa_outputs.bias",
        # gamma and beta inside somebody's own names are left alone
        "my.gamma": "my.gamma",
        "LayerNorm.gamma.weight": "LayerNorm.gamma.weight",
        "MyLayerNorm.gamma": "MyLayerNorm.gamma",
        "encoder.gamma_LayerNorm.gammas": "bert.encoder.gamma_LayerNorm.gammas",
        "remodule.x": "remodule.x",
    }
    assert canonical_names(pairs) == pairs
    dropped = [
        "embeddings.position_ids",
        "bert.embeddings.position_ids",
        "module.embeddings.token_type_ids",
    ]
    assert canonical_names([*dropped, "my.position_ids"]) == {"my.position_ids": "my.position_ids"}


def test_two_names_for_one_tensor() -> None:
    one = StoredTensor.of("", np.ones(3, np.float32))
    names = ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight")
    same = canonical_tensors(dict.fromkeys(names, one))
    assert list(same) == ["bert.embeddings.LayerNorm.weight"]
    assert same["bert.embeddings.LayerNorm.weight"].name == "bert.embeddings.LayerNorm.weight"
    others = (np.zeros(3, np.float32), np.ones(3, np.float64), np.ones((3, 1), np.float32))
    for other in others:
        with pytest.raises(CheckpointError, match=r"LayerNorm\.gamma.*both mean.*differ|differ"):
            canonical_tensors({names[0]: one, names[1]: StoredTensor.of("", other)})


def test_tied_sources() -> None:
    words = "bert.embeddings.word_embeddings.weight"
    weight, decoder_bias, bias = DECODER
    assert tied_sources([words, bias]) == {weight: words, decoder_bias: bias}
    assert tied_sources([words, decoder_bias]) == {weight: words, bias: decoder_bias}
    assert tied_sources([weight, bias]) == {words: weight, decoder_bias: bias}
    assert tied_sources([words, bias], tie_word_embeddings=False) == {decoder_bias: bias}
    assert tied_sources([words, *DECODER]) == {}
    assert tied_sources([]) == {}


def test_compare_names() -> None:
    words = "bert.embeddings.word_embeddings.weight"
    expected = [words, *DECODER]
    assert compare_names(expected, [words, DECODER[2]]).ok
    assert compare_names(expected, [words, DECODER[1]]).ok
    assert compare_names(expected, [words]) == LoadReport(tuple(sorted(DECODER[1:])), ())
    untied = compare_names(expected, [words, DECODER[2]], tie_word_embeddings=False)
    assert untied == LoadReport((DECODER[0],), ())
    assert compare_names([words], [words, DECODER[2]]) == LoadReport((), (DECODER[2],))
    report = compare_names(["a", "b"], ["c"])
    assert not report.ok
    assert str(report) == (
        "2 tensors of the model not in the checkpoint: a, b. "
        "1 tensor of the checkpoint not in the model: c."
    )
    many = compare_names([f"n{i:03}" for i in range(100)], [])
    assert "100 tensors" in str(many)
    assert str(many).endswith("n019 and 80 more.")
    assert "\n" not in str(many)


def test_check_shapes() -> None:
    tensors = {"a": StoredTensor.of("a", np.zeros((2, 3)))}
    check_shapes({"a": (2, 3), "b": (1,)}, tensors)
    for wrong in ((3, 2), (6,), (2, 3, 1)):
        with pytest.raises(CheckpointError, match=r"a: the checkpoint holds shape \[2, 3\]"):
            check_shapes({"a": wrong}, tensors)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_qkv_fuses_and_splits(kind: str) -> None:
    stem = "bert.encoder.layer.0.attention.self"
    arrays: dict[str, Any] = {"other.query.weight": np.zeros((2, 2))}
    for i, part in enumerate(("query", "key", "value")):
        arrays[f"{stem}.{part}.weight"] = np.full((2, 2), float(i))
        arrays[f"{stem}.{part}.bias"] = np.full(2, float(i))
    if kind == "torch":
        arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
    fused: dict[str, Any] = fuse_qkv(arrays, torch.cat if kind == "torch" else None)
    assert set(fused) == {f"{stem}.qkv.weight", f"{stem}.qkv.bias", "other.query.weight"}
    assert fused[f"{stem}.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]
    assert fused[f"{stem}.qkv.weight"].shape == (6, 2)
    again = split_qkv(fused)
    assert {name: a.tolist() for name, a in again.items()} == {
        n: a.tolist() for n, a in arrays.items()
    }
    assert sorted(split_names(fused)) == sorted(arrays)
    assert qkv_parts("bert.pooler.dense.weight") == ()


def test_qkv_that_does_not_fit() -> None:
    stem = "bert.encoder.layer.0.attention.self"
    arrays = {f"{stem}.{part}.bias": np.zeros(2) for part in ("query", "key", "value")}
    with pytest.raises(CheckpointError, match=r"key\.bias"):
        fuse_qkv({name: a for name, a in arrays.items() if ".key." not in name})
    with pytest.raises(CheckpointError, match="shapes"):
        fuse_qkv({**arrays, f"{stem}.key.bias": np.zeros(1), f"{stem}.value.bias": np.zeros(3)})
    with pytest.raises(CheckpointError, match="7 rows"):
        split_qkv({f"{stem}.qkv.bias": np.zeros(7)})


# Load, save, load in transformers


def new_norms(name: str) -> str:
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return old.replace("LayerNorm.bias", "LayerNorm.beta")


Tensors = dict[str, torch.Tensor]
VARIANTS: dict[str, Callable[[Tensors], Tensors]] = {
    "as transformers": lambda t: t,
    "with bert.": lambda t: {
        name if name.startswith(("bert.", "cls.")) else f"bert.{name}": x for name, x in t.items()
    },
    "no prefix": lambda t: {name.removeprefix("bert."): x for name, x in t.items()},
    "module.": lambda t: {f"module.{name}": x for name, x in t.items()},
    "gamma and beta": lambda t: {new_norms(name): x for name, x in t.items()},
    "stray buffers": lambda t: {
        **t,
        "embeddings.position_ids": torch.arange(10)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, 10, dtype=torch.int64),
    },
    "all of it": lambda t: {
        f"module.{new_norms(name).removeprefix('bert.')}": x
        for name, x in {**t, "embeddings.position_ids": torch.arange(10)[None]}.items()
    },
    "no decoder": lambda t: {n: x for n, x in t.items() if n not in DECODER[:2]},
    "no predictions bias": lambda t: {n: x for n, x in t.items() if n not in DECODER[::2]},
    "decoder weight alone": lambda t: {n: x for n, x in t.items() if n != DECODER[1]},
}
CLASSES = {"BertModel": transformers.BertModel, "BertForMaskedLM": transformers.BertForMaskedLM}


def random_model(class_name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = CLASSES[class_name](transformers.BertConfig(**{**TINY, **changes}))
    for parameter in model.parameters():  # biases too, which start as zeros
        torch.nn.init.normal_(parameter)
    return model.eval()


def write_model(directory: Path, model: Any, tensors: Tensors) -> None:
    directory.mkdir()
    model.config.save_pretrained(directory)
    save_file({name: x.clone() for name, x in tensors.items()}, directory / "model.safetensors")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_load_save_load(tmp_path: Path, class_name: str, variant: str, dtype: str) -> None:
    model = random_model(class_name).to(DTYPES[dtype])
    truth: Tensors = model.state_dict()
    write_model(tmp_path / "in", model, VARIANTS[variant](truth))
    config = BertConfig.from_pretrained(tmp_path / "in")
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    report = compare_names(canonical_names(truth).values(), tensors)
    assert report.ok, report
    save_checkpoint(tmp_path / "out", tensors, config)

    loaded, info = CLASSES[class_name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    found = loaded.state_dict()
    assert set(found) == set(truth)
    assert all(same_bits(found[name], tensor) for name, tensor in truth.items())
    assert BertConfig.from_pretrained(tmp_path / "out").dtype == str(DTYPES[dtype])[6:]

    # And the way back: what transformers writes is what we read.
    loaded.save_pretrained(tmp_path / "theirs")
    back = canonical_tensors(read_checkpoint(tmp_path / "theirs"))
    tied = tied_sources(back)
    for raw, name in canonical_names(truth).items():
        assert same_bits(back[tied.get(name, name)].torch(), truth[raw])


@pytest.mark.parametrize("class_name", CLASSES)
def test_mixed_files_lose_nothing(tmp_path: Path, class_name: str) -> None:
    model = random_model(class_name)
    truth: Tensors = {}
    for i, (name, x) in enumerate(model.state_dict().items()):
        truth[name] = x.to(DTYPES[FLOATS[i % 4]]) if name not in DECODER else x
    write_model(tmp_path / "in", model, {n: x for n, x in truth.items() if n not in DECODER[:2]})
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    save_checkpoint(tmp_path / "out", tensors, BertConfig.from_pretrained(tmp_path / "in"))
    again = read_checkpoint(tmp_path / "out")
    assert all(same_bits(again[name].torch(), tensors[name].torch()) for name in tensors)
    loaded, info = CLASSES[class_name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in loaded.state_dict().items():
        if name not in DECODER[:2]:
            assert torch.equal(tensor, truth[name].to(torch.float64))


def test_an_untied_decoder_keeps_its_own_weight(tmp_path: Path) -> None:
    model = random_model("BertForMaskedLM", tie_word_embeddings=False)
    truth: Tensors = model.state_dict()
    write_model(tmp_path / "in", model, truth)
    config = BertConfig.from_pretrained(tmp_path / "in")
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    assert compare_names(truth, tensors, tie_word_embeddings=config.tie_word_embeddings).ok
    save_checkpoint(tmp_path / "out", tensors, config)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert same_bits(loaded.state_dict()[DECODER[0]], truth[DECODER[0]])
    assert not torch.equal(truth[DECODER[0]], truth["bert.embeddings.word_embeddings.weight"])


# Saving


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


def test_saving_to_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig.from_dict(TINY)
    save_checkpoint(tmp_path, {"a": np.ones(3)}, config, metadata={"step": "1"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"model.safetensors", "config.json"}
    assert b'"step":"1"' in before["model.safetensors"]
    assert b'"format":"pt"' in before["model.safetensors"]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*model\.safetensors"):
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
