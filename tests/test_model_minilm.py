"""The default model on real text against transformers: values, batches, precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from fastbert.model import BertModel
from fastbert.ops import pool
from fastbert.packing import pack, token_budget_batches, unpack

FEW = [0, 2, 9, 25, 60, 90, 120, 139, 143, 150, 160, 199]  # words, sentences, documents, 512 tokens
SIZES = [
    pytest.param(FEW, id="12"),
    pytest.param(list(range(200)), id="200", marks=pytest.mark.slow),
]
COMPOSITIONS = [
    "token budget",
    "alone",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("one batch, shuffled", "mixed")),
]


@pytest.fixture(scope="module")
def ids(minilm_dir, real_texts):
    """Ids of the 200 texts, cut at 512 tokens: from 3 tokens, a word, to 512."""
    tokenizer = Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(real_texts)]
    lengths = [len(row) for row in rows]
    assert (len(rows), min(lengths), max(lengths)) == (200, 3, 512)
    return rows


@pytest.fixture(scope="module")
def theirs(minilm_dir):
    model = transformers.BertModel.from_pretrained(
        minilm_dir, dtype=torch.float64, attn_implementation="eager"
    )
    return model.eval()


@pytest.fixture(scope="module")
def models(minilm_dir):
    """Our model in every precision."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return {dtype: BertModel.from_pretrained(minilm_dir, dtype=dtype) for dtype in dtypes}


@pytest.fixture(scope="module")
def truth(theirs, ids):
    """Hidden states of each text alone, (n, C) in float64, by its index; made when asked for."""
    known: dict[int, np.ndarray] = {}

    def hidden(index):
        if index not in known:
            with torch.no_grad():
                known[index] = theirs(torch.tensor([ids[index]])).last_hidden_state[0].numpy()
        return known[index]

    return hidden


def batches(rows, composition):
    """Lists of indices: all together, alone, by length, mixed lengths, shuffled."""
    n = len(rows)
    if composition == "token budget":
        return [b.tolist() for b in token_budget_batches([len(row) for row in rows], 1024)]
    if composition == "alone":
        return [[i] for i in range(n)]
    if composition == "one batch, shuffled":
        return [np.random.default_rng(0).permutation(n).tolist()]
    return [list(range(i, min(i + 8, n))) for i in range(0, n, 8)]


def padded(rows, width=0):
    """(B, S) ids and mask, padded on the right."""
    width = max(width, *(len(row) for row in rows))
    grid = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        grid[place, : len(row)] = torch.tensor(row)
    mask = (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()
    return grid, mask


def vectors(states):
    """Normalised mean-pooled vectors, (B, C) in float64, of hidden states (n, C)."""
    pooled = np.stack([state.astype(np.float64).mean(0) for state in states])
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


@torch.no_grad()
def states_of(model, rows):
    out = model(pack(rows))
    return unpack(out.last_hidden_state.double().numpy(), pack(rows))


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("texts", SIZES)
def test_float64_equals_transformers_in_any_batch(models, truth, ids, texts, composition):
    for batch in batches([ids[i] for i in texts], composition):
        batch = [texts[i] for i in batch]
        for index, state in zip(
            batch, states_of(models[torch.float64], [ids[i] for i in batch]), strict=True
        ):
            assert np.abs(state - truth(index)).max() <= 1e-10


@pytest.mark.parametrize("texts", SIZES)
@torch.no_grad()
def test_padded_equals_transformers_in_float64(models, theirs, ids, texts):
    rows = sorted((ids[i] for i in texts), key=len)
    for start in range(0, len(rows), 4):
        grid, mask = padded(rows[start : start + 4])
        if start % 8:
            grid, mask = grid.flip(1), mask.flip(1)
        out, expected = (model(grid, mask) for model in (models[torch.float64], theirs))
        real = mask == 1
        difference = out.last_hidden_state[real] - expected.last_hidden_state[real]
        assert difference.abs().max() <= 1e-10
        assert not out.last_hidden_state[~real].any()
        if not start % 8:  # of a left-padded row transformers pools a padding token
            torch.testing.assert_close(
                out.pooler_output, expected.pooler_output, rtol=0, atol=1e-10
            )


def judge(models, truth, ids, texts, dtype, composition="mixed"):
    """Cosines and the largest difference of normalised vectors from the float64 truth."""
    expected = vectors([truth(i) for i in texts])
    got = np.empty_like(expected)
    for batch in batches([ids[i] for i in texts], composition):
        got[batch] = vectors(states_of(models[dtype], [ids[texts[i]] for i in batch]))
    return (got * expected).sum(1), np.abs(got - expected).max()


@pytest.mark.parametrize("texts", SIZES)
def test_float32(models, truth, ids, texts):
    cosines, worst = judge(models, truth, ids, texts, torch.float32)
    assert cosines.min() >= 0.999999
    assert worst <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "texts",
    [pytest.param(FEW[:-3], id="9"), SIZES[1]],  # 16-bit GEMMs are slow on some CPUs
)
def test_sixteen_bits(models, truth, ids, texts, dtype):
    cosines, _ = judge(models, truth, ids, texts, dtype)
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.9995


# Torch's GEMMs choose a kernel by the number of rows, and so add up in another order. Measured on
# an AVX-512 machine, over hidden states of up to 6 in size: at most 6e-15 in float64 and 2e-6 in
# float32 between any two batches that hold the same text.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_batch_changes_nothing_beyond_the_gemms_rounding(models, ids, dtype):
    rows = [ids[i] for i in (0, 2, 9, 25, 90, 143)]
    model = models[dtype]
    alone = [states_of(model, [row])[0] for row in rows]
    reversed_ = states_of(model, rows[::-1])[::-1]
    twice = states_of(model, [row for row in rows for _ in range(2)])
    grid, mask = padded(rows, width=300)
    with torch.no_grad():
        wide = model(grid, mask).last_hidden_state.double().numpy()
    together = states_of(model, rows)
    for place, expected in enumerate(alone):
        for other in (
            together[place], reversed_[place], twice[2 * place], twice[2 * place + 1],
            wide[place, : len(expected)],
        ):  # fmt: skip
            assert np.abs(other - expected).max() <= ROUNDING[dtype]


@torch.no_grad()
def test_packed_equals_padded(models, ids):
    rows = [ids[i] for i in (0, 25, 90, 143)]
    packed = pack(rows)
    grid, mask = padded(rows)
    for dtype in (torch.float64, torch.float32):
        a = models[dtype](packed, output_hidden_states=True, output_attentions=True)
        b = models[dtype](grid, mask, output_hidden_states=True, output_attentions=True)
        exact = {"rtol": 0, "atol": ROUNDING[dtype]}
        torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state[mask == 1], **exact)
        torch.testing.assert_close(a.pooler_output, b.pooler_output, **exact)
        for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
            torch.testing.assert_close(x, y[mask == 1], **exact)
        for x, y in zip(a.attentions, b.attentions, strict=True):
            torch.testing.assert_close(x, y, **exact)


@torch.no_grad()
def test_the_pool_op_gives_the_sentence_vectors(models, truth, ids):
    rows = [ids[i] for i in FEW[:5]]
    hidden = models[torch.float64](pack(rows)).last_hidden_state
    pooled = pool(hidden, pack(rows).to("cpu").cu_seqlens, "mean", normalize=True)
    expected = vectors([truth(i) for i in FEW[:5]])
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=1e-10)
