"""`linear` and `bias_gelu` on Triton: values under the interpreter, machine code ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

import interpreted
import pytest
import torch
from parity import FORWARD, GRADIENT, LOW, assert_within, randn
from torch import Tensor

from fastbert import reference
from fastbert import reference_backward as plain_backward
from fastbert.reference import ACTIVATIONS

AROUND = 256
# T, K, N: less than a tile, whole tiles, and no multiple of one in any size. Rows of 20
# (in 16 bits), 7 and 33 are no multiple of 16 bytes.
SHAPES = ((5, 16, 24), (64, 32, 64), (37, 48, 40), (17, 20, 33), (33, 7, 5), (1, 33, 1))


def between_nans(value: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of a tensor, and the memory that holds it between NaNs."""
    memory = torch.full((value.numel() + 2 * AROUND,), torch.nan, dtype=value.dtype)
    inside = memory[AROUND : AROUND + value.numel()].view(value.shape)
    inside.copy_(value)
    return inside, memory


def case(shape: tuple[int, int, int], dtype: torch.dtype, mean: float = 0.0) -> list[Tensor]:
    """x, weight, bias and a gradient of the result, each between NaNs."""
    T, K, N = shape
    values = (randn(T, K) + mean, randn(N, K, seed=1), randn(N, seed=2), randn(T, N, seed=3))
    return [between_nans(value.to(dtype))[0] for value in values]


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.double() for t in tensors]


