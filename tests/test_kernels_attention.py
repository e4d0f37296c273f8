"""Triton's attention under the interpreter against float64, and compiled ahead of time."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import interpreted
import pytest
import torch
from parity import FORWARD, GRADIENT, NO_SEED, assert_within, bounds, randn, work_of

from fastbert import ops, reference, reference_backward
from fastbert.kernels import attention
from fastbert.kernels.attention_common import mask_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EDGES = (1, 127, 0, 2, 15, 257, 16, 17, 31, 32, 33, 0, 63, 64, 65, 128, 129)
SHORT = (1, 0, 33, 2, 64, 70)
FEW = (5, 0, 34)
SEED = torch.tensor([0x1234_5678_9ABC_DEF0])
HEADS = 2


def data(lengths, dim=32, dtype=torch.float32, beyond=0, spread=1.0, mean=0.0):
    """qkv and the output's gradient; NaN in the rows beyond the last sequence."""
    tokens = sum(lengths) + beyond
    qkv = randn(tokens, 3, HEADS, dim) + mean
    qkv[:, :2] *= spread
    grad = randn(tokens, HEADS, dim, seed=1)
    if beyond:
        qkv[-beyond:] = grad[-beyond:] = float("nan")
    return qkv.to(dtype), grad.to(dtype)


def ours(qkv, grad, lengths, scale, dropout_p=0.0, work=None):
    """Output, log-sum-exp and gradient by the kernels."""
    cu = bounds(*lengths)
    seed = SEED if dropout_p else NO_SEED
    rest = (cu, max(lengths, default=0), work_of(cu) if work is None else work)
    rest = (*rest, scale, dropout_p, seed)
    out, lse = attention.LAUNCHERS["varlen_attention"](qkv, *rest)
    backward = attention.LAUNCHERS["varlen_attention_backward"]
    return out, lse, backward(grad, qkv, out, lse, *rest)


def theirs(qkv, grad, lengths, scale, dropout_p=0.0):
    """The same by the reference, with the kernels' dropout mask."""
    cu, heads = bounds(*lengths), qkv.shape[2]
    starts = [(s, n) for s, n in zip(cu.tolist(), lengths, strict=False) if n]
    masks = [mask_of(SEED, heads, s, n, dropout_p) for s, n in starts] if dropout_p else []

    def drop(turn):
        def dropout(x, p, generator):
            return x * next(turn).to(x.dtype) / (1.0 - dropout_p) if dropout_p else x

        return dropout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "dropout", drop(iter(masks)))
        out, lse = reference.varlen_attention(qkv, cu, scale, 0.0, NO_SEED)
        patch.setattr(reference_backward, "dropout", drop(iter(masks)))
        return (
            out,
            lse,
            reference_backward.varlen_attention_backward(
                grad, qkv, out, lse, cu, scale, 0.0, NO_SEED
            ),
        )


def judge(qkv, grad, lengths, scale, dropout_p=0.0):
    """Hold the kernels to the rule, q's, k's and v's gradient each."""
    end = sum(lengths)
    mine = ours(qkv, grad, lengths, scale, dropout_p)
    plain = theirs(qkv, grad, lengths, scale, dropout_p)
    truth = theirs(qkv.double(), grad.double(), lengths, scale, dropout_p)
    for what, factor, a, p, t in zip(
        ("out", "lse"), (FORWARD, FORWARD), mine, plain, truth, strict=False
    ):
        assert_within(a, p, t, factor, f"{qkv.dtype} {what}")
    for place, what in enumerate("qkv"):
        a, p, t = mine[2][:, place], plain[2][:, place], truth[2][:, place]
        assert_within(a, p, t, GRADIENT, f"{qkv.dtype} d_{what}")
    for tensor in (mine[0][end:], mine[1][:, end:], mine[2][end:]):
        assert torch.equal(tensor, torch.zeros_like(tensor))


