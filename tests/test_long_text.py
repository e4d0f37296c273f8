"""Texts longer than the model: every token is seen, the combination is the plain definition."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_pairs import WORDS, save_pair, tokenizer

from fastbert import SentenceEncoder, TruncationWarning
from fastbert.long_text import COMBINES, encode_long
from fastbert.safetensors_file import StoredTensor
from fastbert.sentence_config import Dense, Normalize, Pooling, SentenceConfig

C, N, ROOM = 32, 12, 22
SHORT = ["the cat", "", "he ran to the river, and she saw it!", " ".join(["cat"] * ROOM)]
LONG = "the big cat ran to the old house , and the river was red . " * 4  # 60 tokens


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLS and mean·√length side by side, a dense layer, normalised; windows of 24 tokens."""
    path = tmp_path_factory.mktemp("long_text")
    save_pair(path, "BertModel")
    random = np.random.default_rng(0)
    weight = StoredTensor.of("w", random.normal(0, 0.3, (N, 2 * C)).astype(np.float32))
    bias = StoredTensor.of("b", random.normal(0, 0.3, N).astype(np.float32))
    SentenceConfig(
        path,
        Pooling(C, ("cls", "mean_sqrt_len_tokens"), include_prompt=False),
        (Dense(2 * C, N, "tanh", weight, bias), Normalize(N)),
        max_seq_length=ROOM + 2,
        prompts={"query": "he saw: ", "document": ""},
    ).save(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare encoder: the mean, not normalised."""
    path = tmp_path_factory.mktemp("plain")
    save_pair(path, "BertModel")
    return path


@pytest.fixture(scope="module")
def precise(directory: Path) -> SentenceEncoder:
    return SentenceEncoder(directory, dtype="float64")


@pytest.fixture(scope="module")
def encoder(directory: Path) -> SentenceEncoder:
    return SentenceEncoder(directory)


def by_hand(directory: Path, ids: list[int], stride: int, head: list[int]) -> torch.Tensor:
    """(W, N) float64 vectors of the windows of `ids`, by transformers and plain torch."""
    import transformers

    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float64).eval()
    dense = SentenceConfig.from_directory(directory).steps[0]
    assert isinstance(dense, Dense)
    assert dense.bias is not None
    room = ROOM - len(head)
    vectors = []
    start = 0
    while True:
        row = [2, *head, *ids[start : start + room], 3]
        with torch.no_grad():
            hidden = model(torch.tensor([row])).last_hidden_state[0]
        hidden = hidden[1 + len(head) if head else 0 :]  # the prompt is not pooled, nor [CLS] then
        pooled = torch.cat([hidden[0], hidden.sum(0) / len(hidden) ** 0.5])
        vector = torch.tanh(dense.weight.torch().double() @ pooled + dense.bias.torch().double())
        vectors.append(vector / vector.norm())
        if start + room >= len(ids):
            return torch.stack(vectors)
        start += room - stride


def combined(vectors: torch.Tensor, combine: str) -> np.ndarray:
    return {"sum": vectors.sum(0), "mean": vectors.mean(0), "max": vectors.max(0).values}[
        combine
    ].numpy()


@pytest.mark.parametrize("stride", [0, 9, ROOM - 1])
@pytest.mark.parametrize("combine", COMBINES)
def test_the_plain_definition_in_float64(
    directory: Path, precise: SentenceEncoder, combine: str, stride: int
) -> None:
    ids = precise.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    vectors = by_hand(directory, ids, stride, [])
    assert len(vectors) == 1 + -(-(60 - ROOM) // (ROOM - stride))
    expected = combined(vectors, combine)
    texts = ["the cat", LONG, ""]
    found = encode_long(precise, texts, combine=combine, stride=stride, batch_tokens=60)
    assert (found.shape, found.dtype) == ((3, N), np.float64)
    assert np.abs(found[1] - expected).max() <= 1e-10
    one = encode_long(precise, LONG, combine=combine, stride=stride, normalize_embeddings=True)
    assert one.shape == (N,)
    assert np.abs(one - expected / np.linalg.norm(expected)).max() <= 1e-10


def test_a_prompt_stands_before_every_window(directory: Path, precise: SentenceEncoder) -> None:
    ids = precise.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    head = precise.tokenizer("he saw: ", add_special_tokens=False)["input_ids"]
    assert len(head) == 3
    vectors = by_hand(directory, ids, 4, head)
    for options in ({"prompt_name": "query"}, {"prompt": "he saw: "}):
        for combine in COMBINES:
            found = encode_long(precise, LONG, combine=combine, stride=4, **options)
            assert np.abs(found - combined(vectors, combine)).max() <= 1e-10
    with pytest.raises(ValueError, match="-2 tokens of text fit into a window"):
        encode_long(precise, "the cat", prompt="cat " * 24)
    with pytest.raises(ValueError, match="stride is 19, expected 0 to 18"):
        encode_long(precise, "the cat", prompt="he saw: ", stride=19)
    with pytest.raises(ValueError, match="no prompt is named 'nothing'"):
        encode_long(precise, "the cat", prompt_name="nothing")


@pytest.mark.parametrize("combine", COMBINES)
def test_short_texts_are_encoded_as_ever(
    directory: Path, plain: Path, encoder: SentenceEncoder, precise: SentenceEncoder, combine: str
) -> None:
    for one in (encoder, precise, SentenceEncoder(plain)):
        found = encode_long(one, SHORT, combine=combine, stride=3)
        assert np.array_equal(found.astype(np.float32), one.encode(SHORT))
        assert np.array_equal(encode_long(one, "").astype(np.float32), one.encode(""))
        prompted = encode_long(one, SHORT[:3], prompt="she ", combine=combine)
        assert np.array_equal(prompted.astype(np.float32), one.encode(SHORT[:3], prompt="she "))
    unit = encode_long(encoder, SHORT, combine=combine, normalize_embeddings=True)
    assert np.abs(unit - encoder.encode(SHORT, normalize_embeddings=True)).max() <= 1e-6


def test_nothing_and_forms(encoder: SentenceEncoder) -> None:
    assert encode_long(encoder, []).shape == (0, N)
    assert encode_long(encoder, [], combine="max", normalize_embeddings=True).shape == (0, N)
    for text in ("", " ", "\x00", "\u200b"):
        assert np.isfinite(encode_long(encoder, text, combine="max")).all()
    whole = encode_long(encoder, [*SHORT, LONG], stride=5)
    assert whole.dtype == np.float32
    again = encode_long(encoder, (LONG, *SHORT), stride=5, batch_tokens=1, progress=False)
    assert np.abs(np.roll(again, -1, axis=0) - whole).max() <= 1e-6


def test_nothing_is_cut(encoder: SentenceEncoder) -> None:
    changed = LONG + "dog"
    with pytest.warns(TruncationWarning):
        assert np.array_equal(encoder.encode(LONG), encoder.encode(changed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.array_equal(encode_long(encoder, LONG), encode_long(encoder, changed))


def test_settings_of_the_directory(tmp_path: Path) -> None:
    """Fewer numbers, and lower case before the tokenizer."""
    reader = tokenizer(do_lower_case=False)
    save_pair(tmp_path, "BertModel", reader)
    SentenceConfig(
        tmp_path, Pooling(C), max_seq_length=24, do_lower_case=True, truncate_dim=5
    ).save(tmp_path)
    ours = SentenceEncoder(tmp_path)
    assert ours.dimension == 5
    found = encode_long(ours, [LONG.upper(), "THE CAT"], stride=2)
    assert np.array_equal(found, encode_long(ours, [LONG, "the cat"], stride=2))
    assert np.array_equal(found[1:], ours.encode(["the cat"]))


def test_train_mode_does_not_leak(encoder: SentenceEncoder) -> None:
    expected = encode_long(encoder, LONG)
    encoder.model.train()
    assert np.array_equal(encode_long(encoder, LONG), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "median"}, "combine is 'median', supported: sum, mean, max"),
        ({"combine": None}, "combine is None, supported"),
        ({"stride": ROOM}, f"stride is {ROOM}, expected 0 to {ROOM - 1}: it is the overlap"),
        ({"stride": 99}, "stride is 99"),
        ({"stride": -1}, "stride is -1"),
        ({"stride": 1.0}, r"stride is 1\.0, expected an integer"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_refusals(encoder: SentenceEncoder, options: dict[str, Any], message: str) -> None:
    for texts in ([], ["the cat"], LONG):
        with pytest.raises(ValueError, match=message):
            encode_long(encoder, texts, **options)


def test_bad_texts_are_named(encoder: SentenceEncoder) -> None:
    with pytest.raises(TypeError, match="text 1 is a NoneType"):
        encode_long(encoder, ["the cat", None])
    with pytest.raises(TypeError, match="text 1 is a int"):
        encode_long(encoder, ["the cat", 3], prompt="he ")
    with pytest.raises(TypeError, match="expected a list of str"):
        encode_long(encoder, b"bytes")
    with pytest.raises(ValueError, match=r"text 2 holds the lone surrogate U\+D800 at character 8"):
        encode_long(encoder, ["the cat", LONG * 80, "the cat \ud800"])


def test_every_token_reaches_the_encoder(
    encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    hidden = encoder._hidden

    def seen(packed: Any) -> torch.Tensor:
        batches.append(packed)
        return hidden(packed)

    monkeypatch.setattr(encoder, "_hidden", seen)
    words = [word for word in WORDS if word.isalpha()] * 2
    encode_long(encoder, " ".join(words), stride=6, batch_tokens=50)
    rows = [row for p in batches for row in np.split(p.input_ids, p.cu_seqlens[1:-1])]
    assert all(p.total <= 50 for p in batches)
    ids = encoder.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    starts = range(0, len(ids) - 6, ROOM - 6)
    expected = [[2, *ids[start : start + ROOM], 3] for start in starts]
    assert sorted(row.tolist() for row in rows) == sorted(expected)