if interpreted.INTERPRETING:
    from fastbert.kernels import linear as kernels
    from fastbert.kernels import linear_tiles
    from fastbert.kernels.tiles import INTERPRETER, Tile

    @pytest.fixture(autouse=True)
    def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """What launchers allocate holds NaNs and lies between NaNs, which must outlive the test."""
        memories: list[Tensor] = []
        empty = torch.Tensor.new_empty

        def new_empty(tensor: Tensor, *size: object, **options: object) -> Tensor:
            inside, memory = between_nans(empty(tensor, *size, **options).fill_(torch.nan))
            memories.append(memory)
            return inside

        monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
        yield
        for memory in memories:
            borders = torch.cat([memory[:AROUND], memory[len(memory) - AROUND :]])
            assert borders.isnan().all(), "a kernel wrote beyond its result"

    def check_forward(serve, shape, dtype, activation, bias=True, mean=0.0):
        x, weight, b, _ = case(shape, dtype, mean)
        args = (x, weight, b if bias else None)
        truth = reference.linear(*wide(*args), activation)
        plain = reference.linear(*args, activation)
        out, pre = serve(*args, activation, True)
        what = f"{shape} {dtype} {activation}"
        assert_within(out, plain[0], truth[0], FORWARD, what)
        if activation == "none":
            assert pre.shape == (0,)
        else:
            assert_within(pre, plain[1], truth[1], FORWARD, f"{what}, saved")

    def check_backward(shape, dtype, activation):
        x, weight, b, grad = case(shape, dtype)
        pre = reference.linear(x, weight, b, activation)[1]
        pre = x.new_empty(0) if activation == "none" else pre
        args = (grad, x, weight, pre)
        truth = plain_backward.linear_backward(*wide(*args), activation, [True] * 3)
        plain = plain_backward.linear_backward(*args, activation, [True] * 3)
        ours = kernels.linear_backward(*args, activation, [True] * 3)
        for name, o, p, t in zip(("x", "weight", "bias"), ours, plain, truth, strict=True):
            assert_within(o, p, t, GRADIENT, f"{shape} {dtype} {activation}: {name}")

    @pytest.mark.parametrize("dtype", LOW, ids=str)
    @pytest.mark.parametrize("serve", [kernels.linear, kernels.linear_fixed])
    def test_gelu(serve, dtype):
        check_forward(serve, (37, 48, 40), dtype, "gelu")
        check_forward(serve, (5, 20, 33), dtype, "gelu", bias=False)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_small(activation):
        check_forward(kernels.linear_fixed, (5, 7, 3), torch.float32, activation)
        check_backward((5, 7, 3), torch.float32, activation)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation_shape_and_way_to_read(activation, dtype, monkeypatch):
        for shape in SHAPES:
            check_forward(kernels.linear, shape, dtype, activation)
        check_forward(kernels.linear_fixed, (37, 48, 40), dtype, activation, bias=False)
        check_forward(kernels.linear_fixed, (17, 20, 33), dtype, activation)
        monkeypatch.setattr(linear_tiles, "DESCRIPTORS", frozenset())
        for shape in ((37, 48, 40), (37, 40, 33)):  # the latter ends in a masked step
            check_forward(kernels.linear_fixed, shape, dtype, activation)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_gradient(activation, dtype):
        for shape in (*SHAPES, (1100, 5, 3)):  # more rows than one round of all programs treats
            check_backward(shape, dtype, activation)

    def test_programs_that_take_several_rounds_of_rows(monkeypatch):
        monkeypatch.setattr(kernels, "ROW_PROGRAMS", 2)
        for activation in ("none", "gelu"):
            check_backward((37, 5, 3), torch.float32, activation)

    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_large_mean(dtype):
        check_forward(kernels.linear, (33, 48, 40), dtype, "gelu", mean=100.0)

    @pytest.mark.parametrize("dtype", LOW, ids=str)
    @pytest.mark.parametrize("approximate", ["none", "tanh"])
    def test_bias_gelu(approximate, dtype):
        for T, N in ((19, 45), (1, 1), (3, 64)):
            bias, _, _, grad = case((T, 1, N), dtype)
            x, bias = 3 * grad, randn(N, seed=5).to(dtype)
            plain = reference.bias_gelu(x, bias, approximate)
            truth = reference.bias_gelu(*wide(x, bias), approximate)
            assert_within(kernels.bias_gelu(x, bias, approximate), plain, truth, FORWARD)
            args = (grad, x, bias)
            for o, p, t in zip(
                kernels.bias_gelu_backward(*args, approximate),
                plain_backward.bias_gelu_backward(*args, approximate),
                plain_backward.bias_gelu_backward(*wide(*args), approximate),
                strict=True,
            ):
                assert_within(o, p, t, GRADIENT)

    def test_where_the_vendor_multiplies(monkeypatch):
        monkeypatch.setattr(kernels, "vendor_wins", lambda *_: True)
        for dtype in LOW:
            check_forward(kernels.linear, (37, 20, 33), dtype, "gelu")
            check_forward(kernels.linear, (5, 16, 8), dtype, "tanh", bias=False)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW, ids=str)
    def test_bits_of_fixed_rows_depend_on_nothing_else(dtype):
        x, weight, bias, _ = case((40, 24, 33), dtype)
        for activation in ("none", "gelu"):
            whole = kernels.linear_fixed(x, weight, bias, activation, False)[0]
            for rows in (slice(0, 1), slice(39, 40), slice(13, 31)):
                part = kernels.linear_fixed(x[rows].clone(), weight, bias, activation, True)[0]
                assert torch.equal(whole[rows], part)

    @pytest.fixture
    def points(monkeypatch: pytest.MonkeyPatch) -> Tensor:
        """Float32 numbers over all magnitudes, dense where activations bend, in one program."""
        for key in ("forward", "backward"):
            monkeypatch.setitem(kernels.TILES[INTERPRETER], key, Tile(1, 32768))
        far = torch.logspace(-38, 4, 2000)
        return torch.cat([torch.linspace(-12, 12, 24001), far, -far, torch.zeros(1)])[None]

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations_over_a_dense_grid(activation, points):
        x = points
        ours = kernels._activated(x, None, activation, None)[0]
        truth = ACTIVATIONS[activation](x.double())
        plain = ACTIVATIONS[activation](x)
        near = x.abs() <= 12
        assert_within(ours[near], plain[near], truth[near], FORWARD)
        torch.testing.assert_close(ours[~near].double(), truth[~near], rtol=1e-6, atol=1e-12)
        if activation == "gelu":  # for |x| < 8 half an ulp of the result
            middle = x.abs() < 8
            assert (ours[middle] - truth[middle]).abs().max() < 2.5e-7
            negative = (x > -5) & (x < 0)
            error = ours[negative] - truth[negative]
            assert (error / truth[negative]).abs().max() < 6e-5

    @pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
    def test_derivatives_over_a_dense_grid(activation, points):
        x = points
        one = torch.ones_like(x)
        ours = kernels._activation_backward(one, x, None, activation, False)[0]
        truth = plain_backward.activation_backward(one.double(), x.double(), activation)
        assert_within(ours, plain_backward.activation_backward(one, x, activation), truth, GRADIENT)
        assert (ours - truth).abs().max() < 5e-7

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_no_numbers_and_infinities(activation):
        x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1e4, -1e4, 3e38, -3e38]])
        ours = kernels._activated(x, None, activation, None)[0][0]
        plain = ACTIVATIONS[activation](x)[0]
        assert ours[2].isnan()
        finite = plain.isfinite()
        torch.testing.assert_close(ours[finite], plain[finite])
        slope = kernels._activation_backward(torch.ones_like(x), x, None, activation, False)[0]
        assert activation in ("none", "relu") or slope[0, 2].isnan()
        assert slope[0, 3:5].isfinite().all()
        if activation == "gelu":
            assert ours[:2].tolist() == [torch.inf, 0.0]

    def test_nothing_to_do():
        for T, K, N in ((0, 8, 5), (3, 8, 0), (3, 0, 5)):
            x, weight, bias, grad = case((T, K, N), torch.float32)
            for serve in (kernels.linear, kernels.linear_fixed):
                for activation in ("none", "gelu"):
                    out, pre = serve(x, weight, bias, activation, True)
                    expected = reference.linear(x, weight, bias, activation)
                    torch.testing.assert_close(out, expected[0])
                    assert pre.shape == ((T, N) if activation == "gelu" else (0,))
            grads = kernels.linear_backward(grad, x, weight, grad, "gelu", [True] * 3)
            assert [g.shape for g in grads] == [(T, K), (N, K), (N,)]
            assert T or not any(g.any() for g in grads)
            assert kernels.bias_gelu(grad, bias, "none").shape == (T, N)

    def test_layouts():
        x, weight, bias, grad = case((9, 16, 24), torch.float32)
        expected = kernels.linear(x, weight, bias, "gelu", True)
        ours = kernels.linear(x.t().contiguous().t(), weight.repeat(1, 2)[:, :16], bias, "gelu", 1)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        args = (x, weight, expected[1], "gelu", [True] * 3)
        for a, b in zip(
            kernels.linear_backward(grad.t().contiguous().t(), *args),
            kernels.linear_backward(grad, *args),
            strict=True,
        ):
            torch.testing.assert_close(a, b)

    def test_needs():
        x, weight, bias, grad = case((9, 16, 24), torch.float32)
        pre = reference.linear(x, weight, bias)[1]
        for activation in ("none", "gelu"):
            everything = kernels.linear_backward(grad, x, weight, pre, activation, [True] * 3)
            for place in range(3):
                needs = [place == other for other in range(3)]
                some = kernels.linear_backward(grad, x, weight, pre, activation, needs)
                assert [g.numel() > 0 for g in some] == needs
                assert torch.equal(some[place], everything[place])

    def test_fixed_tiles_serve_plain_linear_too(monkeypatch):
        x, weight, bias, _ = case((40, 16, 33), torch.float32)
        monkeypatch.setattr(kernels, "fixed", lambda: True)
        monkeypatch.setattr(kernels, "vendor_wins", lambda *_: True)
        monkeypatch.setattr(torch, "addmm", None)
        monkeypatch.setattr(kernels, "candidates", None)  # nor is the autotuner given a choice
        for activation in ("none", "gelu"):
            whole = kernels.linear(x, weight, bias, activation, False)[0]
            assert torch.equal(
                whole[3:5], kernels.linear(x[3:5], weight, bias, activation, False)[0]
            )

    def test_what_is_unsupported():
        x, weight, bias, _ = case((3, 4, 5), torch.float64)
        assert "float64" in kernels.unsupported("linear", (x, weight, bias, "gelu", False))
        mixed = (x.float(), bias.half(), "none")
        assert "float16 and torch.float32" in kernels.unsupported("bias_gelu", mixed)
        assert kernels.unsupported("bias_gelu", (x.float(), bias.float(), "none")) is None