if interpreted.INTERPRETING:
    for _name, _launcher in attention.LAUNCHERS.items():
        ops.register("attention kernels", _name, "cpu", _launcher)

    def test_error_of_few():
        judge(*data(FEW, 32, torch.bfloat16, beyond=3), FEW, 0.18, 0.3)

    @pytest.mark.slow
    @pytest.mark.parametrize("dropout_p", [0.0, 0.3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_error(dtype, dropout_p):
        judge(*data(SHORT, 32, dtype, beyond=3), SHORT, 0.18, dropout_p)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "dim", "dropout_p"),
        [
            (torch.bfloat16, 64, 0.0),
            (torch.float16, 80, 0.0),
            (torch.float32, 96, 0.0),
            (torch.float32, 64, 0.1),
            (torch.bfloat16, 128, 0.5),
        ],
    )
    def test_error_at_every_edge(dtype, dim, dropout_p):
        judge(*data(EDGES, dim, dtype, beyond=130), EDGES, dim**-0.5, dropout_p)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("spread", "mean"), [(6.0, 0.0), (75.0, 0.0), (1.0, 100.0), (0.0, 0.0)]
    )
    def test_error_of_extreme_logits(dtype, spread, mean):
        """Nearly one-hot; ±1e4 and one-hot; a large mean; all equal."""
        qkv, grad = data(SHORT, 32, dtype, spread=spread, mean=mean)
        if spread == 75.0:
            largest = (qkv[:, 0].double()[:, None] * qkv[:, 1].double()).sum(-1).abs().max() * 0.3
            assert largest > 1e4
        judge(qkv, grad, SHORT, 0.3)

    @pytest.mark.slow
    def test_float32_keeps_weights_that_a_rounded_log_sum_exp_would_lose():
        """At a log-sum-exp near 1e4 float32 resolves 1e-3: of every weight, without REFINE."""
        qkv, grad = data((70,), 32, torch.float32, spread=75.0)
        truth = theirs(qkv.double(), grad.double(), (70,), 0.3)[2][:, 2]
        error = (ours(qkv, grad, (70,), 0.3)[2][:, 2] - truth).abs().max() / truth.abs().max()
        assert error < 1e-6

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_scores_beyond_float16_stay_finite(dtype):
        qkv = torch.full((35, 3, HEADS, 64), 200.0, dtype=dtype)
        out, lse, d_qkv = ours(qkv, torch.ones(35, HEADS, 64, dtype=dtype), (35,), 0.125)
        torch.testing.assert_close(out, torch.full_like(out, 200.0))
        assert lse.isfinite().all()
        assert d_qkv.isfinite().all()
        torch.testing.assert_close(d_qkv[:, 2], torch.ones_like(out), rtol=0.02, atol=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("dropout_p", [0.0, 0.3])
    @pytest.mark.parametrize(("dim", "lengths"), [(80, FEW), (32, (0, 0))])
    def test_nothing_outside_is_read_or_written(dim, lengths, dropout_p, monkeypatch):
        """NaN around every input and output, NaN in every output before it is written."""
        margin, made = 40_000, []

        def surrounded(shape, dtype):
            count = torch.Size(shape).numel()
            room = torch.full((count + 2 * margin,), float("nan"), dtype=dtype)
            made.append(room)
            return room[margin : margin + count].view(shape)

        def inside(tensor):
            return surrounded(tensor.shape, tensor.dtype).copy_(tensor)

        plain_new_empty = torch.Tensor.new_empty

        def new_empty(self, *shape, dtype=None, device=None):
            if device is not None:  # the interpreter's own
                return plain_new_empty(self, *shape, device=device)
            shape = shape[0] if isinstance(shape[0], tuple) else shape
            return surrounded(shape, dtype or self.dtype)

        qkv, grad = data(lengths, dim, beyond=4)
        expected = ours(qkv, grad, lengths, 0.2, dropout_p)
        qkv, grad = inside(qkv), inside(grad)
        monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
        monkeypatch.setattr(torch, "empty_like", lambda t, **_: surrounded(t.shape, t.dtype))
        results = ours(qkv, grad, lengths, 0.2, dropout_p)
        monkeypatch.undo()
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)
            assert result.isfinite().all()
        assert len(made) == 2 + 3 + 3  # inputs; out, lse, d_qkv; deltas, lse2, missing
        for room in made:
            assert room[:margin].isnan().all()
            assert room[-margin:].isnan().all()

    @pytest.mark.parametrize("lengths", [(), (0, 0)])
    @pytest.mark.parametrize("beyond", [0, 3])
    def test_no_sequence_to_attend(lengths, beyond):
        results = ours(*data(lengths, beyond=beyond), lengths, 0.2)
        assert [tuple(t.shape) for t in results] == [
            (beyond, HEADS, 32), (HEADS, beyond), (beyond, 3, HEADS, 32)
        ]  # fmt: skip
        assert all(torch.equal(t, torch.zeros_like(t)) for t in results)

    def test_an_empty_work_list_still_gives_zeros():
        nothing = torch.empty(0, 2, dtype=torch.int32)
        for tensor in ours(*data((0,), beyond=3), (0,), 0.2, work=nothing):
            assert torch.equal(tensor, torch.zeros_like(tensor))

    @pytest.mark.slow
    def test_layouts():
        qkv, grad = data(FEW)
        wide = torch.full((*qkv.shape[:3], 64), float("nan"))
        wide[..., :32] = qkv
        rows = torch.full((2 * qkv.shape[0], *qkv.shape[1:]), float("nan"))
        rows[::2] = qkv
        parts = qkv.transpose(0, 1).contiguous().transpose(0, 1)  # q, k and v one after the other
        last = qkv.transpose(0, 3).contiguous().transpose(0, 3)
        expected = ours(qkv, grad, FEW, 0.2)
        for layout in (wide[..., :32], rows[::2], parts, last):
            assert not layout.is_contiguous()
            turned = grad.transpose(0, 2).contiguous().transpose(0, 2)
            for a, b in zip(ours(layout, turned, FEW, 0.2), expected, strict=True):
                assert torch.equal(a, b)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bits_depend_on_neither_order_nor_company(dtype):
        qkv, grad = data(SHORT, dtype=dtype)
        work = work_of(bounds(*SHORT))
        expected = ours(qkv, grad, SHORT, 0.2)
        again = ours(qkv, grad, SHORT, 0.2, work=work.flip(0))
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        out, lse, d_qkv = ours(qkv[-70:], grad[-70:], (70,), 0.2)
        assert torch.equal(out, expected[0][-70:])
        assert torch.equal(lse, expected[1][:, -70:])
        assert torch.equal(d_qkv, expected[2][-70:])

    @pytest.mark.slow
    def test_dropout_drops_its_share_and_heads_differ():
        length, p = 120, 0.25
        qkv = torch.zeros(length, 3, HEADS, 32)
        qkv[torch.arange(length), 2, :, torch.arange(length) % 32] = 1.0
        out, _, _ = ours(qkv, torch.ones(length, HEADS, 32), (length,), 0.2, p)
        kept = out.sum(-1) * (1 - p) * length  # (S, H), of `length` weights each
        share, draws = kept.sum().item() / (length * length * HEADS), length * length * HEADS
        assert abs(share - (1 - p)) < 4 * (p * (1 - p) / draws) ** 0.5
        masks = [mask_of(SEED + step, HEADS, 0, length, p).double() for step in (0, 1)]
        torch.testing.assert_close(kept.t(), masks[0].sum(-1).float())
        flat = torch.cat(masks).view(2 * HEADS, -1)  # heads, and steps
        correlation = torch.corrcoef(flat).fill_diagonal_(0.0).abs().max().item()
        assert correlation < 4 / length

    @pytest.mark.slow
    def test_gradient_through_the_public_op():
        qkv, grad = data(SHORT)
        cu = bounds(*SHORT)
        leaf = qkv.clone().requires_grad_()
        out = ops.varlen_attention(leaf, cu, 70, work_of(cu), 0.2, 0.0, NO_SEED)
        (d_qkv,) = torch.autograd.grad(out, leaf, grad)
        expected = ours(qkv, grad, SHORT, 0.2)
        assert torch.equal(out, expected[0])
        assert torch.equal(d_qkv, expected[2])

    @pytest.mark.slow
    @pytest.mark.parametrize("dropout_p", [0.0, 0.3])
    def test_opcheck(dropout_p):
        qkv, grad = data((33, 2))
        cu, seed = bounds(33, 2), SEED if dropout_p else NO_SEED
        rest = (cu, 33, work_of(cu), 0.2, dropout_p, seed)
        torch.library.opcheck(torch.ops.fastbert.varlen_attention.default, (qkv, *rest))
        out, lse = torch.ops.fastbert.varlen_attention(qkv, *rest)
        backward = torch.ops.fastbert.varlen_attention_backward.default
        torch.library.opcheck(backward, (grad, qkv, out, lse, *rest))

    @pytest.mark.parametrize(
        ("dtype", "dim", "scale", "match"),
        [
            (torch.float64, 64, 0.1, "float64"),
            (torch.float32, 48, 0.1, "head dim of 48 .* 32, 64, 80, 96, 128"),
            (torch.float32, 64, 0.0, "scale of 0.0"),
            (torch.float32, 64, -0.5, "scale of -0.5"),
            (torch.float32, 64, float("nan"), "scale of nan"),
        ],
    )
    def test_what_it_does_not_serve(dtype, dim, scale, match):
        qkv, grad = data((3,), dim, dtype)
        cu = bounds(3)
        rest = (cu, 3, work_of(cu), scale, 0.0, NO_SEED)
        for op, args in (
            ("varlen_attention", (qkv, *rest)),
            ("varlen_attention_backward", (grad, qkv, grad, grad, *rest)),
        ):
            reason = attention.unsupported(op, args)
            assert reason is not None
            assert re.search(match, reason)
        good, grad = data((3,), 64)
        assert attention.unsupported("varlen_attention", (good, cu, 3, cu, 0.1, 0.0, cu)) is None

