"""Triton's input layer under the interpreter against float64, and compiled ahead of time."""

from __future__ import annotations

import ahead
import interpreted
import pytest
import torch
import torch.nn.functional as F
from parity import LOW, gradients, judge, randn
from torch.library import opcheck
from walled import Walled, amid

from fastbert import ops
from fastbert.kernels import embedding, rows

V, P, K = 30, 40, 2
MODULE = "fastbert.kernels.embedding"
FORWARD = embedding.LAUNCHERS["embed_layer_norm"]
BACKWARD = embedding.LAUNCHERS["embed_layer_norm_backward"]


def indices(T, dtype=torch.int64):
    """Ids of which half are one and the same, so that segments cross many chunks."""
    drawn = torch.Generator().manual_seed(T)
    ids = torch.randint(0, V, (T,), generator=drawn)
    ids[T // 2 :] = 7
    types = torch.randint(0, K, (T,), generator=drawn)
    return [t.to(dtype) for t in (ids, types, torch.arange(T) % P)]


def tables(C, mean=0.0):
    """Word, position, type, weight, bias."""
    sizes = ((V, C), (P, C), (K, C), (C,), (C,))
    return [randn(*size, seed=place) + mean * (place == 0) for place, size in enumerate(sizes)]


def plain(where, eps=1e-12, padding_idx=None):
    """The op in plain torch."""
    ids, types, positions = (t.long() for t in where)

    def call(word, position, type, weight, bias):
        summed = F.embedding(ids, word, padding_idx) + F.embedding(types, type)
        summed = summed + F.embedding(positions, position)
        wide = torch.float64 if summed.dtype == torch.float64 else torch.float32
        norm = (weight.to(wide), bias.to(wide), eps)
        return F.layer_norm(summed.to(wide), word.shape[1:], *norm).to(summed.dtype)

    return call


def ours(where, padding_idx=-1):
    return lambda *t: ops.embed_layer_norm(*where, *t, 1e-12, padding_idx)


if interpreted.INTERPRETING:
    for _name, _launcher in embedding.LAUNCHERS.items():
        ops.register("embedding kernels", _name, "cpu", _launcher)

    @pytest.mark.parametrize("T", [1, 5, 33])
    @pytest.mark.parametrize("C", [8, 31])
    def test_error_by_shape(C, T):
        where = indices(T)
        judge(ours(where, 7), plain(where, padding_idx=7), tables(C, 100.0), torch.float32)

    @pytest.mark.slow
    @pytest.mark.parametrize("C", [1, 24, 100, 768, 1000])
    def test_error_by_width(C):
        where = indices(13)
        judge(ours(where), plain(where), tables(C, 100.0), torch.float32)

    @pytest.mark.slow
    @pytest.mark.parametrize("mean", [0.0, 100.0])
    @pytest.mark.parametrize("dtype", LOW)
    def test_error_by_dtype(dtype, mean):
        where = indices(70, torch.int32)
        judge(ours(where), plain(where), tables(24, mean), dtype)

    @pytest.mark.parametrize("padding_idx", [7, 0, -1])
    def test_only_the_padding_row_has_no_gradient(padding_idx):
        where = indices(40)
        _, d_word, d_position, d_type, *_ = gradients(
            ours(where, padding_idx), [t.float() for t in tables(8)]
        )
        used = torch.zeros(V, dtype=torch.bool)
        used[where[0]] = True
        if padding_idx >= 0:
            used[padding_idx] = False
        assert torch.equal(d_word.ne(0).any(1), used)
        assert d_position.ne(0).any(1).all()
        assert d_type.ne(0).any(1).all()

    def test_sums_of_whole_numbers_are_exact():
        """A row lost, or added twice, at the edge of a chunk would show whatever the tolerance."""
        from fastbert.kernels.embedding_backward import table_gradients

        given = [t.float() for t in tables(8)[:3]]
        for T in (1, 3, 4, 5, 31, 64):
            ids, types, positions = indices(T)
            d_sum = torch.randint(-9, 10, (T, 8)).float()
            keys = torch.cat([ids, V + positions, V + P + types]).int()
            found = table_gradients(d_sum, keys, tuple(given), -1)
            for d_table, table, index in zip(found, given, (ids, positions, types), strict=True):
                assert torch.equal(d_table, torch.zeros_like(table).index_add_(0, index, d_sum))

    def test_no_rows():
        where = [t[:0] for t in indices(1)]
        given = [t.float() for t in tables(8)]
        out, *grads = gradients(ours(where), given)
        assert out.shape == (0, 8)
        assert not any(g.any() for g in grads)

    def test_bad_indices_read_the_nearest_row_and_are_counted():
        ids, types, positions = indices(9)
        given = [t.float() for t in tables(8)]
        good = FORWARD(ids, types, positions, *given, 1e-5, counter := torch.zeros(6).long())
        assert not counter.any()
        ids[:2], types[3], positions[4:7] = torch.tensor([-1, V]), 2**40, -(2**40)
        nearest = (ids.clamp(0, V - 1), types.clamp(0, K - 1), positions.clamp(0, P - 1))
        found = FORWARD(ids, types, positions, *given, 1e-5, counter)
        assert counter.tolist() == [2, 1, 3, V, K, P]
        for a, b in zip(found, FORWARD(*nearest, *given, 1e-5), strict=True):
            assert torch.equal(a, b)
        FORWARD(ids, types, positions, *given, 1e-5, counter)
        assert counter.tolist() == [4, 2, 6, V, K, P]
        args = (*given[:4], *good[1:], -1)
        grad = randn(9, 8, dtype=torch.float32)
        for a, b in zip(
            BACKWARD(grad, ids, types, positions, *args),
            BACKWARD(grad, *nearest, *args),
            strict=True,
        ):
            assert torch.equal(a, b)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize(("T", "C"), [(1, 8), (13, 31), (33, 24)])
    def test_nothing_outside_is_read_or_written(T, C, dtype):
        where, given = indices(T), [t.to(dtype) for t in tables(C)]
        grad = randn(T, C, seed=9).to(dtype)
        args = (*where, *given)
        expected = FORWARD(*args, 1e-5)
        expected += BACKWARD(grad, *args[:-1], *expected[1:], 7)
        args, grad = [amid(t, wall=None if t.is_floating_point() else 1) for t in args], amid(grad)
        with Walled() as walls:
            found = FORWARD(*args, 1e-5)
            found += BACKWARD(grad, *args[:-1], *(amid(t) for t in found[1:]), 7)
        walls.check(10)
        for a, b in zip(found, expected, strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)

    @pytest.mark.slow
    def test_layout_and_kind_of_index_change_nothing():
        where, given = indices(13), [t.float() for t in tables(24)]
        expected = gradients(ours(where), given)
        strided = [torch.stack([t, t], -1)[..., 0] for t in where]
        turned = [t.t().contiguous().t() for t in given]
        for a, b in zip(gradients(ours(strided), turned), expected, strict=True):
            assert torch.equal(a, b)
        mixed = (where[0].int(), where[1], where[2].int())
        for a, b in zip(gradients(ours(mixed), given), expected, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.slow
    def test_schema():
        where, given = indices(5), [t.float() for t in tables(8)]
        op = torch.ops.fastbert.embed_layer_norm
        opcheck(op.default, (*where, *given, 1e-5))
        out, mean, rstd = op(*where, *given, 1e-5)
        args = (torch.randn_like(out), *where, *given[:4], mean, rstd, 7)
        opcheck(torch.ops.fastbert.embed_layer_norm_backward.default, args)

    def test_what_is_not_served():
        where, given = indices(5), [t.float() for t in tables(8)]

        def reasons(*given):
            args = (*where, *given, 1e-5)
            backward = (given[0], *where, *given[:4], given[3], given[3], -1)
            yield embedding.unsupported("embed_layer_norm", args)
            yield embedding.unsupported("embed_layer_norm_backward", backward)

        assert set(reasons(*given)) == {None}
        assert all("float64" in why for why in reasons(*(t.double() for t in given)))
        assert all("8193" in why for why in reasons(*(t.float() for t in tables(8193))))
        assert all("empty table" in why for why in reasons(given[0], given[1][:0], *given[2:]))

else:

    @pytest.mark.slow
    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    @pytest.mark.slow
    def test_longer_cases_under_the_interpreter():
        interpreted.check(__file__, "slow")

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
    def test_it_compiles_with_wide_accesses(arch):
        for found in ahead.compiled(MODULE, f"*-C768-bf16-{arch}-*"):
            assert found.stack == found.count("LDL", "STL", "scratch_") == 0, found.label
            wide = found.count("LDG.E.128", "global_load_dwordx4", "buffer_load_dwordx4")
            assert wide, found.label
            if "forward" in found.label and arch == "sm_90":
                assert wide == 3 * 4 + 2  # rows of three tables, weight and bias
                assert found.count("STG.E.128") == 4

    @pytest.mark.slow
    def test_offsets_are_64_bit():
        for found in ahead.compiled(MODULE, "*ward-C768-bf16-sm_90-*"):
            lines = [line for line in found.ttir.splitlines() if "tt.addptr" in line]
            rows = [line for line in lines if "x1x!tt.ptr" in line]  # table + id·C, then columns
            assert len(rows) >= 3, found.label
            assert all("x1xi64>" in line for line in rows), found.label

    def test_every_variant_is_listed_once():
        labels = [variant.label for variant in embedding.variants()]
        assert len(labels) == len(set(labels))
        assert {v.arch for v in embedding.variants()} == set(rows.ARCHITECTURES)
