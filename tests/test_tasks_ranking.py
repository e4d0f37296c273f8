"""Similarity, search and reranking: against plain definitions, in bounded memory, on bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cross_encoders import make
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastbert import BertConfig, BertModel, BertTokenizer, SentenceEncoder, TruncationWarning
from fastbert.checkpoint import CheckpointError
from fastbert.cross_encoder import CrossEncoder
from fastbert.sentence_config import Pooling, SentenceConfig
from fastbert.similarity import SIMILARITIES
from fastbert.tasks import search as search_module
from fastbert.tasks.encoder_task import texts_at_once
from fastbert.tasks.reranking import Ranked, Reranking
from fastbert.tasks.search import Hit, SemanticSearch
from fastbert.tasks.similarity import SentenceSimilarity

TEXTS = ["the cat", "a mat on the cat", "how do i", "late", "the mat", "cat cat cat", "do undo"]
WORDS = "the cat a mat on how do i late undo".split()  # noqa: SIM905


def small_encoder(folder: Path, similarity: str = "cosine", **settings_: Any) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
    )
    model = BertModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
    model.save_pretrained(folder)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(tokens).save_pretrained(folder)
    SentenceConfig(
        folder, Pooling(16), max_seq_length=24, similarity_fn_name=similarity, **settings_
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    prompts = {"query": "how do i ", "document": "the "}
    return SentenceEncoder(small_encoder(tmp_path_factory.mktemp("encoder"), prompts=prompts))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    return CrossEncoder(make(tmp_path_factory.mktemp("cross")))


def by_definition(a: Any, b: Any, name: str) -> NDArray[np.float64]:
    """(A, B) scores in float64, one pair at a time."""
    rows = {
        "cosine": lambda u, v: u @ v / np.sqrt((u @ u) * (v @ v)),
        "dot": lambda u, v: u @ v,
        "euclidean": lambda u, v: -np.sqrt(((u - v) ** 2).sum()),
        "manhattan": lambda u, v: -np.abs(u - v).sum(),
    }
    score = rows[name]
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.array([[score(u, v) for v in b] for u in a]).reshape(len(a), len(b))


# Similarity


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarity_is_the_encoders(tmp_path: Path, name: str) -> None:
    place = small_encoder(tmp_path, name)
    task, encoder = SentenceSimilarity(place), SentenceEncoder(place)
    truth = by_definition(encoder.encode(TEXTS), encoder.encode(TEXTS[::-1]), name)
    assert np.ptp(truth) > 0.1
    matrix = task.matrix(TEXTS, TEXTS[::-1], batch_tokens=128)
    assert (matrix.dtype, matrix.shape) == (np.float32, (7, 7))
    assert np.abs(matrix - truth).max() <= 1e-5
    assert task.matrix(TEXTS, TEXTS[:2]).shape == (7, 2)
    assert task.matrix([], TEXTS).shape == (0, 7)
    scores = task(TEXTS, TEXTS[::-1])
    assert isinstance(scores, list)
    assert all(isinstance(score, float) for score in scores)
    assert np.abs(np.array(scores) - np.diag(truth)).max() <= 1e-5
    one = task(TEXTS[0], TEXTS[-1])
    assert isinstance(one, float)
    assert abs(one - scores[0]) <= 1e-6
    assert task([], []) == []


def test_similarity_of_bad_input(encoder: SentenceEncoder) -> None:
    task = SentenceSimilarity(encoder)
    with pytest.raises(ValueError, match="2 first texts, but 1 second ones"):
        task(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="second text is a str, expected a list"):
        task(["a"], "b")
    with pytest.raises(TypeError, match="first text is a str, expected a list"):
        task("a", ["b"])
    with pytest.raises(TypeError, match="second text 1 is a NoneType"):
        task(["a", "b"], ["c", None])
    with pytest.raises(TypeError, match="first text is a str"):
        task.matrix("a", ["b"])
    with pytest.raises(ValueError, match="text 1 holds the lone surrogate"):
        task(["a", "b"], ["c", "\ud800"])
    with pytest.raises(ValueError, match="batch_tokens"):
        task("a", "b", batch_tokens=0)
    with pytest.warns(TruncationWarning, match="1 text is"):
        task(["cat " * 50, "a"], ["b", "c"])


# Search


class Numbers(SentenceEncoder):
    """An encoder whose texts are row numbers of a table, so that ties can be made."""

    def __init__(self, table: NDArray[np.float32], name: str = "cosine") -> None:
        self.table = table
        self.settings = SentenceConfig(Path(), Pooling(table.shape[1]), similarity_fn_name=name)

    def encode(self, inputs: Any = None, *_: Any, **options: Any) -> Any:
        rows = self.table[[int(text) for text in inputs]].reshape(-1, self.table.shape[1])
        if options["normalize_embeddings"]:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    documents=st.integers(0, 40),
    top_k=st.integers(1, 50),
    at_once=st.integers(1, 9),
    name=st.sampled_from(SIMILARITIES),
)
def test_search_is_the_sorted_list(
    seed: int, documents: int, top_k: int, at_once: int, name: str
) -> None:
    draw = np.random.default_rng(seed)
    # Whole numbers of few values: many exact ties, and sums without rounding.
    table = draw.integers(-1, 2, (documents + 5, 3)).astype(np.float32)
    if name == "cosine":  # no rounding either: one non-zero number a row
        table *= np.eye(3, dtype=np.float32)[draw.integers(0, 3, len(table))]
    task = SemanticSearch(Numbers(table, name))
    texts = [str(i) for i in range(documents)]
    cut = int(draw.integers(0, documents + 1))
    task.add(texts[:cut])
    task.add(texts[cut:])
    assert len(task) == documents
    queries = [str(documents + i) for i in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "DOCUMENTS_AT_ONCE", at_once)
        patch.setattr(search_module, "QUERIES_AT_ONCE", 2)
        found = task(queries, top_k)
        assert found[3] == task(queries[3], top_k)
    a, b = table[documents:], table[:documents]
    with np.errstate(invalid="ignore"):
        truth = np.nan_to_num(by_definition(a, b, name))  # a zero vector's cosine is 0
    for row, hits in zip(truth, found, strict=True):
        order = sorted(range(documents), key=lambda i: (-row[i], i))[:top_k]
        assert [hit.index for hit in hits] == order
        assert [hit.text for hit in hits] == [texts[i] for i in order]
        assert np.allclose([hit.score for hit in hits], row[order], atol=1e-6)


def test_search_uses_the_prompts(encoder: SentenceEncoder) -> None:
    task = SemanticSearch(encoder)
    task.add(TEXTS)
    (hit, *_rest) = hits = task("undo", top_k=len(TEXTS))
    assert isinstance(hit, Hit)
    assert isinstance(hit.score, float)
    truth = by_definition(
        encoder.encode(["how do i undo"]), encoder.encode(["the " + t for t in TEXTS]), "cosine"
    )[0]
    assert sorted(hit.index for hit in hits) == list(range(7))
    for hit in hits:
        assert abs(hit.score - truth[hit.index]) <= 1e-5
        assert hit.text == TEXTS[hit.index]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert task(["undo"], 2)[0] == hits[:2]
    assert len(task("undo")) == 7  # as many as there are
    assert task([]) == []


def test_search_without_documents(encoder: SentenceEncoder) -> None:
    task = SemanticSearch(encoder)
    assert (task("cat"), task(["cat", "mat"]), len(task)) == ([], [[], []], 0)
    task.add([])
    assert task("cat") == []


def test_scores_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    task = SemanticSearch(Numbers(np.random.default_rng(0).random((count, 4), np.float32)))
    for start in range(0, count, 1000):
        task.add([str(i) for i in range(start, start + 1000)])
    sizes: list[int] = []
    real = search_module.similarity

    def recorded(a: Any, b: Any, name: str) -> Any:
        scores = real(a, b, name)
        sizes.append(scores.nbytes)
        return scores

    monkeypatch.setattr(search_module, "similarity", recorded)
    found = task([str(i) for i in range(150)], top_k=3)
    assert [hits[0].index for hits in found] == list(range(150))  # each finds itself
    assert max(sizes) == 2**21  # 150 queries at once against all would be 12 MB
    assert len(task._vectors) <= 2 * count


def test_added_documents_are_all_or_none(encoder: SentenceEncoder) -> None:
    task = SemanticSearch(encoder)
    task.add(["cat"])
    with pytest.raises(ValueError, match="text 1 holds the lone surrogate"):
        task.add(["mat", "\ud800"])
    with pytest.raises(TypeError, match="document 1 is a int"):
        task.add(["mat", 3])
    with pytest.raises(TypeError, match="document is a str"):
        task.add("mat")
    assert [hit.text for hit in task("cat")] == ["cat"]
    for top_k in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="top_k"):
            task("cat", top_k)
    with pytest.raises(TypeError, match="query 1 is a NoneType"):
        task(["cat", None])


def test_search_finds_what_is_meant(minilm_dir: Path) -> None:
    task = SemanticSearch(minilm_dir)
    task.add(["The cat sat on the mat.", "Use git revert to undo a commit.", "It rains today."])
    assert [hit.index for hit in task(["how do I take back a commit", "weather"], 1)[0]] == [1]
    assert task("weather", 1)[0].index == 2


# Reranking


def test_reranking_is_the_cross_encoders(reranker: CrossEncoder) -> None:
    task = Reranking(reranker)
    ranked = task("the cat", TEXTS)
    truth = reranker.predict([("the cat", text) for text in TEXTS])
    assert [r.index for r in ranked] == np.argsort(-truth).tolist()
    for r in ranked:
        assert isinstance(r, Ranked)
        assert isinstance(r.score, float)
        assert (r.text, abs(r.score - truth[r.index]) <= 1e-6) == (TEXTS[r.index], True)
    assert [r.index for r in task("the cat", TEXTS, 2)] == [r.index for r in ranked[:2]]
    small = task("the cat", TEXTS, batch_tokens=1)
    assert [r.index for r in small] == [r.index for r in ranked]
    assert task("the cat", []) == []


def test_reranking_of_bad_input(reranker: CrossEncoder, tmp_path: Path) -> None:
    task = Reranking(reranker)
    with pytest.raises(ValueError, match="top_k"):
        task("a", ["b"], 0)
    with pytest.raises(TypeError, match="document 0 is a int"):
        task("a", [1])
    with pytest.raises(ValueError, match="gives 3 scores a pair"):
        Reranking(make(tmp_path, num_labels=3))


# What they share


@pytest.mark.parametrize("task", [SentenceSimilarity, SemanticSearch, Reranking])
def test_an_encoder_in_memory_or_a_path(
    task: Any, encoder: SentenceEncoder, reranker: CrossEncoder, tmp_path: Path
) -> None:
    ranks = task is Reranking
    right, wrong = (reranker, encoder) if ranks else (encoder, reranker)
    assert task(right).encoder is right
    for options in ({"dtype": "float64"}, {"device": "cpu"}, {"threads": 1}, {"max_length": 9}):
        with pytest.raises(ValueError, match="own options"):
            task(right, **options)
    for other in (wrong, 3):
        with pytest.raises(TypeError, match=f"expected a {type(right).__name__}"):
            task(other)
    place = make(tmp_path) if ranks else small_encoder(tmp_path)
    loaded = task(str(place), dtype="float64", device="cpu", max_length=9).encoder
    assert (type(loaded), loaded.max_length) == (type(right), 9)
    assert loaded.model.dtype == torch.float64
    with pytest.raises(FileNotFoundError):
        task(tmp_path / "nothing")
    if ranks:  # the default model has no such head
        with pytest.raises(CheckpointError, match=r"lacks classifier\.bias, classifier\.weight"):
            task()
    else:
        assert task().encoder.dimension == 384


def test_tokens_at_once() -> None:
    assert [texts_at_once(n) for n in (1, 127, 128, 4096, 4223)] == [1, 1, 1, 32, 32]
