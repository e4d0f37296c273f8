from __future__ import annotations

import interpreted
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastbert.kernels import philox

SEEDS = (0, 1, 5, 2**32, 2**40 + 5, 2**63 - 1)


@triton.jit
def rows_kernel(out, seed, first, width, level, M: tl.constexpr, N: tl.constexpr):
    rows = first + tl.arange(0, M).to(tl.int64)
    keep = philox.keep_rows(tl.load(seed), rows, width, level, N)
    place = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + place, keep.to(tl.int8))


@triton.jit
def weights_kernel(out, seed, head, query, key, level, M: tl.constexpr, N: tl.constexpr):
    queries, keys = query + tl.arange(0, M), key + tl.arange(0, N)
    keep = philox.keep_weights(tl.load(seed), head, queries[:, None], keys[None, :], level)
    place = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + place, keep.to(tl.int8))


def rows_of(seed, first, width, dropout_p, M=8, N=32):
    out = torch.zeros(M, N, dtype=torch.int8)
    level = philox.level(dropout_p)
    rows_kernel[(1,)](out, torch.tensor([seed]), first, width, level, M, N)
    return out.bool()[:, :width]


if interpreted.INTERPRETING:

    @pytest.mark.parametrize("first", [0, 3, 2**31, 2**33 + 1])
    @pytest.mark.parametrize("width", [1, 31, 32])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_kernel_and_torch_give_the_same_row_mask(seed, width, first):
        twin = philox.row_mask(torch.tensor([seed]), 8, width, 0.3, first)
        assert torch.equal(rows_of(seed, first, width, 0.3), twin)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_kernel_and_torch_give_the_same_weight_mask(seed):
        queries, keys = torch.arange(8) + 1000, torch.arange(32) + 501
        twin = philox.weight_mask(torch.tensor([seed]), 4, queries, keys, 0.3)
        out = torch.zeros(8, 32, dtype=torch.int8)
        level = philox.level(0.3)
        weights_kernel[(1,)](out, torch.tensor([seed]), 3, 1000, 501, level, 8, 32)
        assert torch.equal(out.bool(), twin[3])

    def test_a_mask_does_not_depend_on_the_tile():
        narrow = rows_of(9, 0, 24, 0.5, M=4, N=32)
        assert torch.equal(rows_of(9, 0, 24, 0.5, M=8, N=64)[:4], narrow)
        assert torch.equal(rows_of(9, 2, 24, 0.5, M=2, N=32), narrow[2:])

else:

    @pytest.mark.slow
    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")


def rounds(counter, key, count):
    """Salmon et al. 2011, figure 2, in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(count):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def test_python_rounds_are_the_published_ones():
    """The known answers that the paper's own library (Random123) ships, for 7 rounds and for 10."""
    ones = 2**32 - 1
    pi = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0])
    assert rounds([0] * 4, [0] * 2, 7) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    assert rounds([ones] * 4, [ones] * 2, 7) == [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]
    assert rounds(*pi, 7) == [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A]
    assert rounds([0] * 4, [0] * 2, 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert rounds([ones] * 4, [ones] * 2, 10) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert rounds(*pi, 10) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("seed", [*SEEDS, -3])
def test_twin_is_philox_with_seven_rounds(seed):
    counters = torch.randint(0, 2**32, (4, 20), generator=torch.Generator().manual_seed(1))
    four = philox.draw(torch.tensor([seed]), *counters)
    for place, counter in enumerate(counters.T.tolist()):
        key = [seed % 2**32, (seed >> 32) % 2**32]
        assert four[place].tolist() == rounds(counter, key, 7)


@pytest.mark.parametrize("dropout_p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_drop_rate(seed, dropout_p):
    count = 1 << 18
    dropped = (~philox.row_mask(torch.tensor([seed]), 512, 512, dropout_p)).sum().item()
    sigma = (count * dropout_p * (1 - dropout_p)) ** 0.5
    assert abs(dropped - count * dropout_p) < 4 * sigma


@pytest.mark.parametrize("dropout_p", [1e-12, 0.1, 0.5, 1 - 1e-12])
def test_scale_matches_level(dropout_p):
    p = (philox.level(dropout_p) + 2**31) / 2**32
    assert 0 < p < 1
    assert abs(p - dropout_p) <= 2**-32
    assert philox.scale(dropout_p) == 1 / (1 - p)


def correlation(a, b):
    """In standard deviations of independent masks."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(np.corrcoef(a, b)[0, 1]) * a.numel() ** 0.5


def mask(seed, heads=1):
    queries = torch.arange(128)
    return philox.weight_mask(torch.tensor([seed]), heads, queries, queries, 0.1)


def test_heads_are_not_correlated():
    heads = mask(7, heads=4)
    found = [correlation(heads[i], heads[j]) for i in range(4) for j in range(i)]
    assert max(map(abs, found)) < 4


def test_neighbouring_seeds_are_not_correlated():
    """Layers and steps draw a seed each; no two may share a mask, however near they lie."""
    base = 2**40 + 5
    near = [mask(base + d) for d in (0, 1, 2, 2**31, 2**32, 2**33)]
    found = [correlation(near[i], near[j]) for i in range(6) for j in range(i)]
    assert max(map(abs, found)) < 4


def test_norm_and_attention_of_one_seed_are_not_correlated():
    seed = torch.tensor([3])
    assert abs(correlation(philox.row_mask(seed, 128, 128, 0.1), mask(3)[0])) < 4


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 32, 128])
def test_neighbouring_elements_are_not_correlated(shift):
    keep = philox.row_mask(torch.tensor([11]), 512, 128, 0.1).flatten()
    assert abs(correlation(keep[shift:], keep[:-shift])) < 4


def test_both_halves_of_the_seed_and_of_the_block_matter():
    numbers = torch.arange(64)
    first = philox.uniform(torch.tensor([5]), numbers)
    for seed, far in ((5 + 2**32, 0), (5 - 2**63, 0), (6, 0), (5, 2**34), (5, 2**40)):
        assert not torch.any(first == philox.uniform(torch.tensor([seed]), numbers + far))


def test_uniform_fills_the_interval_evenly():
    numbers = philox.uniform(torch.tensor([1]), torch.arange(1 << 16))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 64, 0, 1)
    chi = ((counts - 1024) ** 2 / 1024).sum().item()  # 63 degrees of freedom: 63 ± 11.2
    assert 63 - 4 * 11.2 < chi < 63 + 4 * 11.2