else:
    from checkout import benchmarks

    from fastbert.kernels import linear_tiles
    from fastbert.kernels.linear import TILES, VENDOR_ABOVE_K, vendor_wins
    from fastbert.kernels.tiles import ARCHITECTURES, INTERPRETER

    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    @pytest.mark.slow
    def test_longer_cases_under_the_interpreter():
        interpreted.check(__file__, "slow")

    def test_who_multiplies():
        half, single = torch.float16, torch.float32
        for arch in ARCHITECTURES:
            assert vendor_wins(arch, single, 768, False)
            if arch == "sm_75":
                assert vendor_wins(arch, half, 768, False)
            else:  # BERT's own widths are fused
                assert not vendor_wins(arch, half, 1024, False)
                assert not vendor_wins(arch, single, 768, True)
                assert vendor_wins(arch, half, VENDOR_ABOVE_K[arch] + 1, False)

    def test_tiles_of_every_architecture():
        assert set(TILES) == {*ARCHITECTURES, INTERPRETER}
        for arch in ARCHITECTURES:
            fixed = linear_tiles.fixed_key(arch, torch.bfloat16, True)
            assert fixed == "fixed"
            assert linear_tiles.fixed_key(arch, torch.float32, True) in TILES[arch]
            assert linear_tiles.fixed_key(arch, torch.float32, False) == "float32"
            if arch == "sm_75":
                continue
            keys = [linear_tiles.product_key(arch, torch.bfloat16, rows, 768, 100, False)
                    for rows in (1, 100_000)]  # fmt: skip
            assert keys == ["small", "large"]
            for key in (*keys, "fixed"):
                tiles = linear_tiles.candidates(arch, key)
                assert tiles[0] == TILES[arch][key]
                assert len(tiles) == len(set(tiles)) >= 2

    @pytest.mark.slow
    def test_machine_code(tmp_path):
        kernel_report, worker = benchmarks("kernel_report"), benchmarks("kernel_worker")
        wanted = ("large-gelu-saved", "small-gelu", "fixed-none-odd", "float32-gelu-saved")
        jobs = [
            job
            for job in kernel_report.list_jobs(["fastbert.kernels.linear"], ARCHITECTURES)
            if job.variant.detail in wanted and job.variant.dtype != "fp16"
        ]
        assert {job.variant.arch for job in jobs} == set(ARCHITECTURES)
        outcomes = worker.compile_all(jobs, tmp_path, workers=1)
        assert kernel_report.wrong(outcomes) == {}
        assert all(o.record["stack"] == 0 for o in outcomes if o.record)
