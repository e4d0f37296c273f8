from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from itertools import accumulate

import interpreted
import pytest
import torch
import torch.nn.functional as F
from parity import FORWARD, GRADIENT, LOW, assert_within, gradients, judge, randn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fastbert import ops
from fastbert.kernels import cross_entropy, cross_entropy_backward, cross_entropy_logits
from fastbert.kernels.cross_entropy_logits import FULL, HALF, TILES
from fastbert.kernels.tiles import Tile
from fastbert.ops import registry

SMALL = {"CHUNK_BYTES": 2048, "NARROWEST": 64}  # 16 rows × 64 classes, 32 in float32
MIB_32 = 32 << 20


def inputs(M, C, V, with_bias=True, scale=1.0):
    bias = randn(V, seed=2) if with_bias else None
    return [scale * randn(M, C), randn(V, C, seed=1), bias]


def some_labels(M, V, ignore_index=-100):
    labels = torch.randint(0, V, (M,), generator=torch.Generator().manual_seed(3))
    return labels.where(torch.arange(M) % 5 != 2, ignore_index)


def plain(x, weight, bias, labels, ignore_index=-100):
    logits = F.linear(x, weight, bias)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(
        logits.to(wide), labels.long(), reduction="none", ignore_index=ignore_index
    )


fused = ops.linear_cross_entropy


