from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from stored_tensors import DTYPES, random_tensor, same_bits

from fastbert.checkpoint import (
    CheckpointError,
    StoredTensor,
    read_checkpoint,
    read_safetensors,
    write_safetensors,
)


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
    for name, stored_again in ours.items():  # each tensor begins at a multiple of its item's size
        assert stored_again.data.ctypes.data % tensors[name].itemsize == 0


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
    with pytest.raises(ValueError, match="read-only"):
        StoredTensor.of("x", np.ones(3)).numpy()[0] = 7


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


def test_a_header_beyond_the_formats_limit(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(CheckpointError, match="claims a header of 100000001 bytes"):
        read_safetensors(tmp_path / "f")


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
