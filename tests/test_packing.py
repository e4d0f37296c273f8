from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastbert.packing import QUERY_TILE, Packed, pack, token_budget_batches, unpack, work_list

ID = st.integers(0, 2**31 - 1)
ROWS = st.lists(st.lists(ID, max_size=9), max_size=9)
LENGTHS = st.lists(st.integers(0, 700), max_size=20)


@given(ROWS)
def test_unpack_undoes_pack(rows):
    packed = pack(rows)
    assert [row.tolist() for row in unpack(packed.input_ids, packed)] == rows
    positions = [row.tolist() for row in unpack(packed.position_ids, packed)]
    assert positions == [list(range(len(row))) for row in rows]


@given(ROWS)
def test_pack_describes_the_batch(rows):
    packed = pack(rows)
    lengths = [len(row) for row in rows]
    assert packed.lengths.tolist() == lengths
    assert packed.cu_seqlens.tolist() == [sum(lengths[:i]) for i in range(len(rows) + 1)]
    assert packed.max_seqlen == max(lengths, default=0)
    assert packed.batch_size == len(rows)
    assert packed.total == sum(lengths)
    assert not packed.token_type_ids.any()
    fields = (packed.input_ids, packed.token_type_ids, packed.position_ids, packed.lengths)
    assert {field.dtype for field in (*fields, packed.cu_seqlens, packed.work)} == {
        np.dtype(np.int32)
    }