@pytest.fixture
def small_chunks(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(cross_entropy_backward, name, value)


def peak_bytes(call):
    """The result of `call`, and the most bytes that were allocated at once meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        out = call()
    found = [e for e in watch.profiler.kineto_results.events() if e.name() == "[memory]"]
    found.sort(key=lambda event: event.start_ns())
    return out, max(accumulate(event.nbytes() for event in found))


def of_results(tensors):
    return sum(t.nbytes for t in tensors)


def formula(M, C, V, dtype, tile, bias=True):
    """Peak bytes beyond inputs and results, forward and backward, as the modules' pages say."""
    b, up = dtype.itemsize, lambda n, d: -(-n // d)
    statistics = 8 * M * up(V, tile.n) + 4 * M
    m, v = cross_entropy_backward.chunks(M, V, b, tile)
    backward = b * m * v + (4 * up(M, tile.m) * v + 4 * min(v, V) if bias else 0)
    if b == 4:
        results = 4 * (M * C + V * C + (V if bias else 0))  # made after the statistics
        return statistics, 8 * M + max(statistics - results, backward)
    return statistics, backward + (4 * M * C if v < V else 0) + (4 * v * C if m < M else 0)


if interpreted.INTERPRETING:
    for _op, _launcher in cross_entropy.LAUNCHERS.items():
        registry.register("cross entropy kernels", _op, "cuda", _launcher)

    @pytest.fixture(autouse=True)
    def kernels_serve():
        """Through the backward pass too, which runs after the call has returned."""
        with ops.use("cross entropy kernels"):
            yield

    SHAPES = [(1, 16, 33), (15, 20, 31), (16, 32, 32), (17, 48, 65), (33, 24, 1), (65, 80, 200)]

    def check(shape, dtype, with_bias, labels, scale=1.0):
        judge(
            lambda *t: fused(*t, labels),
            lambda *t: plain(*t, labels),
            inputs(*shape, with_bias, scale),
            dtype,
        )

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("shape", SHAPES[2:4])
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_error(shape, dtype, with_bias):
        check(shape, dtype, with_bias, some_labels(shape[0], shape[2]))

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_error_in_chunks(shape, dtype, with_bias):
        check(shape, dtype, with_bias, some_labels(shape[0], shape[2]).int())

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257])
    def test_error_at_every_number_of_rows(rows, dtype):
        check((rows, 32, 40), dtype, True, some_labels(rows, 40))

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("scale", [30.0, 1e3, 3e3])
    def test_extreme_logits(dtype, scale):
        shape = (40, 32, 70)
        x, weight, _ = inputs(*shape, scale=scale)
        assert scale < 1e3 or (x @ weight.t()).abs().max() > 1e4
        labels = torch.where(torch.arange(40) % 2 > 0, (x @ weight.t()).argmax(1), 7)
        check(shape, dtype, True, labels, scale)

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
    def test_equal_logits(dtype, level):
        M, C, V = 20, 16, 70
        x, bias = torch.ones(M, C), torch.full((V,), level)
        weight = torch.zeros(V, C).double()
        labels = some_labels(M, V)
        judge(lambda *t: fused(*t, labels), lambda *t: plain(*t, labels), [x, weight, bias], dtype)

    @pytest.mark.usefixtures("small_chunks")
    def test_classes_ruled_out_by_a_bias_of_minus_infinity():
        x, weight, bias = (t.float() for t in inputs(20, 16, 100))
        bias[:64] = -float("inf")  # two whole tiles
        labels = 64 + torch.arange(20)
        ours = gradients(lambda *t: fused(*t, labels), [x, weight, bias])
        theirs = gradients(lambda *t: plain(*t, labels), [x, weight, bias])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("dtype", LOW)
    def test_what_counts_for_nothing_has_loss_and_gradient_zero(dtype):
        """Ignored, below 0, and beyond the classes: no address is made from such a label."""
        V, big = 40, 2**31
        x, weight, bias = (t.to(dtype) for t in inputs(8, 32, V))
        labels = torch.tensor([-100, -1, V, V + 23, big + 3, -big, 2**62, 5])
        loss, lse = cross_entropy.linear_cross_entropy(x, weight, bias, labels, -100)
        assert not loss[:7].any()
        assert loss[7] > 0
        assert lse.isfinite().all()
        grad = torch.full((8,), float("nan"))  # as a mean over no rows gives
        grad[7] = 1.0
        args = (x, weight, bias, labels, lse, -100)
        d_x, *rest = cross_entropy.linear_cross_entropy_backward(grad, *args)
        assert not d_x[:7].any()
        assert d_x[7].any()
        alone = (x[7:], weight, bias, labels[7:], lse[7:], -100)
        _, *expected = cross_entropy.linear_cross_entropy_backward(grad[7:], *alone)
        for a, b in zip(rest, expected, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("dtype", LOW)
    def test_every_label_ignored(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs(20, 16, 40)]
        loss = fused(*leaves, torch.full((20,), -100))
        assert not loss.any()
        assert not any(grad.any() for grad in torch.autograd.grad(loss.sum(), leaves))

    @pytest.mark.slow
    @pytest.mark.parametrize("ignore_index", [0, 3, -1, 2**40])
    @pytest.mark.parametrize("integer", [torch.int32, torch.int64])
    def test_another_ignore_index(ignore_index, integer):
        if ignore_index > 100 and integer == torch.int32:
            ignore_index = 2**31 - 1
        x, weight, bias = (t.float() for t in inputs(20, 16, 40))
        labels = some_labels(20, 40, ignore_index)
        loss = fused(x, weight, bias, labels.to(integer), ignore_index)
        torch.testing.assert_close(loss, plain(x, weight, bias, labels, ignore_index))
        assert not loss[labels == ignore_index].any()

    @pytest.mark.parametrize("dtype", LOW)
    def test_no_rows(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs(0, 16, 40)]
        loss = fused(*leaves, torch.empty(0, dtype=torch.int64))
        grads = torch.autograd.grad(loss.sum(), leaves)
        assert loss.shape == (0,)
        for grad, leaf in zip(grads, leaves, strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()

    @pytest.mark.parametrize("dtype", LOW)
    def test_log_sum_exp(dtype):
        x, weight, bias = (t.to(dtype) for t in inputs(33, 32, 100))
        _, lse = cross_entropy.linear_cross_entropy(x, weight, bias, some_labels(33, 100), -100)
        logits = F.linear(x, weight, bias)
        truth = torch.logsumexp(F.linear(x.double(), weight.double(), bias.double()), 1)
        assert_within(lse, torch.logsumexp(logits.float(), 1), truth, FORWARD)

    @pytest.mark.slow
    def test_a_row_depends_on_no_other():
        x, weight, bias = (t.float() for t in inputs(50, 32, 70))
        labels = some_labels(50, 70)
        loss = fused(x, weight, bias, labels)
        for rows in (slice(0, 1), slice(7, 8), slice(20, 47)):
            assert torch.equal(fused(x[rows], weight, bias, labels[rows]), loss[rows])

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    def test_layout_changes_nothing():
        x, weight, bias = (t.float() for t in inputs(20, 16, 70))
        labels = some_labels(20, 70)
        wanted = gradients(lambda *t: fused(*t, labels), [x, weight, bias])
        strided = [torch.stack([t, t], -1)[..., 0] for t in (x, weight, bias, labels)]
        assert not any(t.is_contiguous() for t in strided)
        leaves = [t.detach().requires_grad_() for t in strided[:3]]
        loss = fused(*leaves, strided[3])
        cotangent = torch.randn(20, generator=torch.Generator().manual_seed(7))
        for a, b in zip([loss, *torch.autograd.grad(loss, leaves, cotangent)], wanted, strict=True):
            assert torch.equal(a, b)

    class Walled(TorchDispatchMode):
        """Gives each new buffer a wall of NaN on both sides, and NaN inside."""

        WALL = 64

        def __init__(self):
            super().__init__()
            self.walled = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if not name.startswith(("empty", "new_empty")) or not out.is_floating_point():
                return out
            whole = torch.full((out.numel() + 2 * self.WALL,), float("nan"), dtype=out.dtype)
            self.walled.append(whole)
            return whole[self.WALL : self.WALL + out.numel()].view(out.shape)

        def check(self):
            assert len(self.walled) >= 4
            for whole in self.walled:
                assert whole[: self.WALL].isnan().all()
                assert whole[-self.WALL :].isnan().all()

    def walled(t, wall=None):
        """t amid NaN, or amid integers that are labels of a class."""
        if t is None:
            return None
        whole = t.new_full((t.numel() + 128,), float("nan") if wall is None else wall)
        inside = whole[64 : 64 + t.numel()].view(t.shape)
        return inside.copy_(t)

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("shape", [(17, 20, 70), (40, 16, 33), (16, 32, 64)])
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_walls_of_nan(shape, dtype, with_bias):
        M, _, V = shape
        x, weight, bias = (t if t is None else t.to(dtype) for t in inputs(*shape, with_bias))
        labels, grad = some_labels(M, V), randn(M, seed=5, dtype=torch.float32)
        args = (x, weight, bias, labels)
        loss, lse = cross_entropy.linear_cross_entropy(*args, -100)
        plainly = cross_entropy.linear_cross_entropy_backward(grad, *args, lse, -100)
        amid = (walled(x), walled(weight), walled(bias), walled(labels, wall=3))
        with Walled() as mode:
            out = cross_entropy.linear_cross_entropy(*amid, -100)
            grads = cross_entropy.linear_cross_entropy_backward(
                walled(grad), *amid, walled(lse), -100
            )
        mode.check()
        for a, b in zip((*out, *grads), (loss, lse, *plainly), strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)

    @pytest.mark.slow
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("shape", [(10, 16, 40), (40, 16, 70)])
    @pytest.mark.parametrize("with_bias", [True, False])
    def test_memory_as_counted(shape, with_bias):
        """On real kernels; float32, since a CPU has no GEMM from 16 bits to float32."""
        M, _, V = shape
        x, weight, bias = (t if t is None else t.float() for t in inputs(*shape, with_bias))
        args = (x, weight, bias, some_labels(M, V))
        out, forward_peak = peak_bytes(lambda: cross_entropy.linear_cross_entropy(*args, -100))
        grad = torch.ones(M)
        gc.collect()  # the interpreter leaves what a launch was given to the collector
        gc.disable()
        try:
            grads, peak = peak_bytes(
                lambda: cross_entropy.linear_cross_entropy_backward(grad, *args, out[1], -100)
            )
        finally:
            gc.enable()
        forward, backward = formula(*shape, torch.float32, TILES["interpreter"][FULL], with_bias)
        assert forward_peak - of_results(out) == forward
        assert backward <= peak - of_results(grads) <= backward + forward

    def test_what_is_not_supported_is_said():
        def reason(*args):
            return cross_entropy.unsupported("linear_cross_entropy", args)

        x, weight, bias = inputs(4, 8, 9)
        labels = torch.arange(4)
        assert "float64" in reason(x, weight, bias, labels, -100)
        assert "2 dtypes" in reason(x.float(), weight.half(), None, labels, -100)
        low = [t.float() for t in (x, weight, bias)]
        assert reason(*low, labels, -100) is None
        backward = (labels.float(), *low, labels, labels.float(), -100)
        assert cross_entropy.unsupported("linear_cross_entropy_backward", backward) is None

else:

    @pytest.mark.slow
    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    @pytest.mark.slow
    def test_longer_cases_under_the_interpreter():
        interpreted.check(__file__, "slow")

    class _Idle:
        """A kernel that is launched and does nothing."""

        def __getitem__(self, grid):
            return lambda *args, **options: None

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("arch", sorted(set(TILES) - {"interpreter"}))
    @pytest.mark.parametrize("size", [(4096, 768, 30522), (1, 768, 30522), (20000, 64, 30522)])
    def test_peak_memory(size, arch, dtype, monkeypatch):
        """What is really allocated at full size; kernels and products that compute nothing."""
        M, C, V = size
        tile = TILES[arch][FULL if dtype == torch.float32 else HALF]
        for module, name in (
            (cross_entropy, "_tiles"),
            (cross_entropy, "_reduce"),
            (cross_entropy_backward, "_d_logits"),
        ):
            monkeypatch.setattr(module, name, _Idle())
        for module in (cross_entropy, cross_entropy_backward):
            monkeypatch.setattr(module, "tile_of", lambda x: tile)
        monkeypatch.setattr(cross_entropy_backward, "_multiply", lambda *a, more: None)
        x, weight, bias = (torch.empty(s, dtype=dtype) for s in ((M, C), (V, C), (V,)))
        labels, grad = torch.zeros(M, dtype=torch.int64), torch.zeros(M)
        args = (x, weight, bias, labels)
        out, first = peak_bytes(lambda: cross_entropy.linear_cross_entropy(*args, -100))
        grads, second = peak_bytes(
            lambda: cross_entropy.linear_cross_entropy_backward(grad, *args, out[1], -100)
        )
        peaks = first - of_results(out), second - of_results(grads)
        for peak, expected in zip(peaks, formula(M, C, V, dtype, tile), strict=True):
            assert abs(peak - expected) <= 256, (peak, expected)
            if M >= 4096:
                assert peak <= 0.1 * M * V * 4, f"{peak / 1e6:.1f} MB"

    @pytest.mark.parametrize("rows", [1, 127, 4096, 4097, 50_000, 3_000_000])
    @pytest.mark.parametrize("classes", [1, 128, 30522, 250_002])
    @pytest.mark.parametrize("itemsize", [2, 4])
    def test_chunks(rows, classes, itemsize):
        tile = Tile(128, 256, 64)
        m, v = cross_entropy_backward.chunks(rows, classes, itemsize, tile)
        assert m * v * itemsize <= MIB_32
        assert m == rows or (m % tile.m == 0 and m < rows)
        assert v % tile.n == 0
        assert v - classes < tile.n
        assert v >= min(cross_entropy_backward.NARROWEST, classes) / 2
        assert rows * itemsize > 16384 or m == rows  # so each element of d_weight is written once

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("more", [True, False])
    def test_the_vendor_takes_16_bit_factors_into_a_float32_sum(dtype, more, monkeypatch):
        """The call itself, as traced for a CUDA device."""
        called = []

        def seen(name):
            original = getattr(torch, name)

            def call(*args, **options):
                called.append((name, options["out_dtype"], options.pop("out", None) is out))
                return original(*args, **options)

            return call

        for name in ("mm", "addmm"):
            monkeypatch.setattr(torch, name, seen(name))
        with FakeTensorMode():
            a = torch.empty(8, 16, dtype=dtype, device="cuda")
            b = torch.empty(16, 24, dtype=dtype, device="cuda")
            out = torch.empty(8, 24, device="cuda")
            cross_entropy_backward._multiply(out, a, b, more=more)
        # what follows, if anything, is how torch itself traces it
        assert called[0] == ("addmm" if more else "mm", torch.float32, True)

    @pytest.mark.parametrize("dtype", LOW)
    @pytest.mark.parametrize("wide", [True, False])
    def test_products_are_summed_in_float32(dtype, wide):
        a, b = randn(300, 40).to(dtype), randn(40, 24, seed=1).to(dtype)
        out = torch.full((300, 24), float("nan"), dtype=torch.float32 if wide else dtype)
        truth, plainly = a.double() @ b.double(), (a @ b).to(out.dtype)
        cross_entropy_backward._multiply(out, a, b, more=False)
        assert_within(out, plainly, truth, FORWARD)
        if wide or dtype == torch.float32:
            cross_entropy_backward._multiply(out, a, b, more=True)
            assert_within(out, 2 * plainly, 2 * truth, GRADIENT)

    def test_every_architecture_but_sm_75_has_variants():
        found = list(cross_entropy.variants())
        assert {v.arch for v in found} == set(TILES) - {"interpreter"}
        assert len({v.label for v in found}) == len(found)
        assert {(v.name, v.dtype) for v in found} >= {
            (name, dtype) for name in ("forward", "backward") for dtype in ("fp32", "bf16", "fp16")
        }

    AHEAD = """
import json, os, re, subprocess, sys, tempfile
import triton
from fastbert.kernels import cross_entropy
from fastbert.kernels.variant import compile_ahead

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")

def tool(name, option, cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([os.path.join(BIN, name), option, file.name], capture_output=True,
                              text=True, check=True).stdout

for v in cross_entropy.variants():
    if not re.search(sys.argv[1], v.label):
        continue
    made = compile_ahead(v)
    if v.arch.startswith("gfx"):
        text = made.asm["amdgcn"]
        scratch = re.search(r"private_segment_fixed_size:\\s*(\\d+)", text)
        print(json.dumps({"label": v.label, "arch": v.arch, "name": v.name, "dtype": v.dtype,
                          "stack": int(scratch[1]), "lines": text.splitlines(), "loop": []}))
        continue
    cubin = made.asm["cubin"]
    stack = re.search(r"STACK:(\\d+)", tool("cuobjdump", "-res-usage", cubin))
    lines, places, loops = [], {}, []
    for line in tool("nvdisasm", "-c", cubin).splitlines():
        if found := re.match(r"\\s*(\\.L_x_\\d+):", line):
            places[found[1]] = len(lines)
        elif found := re.match(r"\\s*/\\*[0-9a-f]{4,}\\*/\\s+(.*?);", line):
            lines.append(found[1])
    for end, line in enumerate(lines):
        found = re.search(r"BRA.*?`\\((\\.L_x_\\d+)\\)", line)
        if found and places.get(found[1], len(lines)) <= end:
            body = lines[places[found[1]]:end + 1]
            if any("MMA" in one for one in body):
                loops.append(body)
    print(json.dumps({"label": v.label, "arch": v.arch, "name": v.name, "dtype": v.dtype,
                      "tile": [v.tile.m, v.tile.n, v.tile.k, v.tile.warps],
                      "stack": int(stack[1]), "lines": lines,
                      "loop": min(loops, key=len) if loops else []}))
"""

    def compiled(pattern):
        done = subprocess.run(
            [sys.executable, "-c", AHEAD, pattern], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    def check_hot_loop(one):
        """Exact tensor work, asynchronous 16-byte loads of exactly the tile, real pipelining."""
        m, n, k, warps = one["tile"]
        loop = one["loop"]
        assert loop, one["label"]
        assert not any("LDL" in line or "STL" in line for line in one["lines"])
        narrow = [line for line in loop if "LDG" in line and "LDGSTS" not in line]
        assert [line for line in narrow if "LDGDEPBAR" not in line] == []
        loads = [line for line in loop if "LDGSTS" in line]
        assert all(".128" in line for line in loads)
        assert len(loads) * 16 * 32 * warps == 2 * (m + n) * k
        if one["arch"] == "sm_100":
            assert any("UTCHMMA" in line for line in loop)
            assert not any(" HMMA" in f" {line}" for line in loop)
        elif one["arch"] == "sm_90":
            assert not any(" HMMA" in f" {line}" for line in loop)
            wide = [line for line in loop if "HGMMA.64x" in line]
            sizes = [line.split("HGMMA.")[1].split(".")[0].split("x") for line in wide]
            work = sum(int(a) * int(b) * int(c) for a, b, c in sizes)
            assert work * warps // 4 == m * n * k
            assert all(int(b) >= 128 for _, b, _ in sizes)
            assert any("WARPGROUP.DEPBAR.LE gsb0, 0x1" in line for line in loop)
        else:
            count = sum("HMMA.16816" in line for line in loop)
            assert count == m * n * k // (2048 * warps)
        waits = [line.split("SB0, 0x")[1] for line in loop if "DEPBAR.LE SB0" in line]
        assert waits
        assert all(int(wait.split()[0], 16) > 0 for wait in waits)

    def check_compiled(one):
        assert one["stack"] <= 16, one["label"]
        if one["arch"].startswith("gfx"):
            assert one["name"].startswith("reduce") or any("v_mfma" in ln for ln in one["lines"])
            return
        stores = [line for line in one["lines"] if "STG" in line]
        assert not any(re.search(r"\b(ATOMG?|RED)\.", line) for line in one["lines"])
        if one["name"] == "backward":  # the chunk, 16 bytes a thread
            assert sum("STG.E.128" in line for line in stores) >= len(stores) - 4
        if one["dtype"] in ("bf16", "fp16") and one["name"] in ("forward", "backward"):
            check_hot_loop(one)

    def test_compiles_ahead():
        found = compiled("forward.*bf16-sm_80|backward.*bf16-sm_90")
        assert len(found) == 2
        for one in found:
            check_compiled(one)

    @pytest.mark.slow
    @pytest.mark.parametrize("arch", sorted(set(TILES) - {"interpreter"}))
    def test_every_variant_compiles_ahead(arch):
        found = compiled(f"-{arch}-")
        assert len(found) == 8
        for one in found:
            check_compiled(one)

    def test_tiles_are_the_same_for_forward_and_backward():
        """A logit made again has the same bits only if the same products are summed in turn."""
        tiles = {}
        for v in cross_entropy.variants():
            if not v.name.startswith("reduce"):
                tiles.setdefault((v.arch, v.dtype), set()).add(v.tile)
        assert all(len(found) == 1 for found in tiles.values())
        assert cross_entropy_logits.GROUP > 1