else:

    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    @pytest.mark.slow
    def test_longer_cases_under_the_interpreter():
        interpreted.check(__file__, "slow")

    _COMPILE = """
import json, sys
from fastbert.kernels.attention import variants
from fastbert.kernels.variant import compile_ahead
arch, dtype, detail, names = sys.argv[1:]
for variant in variants():
    if (variant.arch, variant.dtype, variant.detail) == (arch, dtype, detail):
        if variant.name in names.split(","):
            done = compile_ahead(variant)
            text = done.asm["amdgcn"] if arch.startswith("gfx") else done.asm["ptx"]
            print(json.dumps([variant.name, done.metadata.shared, text]))
"""
    _INSTRUCTION = {
        "sm_80": "mma.sync", "sm_86": "mma.sync", "sm_89": "mma.sync", "sm_90": "wgmma.mma_async",
        "sm_100": "tcgen05.mma", "sm_120": "mma.sync", "gfx942": "v_mfma",
    }  # fmt: skip
    _SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227,
               "sm_120": 99, "gfx942": 64}  # fmt: skip

    def compiled(arch, dtype, detail, names):
        command = [sys.executable, "-c", _COMPILE, arch, dtype, detail, names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", _INSTRUCTION)
    def test_it_compiles_with_the_architectures_tensor_instruction(arch):
        for name, shared, text in compiled(arch, "bf16", "D=128", "forward,queries,keys"):
            assert _INSTRUCTION[arch] in text, name
            assert shared <= 1024 * _SHARED[arch], name

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", ["sm_86", "sm_100", "gfx942"])
    def test_dropout_compiles(arch):
        found = compiled(arch, "fp16", "D=64-dropout", "forward,queries,keys")
        assert [name for name, _, _ in found] == ["forward", "queries", "keys"]
        assert all(_INSTRUCTION[arch] in text for _, _, text in found)

    def test_every_variant_is_listed_once():
        labels = [variant.label for variant in attention.variants()]
        assert len(labels) == len(set(labels))
        assert {v.arch for v in attention.variants()} == set(_INSTRUCTION)