@given(ROWS)
def test_pack_takes_arrays_as_lists(rows):
    for dtype in (np.int32, np.int64, np.uint32):
        a, b = pack(rows), pack([np.array(row, dtype=dtype) for row in rows])
        for name in ("input_ids", "position_ids", "lengths", "cu_seqlens", "work"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(ROWS)
def test_types_go_along(rows):
    types = [[i % 2 for i in row] for row in rows]
    packed = pack(rows, types)
    assert [row.tolist() for row in unpack(packed.token_type_ids, packed)] == types


@given(LENGTHS, st.integers(1, 200))
def test_work_list_covers_every_query_once_longest_first(lengths, tile):
    work = work_list(lengths, tile)
    expected = {(b, t) for b, n in enumerate(lengths) for t in range(-(-n // tile))}
    assert sorted(map(tuple, work.tolist())) == sorted(expected)
    order = [lengths[b] for b, _ in work.tolist()]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("n", [1, QUERY_TILE - 1, QUERY_TILE, QUERY_TILE + 1, 512])
def test_work_list_at_tile_edges(n):
    assert work_list([n]).tolist() == [[0, t] for t in range(-(-n // QUERY_TILE))]


@given(LENGTHS, st.integers(1, 2000))
def test_budget_batches_partition_the_texts(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)


def test_budget_batches_are_filled():
    batches = token_budget_batches([5] * 10, 20)
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_equal_lengths_keep_their_order():
    assert np.concatenate(token_budget_batches([7, 9, 7, 9], 100)).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("budget", [0, -1])
def test_budget_must_be_positive(budget):
    with pytest.raises(ValueError, match="budget must be at least 1 token"):
        token_budget_batches([1], budget)


def test_budget_refuses_negative_lengths():
    with pytest.raises(ValueError, match="found -3"):
        token_budget_batches([1, -3], 10)


@pytest.mark.parametrize("rows", [[[1.5]], [["a"]], ["ab"], [[None]], [[True]], [[[1], [2]]]])
def test_pack_refuses_what_is_no_integer(rows):
    with pytest.raises(TypeError, match="integers"):
        pack(rows)


@pytest.mark.parametrize(("value", "match"), [(-1, "found -1"), (2**31, "found 2147483648")])
def test_pack_refuses_ids_out_of_int32(value, match):
    with pytest.raises(ValueError, match=match):
        pack([[1, 2], [value]])
    with pytest.raises(ValueError, match=match):
        pack([[1]], [[value]])


def test_pack_refuses_other_types_than_ids():
    for types in ([[0]], [[0, 0], [0, 0, 0]], []):
        with pytest.raises(ValueError, match="types must hold as many sequences"):
            pack([[1, 2], [3, 4]], types)


def test_unpack_refuses_other_rows():
    packed = pack([[1, 2], [3]])
    with pytest.raises(ValueError, match="hidden has 2 rows, the batch has 3 tokens"):
        unpack(np.zeros((2, 4)), packed)
    with pytest.raises(ValueError, match="none rows"):
        unpack(np.array(1.0), packed)


def test_unpack_gives_views_one_a_text():
    packed = pack([[1, 2], [], [3]])
    hidden = np.arange(6.0).reshape(3, 2)
    parts = unpack(hidden, packed)
    assert [part.shape for part in parts] == [(2, 2), (0, 2), (1, 2)]
    assert all(np.shares_memory(part, hidden) for part in parts if part.size)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cu_seqlens": np.array([1, 2, 3], np.int32)}, "starts with 0"),
        ({"cu_seqlens": np.zeros((2, 2), np.int32)}, "1-D array"),
        ({"cu_seqlens": np.zeros(0, np.int32)}, "starts with 0"),
        ({"cu_seqlens": np.array([0, 4, 3], np.int32)}, "must not fall"),
        ({"cu_seqlens": np.array([0, 2, 4], np.int32)}, "ends at 4, input_ids holds 3"),
        ({"lengths": np.array([1, 2], np.int32)}, "differences of cu_seqlens"),
        ({"max_seqlen": 1}, "max_seqlen is 1, the longest length is 2"),
        ({"token_type_ids": np.zeros(2, np.int32)}, r"token_type_ids must have shape \(3,\)"),
        ({"position_ids": np.zeros((3, 1), np.int32)}, r"position_ids must have shape \(3,\)"),
        ({"work": np.zeros(3, np.int32)}, r"work must have shape \(W, 2\)"),
    ],
)
def test_fields_must_describe_one_batch(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(pack([[1, 2], [3]]), **changes)


def test_an_empty_batch_is_checked_too():
    with pytest.raises(ValueError, match="max_seqlen is -1, the longest length is 0"):
        replace(pack([]), max_seqlen=-1)


def test_to_gives_tensors_that_share_no_memory():
    packed = pack([[1, 2], [3]], [[0, 1], [1]])
    tensors = packed.to("cpu")
    assert tensors.input_ids.dtype == tensors.position_ids.dtype == torch.int64
    assert tensors.token_type_ids.dtype == torch.int64
    assert tensors.lengths.dtype == tensors.cu_seqlens.dtype == tensors.work.dtype == torch.int32
    assert (tensors.batch_size, tensors.total, tensors.max_seqlen) == (2, 3, 2)
    assert tensors.token_type_ids.tolist() == [0, 1, 1]
    tensors.input_ids[0] = 9
    assert packed.input_ids[0] == 1
    assert tensors.to("meta").max_seqlen == 2  # nothing is read from a device
    again = tensors.to("cpu")  # tensors move on too
    assert again.input_ids.tolist() == [9, 2, 3]
    hidden = torch.arange(3.0)[:, None]
    assert [part.shape[0] for part in unpack(hidden, tensors)] == [2, 1]


def test_a_batch_is_frozen_hashable_and_copies():
    packed = pack([[1, 2], []])
    with pytest.raises(AttributeError):
        packed.max_seqlen = 3
    assert packed == packed
    assert packed != pack([[1, 2], []])
    assert len({packed, packed}) == 1
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert isinstance(twin, Packed)
        np.testing.assert_array_equal(twin.input_ids, packed.input_ids)


def test_packing_needs_no_torch():
    code = (
        "import sys; from fastbert.packing import pack, unpack;"
        "p = pack([[1, 2], [3]]); unpack(p.input_ids, p); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
