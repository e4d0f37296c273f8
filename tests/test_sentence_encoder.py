"""`SentenceEncoder` against sentence-transformers, and what it does with bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from fastbert import SentenceEncoder, TruncationWarning
from fastbert.json_file import read_json_object, write_json
from fastbert.safetensors_file import StoredTensor
from fastbert.sentence_config import Dense, Normalize, Pooling, SentenceConfig


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture(scope="module")
def peer(minilm_dir: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm_dir), device="cpu")


@pytest.fixture(scope="module")
def texts(real_texts: list[str]) -> list[str]:
    return [text[:400] for text in real_texts[::20]]


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


def test_equals_sentence_transformers(
    encoder: SentenceEncoder, peer: SentenceTransformer, texts: list[str]
) -> None:
    ours, theirs = encoder.encode(texts), peer.encode(texts)
    assert (ours.dtype, ours.shape) == (np.float32, (len(texts), 384))
    assert worst(ours, theirs) <= 1e-5
    assert (ours * theirs).sum(1).min() >= 0.999999


@pytest.mark.parametrize(
    ("dtype", "mean", "least"), [("float32", 0.999999, 0.999999), ("bfloat16", 0.9999, 0.9995)]
)
def test_precision_against_float64(texts: list[str], dtype: str, mean: float, least: float) -> None:
    truth = SentenceEncoder(dtype="float64", max_length=512).encode(texts)
    ours = SentenceEncoder(dtype=dtype, max_length=512).encode(texts)
    cosine = (truth.astype(np.float64) * ours).sum(1)
    assert cosine.mean() >= mean
    assert cosine.min() >= least
    if dtype == "float32":
        assert worst(truth, ours) <= 1e-5


def test_order_and_batch_change_nothing_but_rounding(
    encoder: SentenceEncoder, texts: list[str]
) -> None:
    """Torch's GEMM picks kernels by the row count, so bits may move: by at most 1e-6 here."""
    alone = np.stack([encoder.encode(text) for text in texts])
    together = encoder.encode(texts)
    small = encoder.encode(texts, batch_size=1)
    backwards = encoder.encode(texts[::-1])[::-1]
    for other in (together, small, backwards):
        assert worst(alone, other) <= 1e-6


def test_quantised_vectors(
    encoder: SentenceEncoder, peer: SentenceTransformer, texts: list[str]
) -> None:
    for precision in ("int8", "uint8", "binary", "ubinary"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few vectors make unsteady ranges
            ours, theirs = (m.encode(texts, precision=precision) for m in (encoder, peer))
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        off = ours.astype(np.int16) - theirs
        assert (off != 0).mean() < 0.01  # a value on the edge of a step may go either way
        assert precision.endswith("binary") or np.abs(off).max() <= 1


def test_forms_of_output(encoder: SentenceEncoder, peer: SentenceTransformer) -> None:
    two = ["one text", "and another, longer one"]
    assert encoder.encode("one text").shape == (384,)
    assert isinstance(encoder.encode(two, convert_to_tensor=True), torch.Tensor)
    rows = encoder.encode(two, convert_to_numpy=False)
    assert isinstance(rows, list)
    assert all(isinstance(row, torch.Tensor) for row in rows)
    tokens = encoder.encode(two, output_value="token_embeddings")
    for mine, other in zip(tokens, peer.encode(two, output_value="token_embeddings"), strict=True):
        assert mine.shape == other.shape
        assert torch.allclose(mine, other, atol=1e-5)
    whole = encoder.encode(two, output_value=None)
    assert torch.allclose(whole[1]["sentence_embedding"], rows[1], atol=1e-6)
    assert len(whole[0]["input_ids"]) == len(whole[0]["token_embeddings"]) == 4
    assert np.array_equal(encoder.encode(sentences=two), encoder.encode(two))
    assert np.array_equal(encoder.encode(np.array(two)), encoder.encode(two))


def test_truncate_and_normalise(encoder: SentenceEncoder, peer: SentenceTransformer) -> None:
    options = {"truncate_dim": 64, "normalize_embeddings": True}
    ours, theirs = encoder.encode(["a text"], **options), peer.encode(["a text"], **options)
    assert ours.shape == (1, 64)
    assert worst(ours, theirs) <= 1e-5


def test_similarity(encoder: SentenceEncoder, peer: SentenceTransformer) -> None:
    vectors = encoder.encode(["the weather is nice", "it is sunny", "he drove to the stadium"])
    assert (
        worst(encoder.similarity(vectors, vectors), peer.similarity(vectors, vectors).numpy())
        <= 1e-5
    )
    tensors = torch.from_numpy(vectors)
    assert isinstance(encoder.similarity(tensors, tensors), torch.Tensor)


def test_nothing_and_nearly_nothing(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([], precision="int8").shape == (0, 384)
    assert encoder.encode([], convert_to_tensor=True).shape == (0, 384)
    for text in ("", " ", "\x00", "\u200b", "🤷🏽‍♂️", "x" * 1_000_000):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vector = encoder.encode(text)
        assert vector.shape == (384,)
        assert np.isfinite(vector).all()
        assert abs(np.linalg.norm(vector) - 1) < 1e-5


@pytest.mark.parametrize("bad", [None, float("nan"), b"bytes", 3, ["nested"]])
def test_what_is_no_text_is_named(encoder: SentenceEncoder, bad: object) -> None:
    with pytest.raises(TypeError, match="text 1"):
        encoder.encode(["a text", bad])
    with pytest.raises(TypeError, match="text 1"):
        encoder.encode(["a text", bad], prompt="query: ")


def test_bad_options(encoder: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match=r"text 0 .*surrogate"):
        encoder.encode(["\ud800"])
    with pytest.raises(ValueError, match="prompt is named 'nothing'"):
        encoder.encode(["a"], prompt_name="nothing")
    with pytest.raises(ValueError, match="precision"):
        encoder.encode(["a"], precision="int4")
    with pytest.raises(ValueError, match="output_value"):
        encoder.encode(["a"], output_value="tokens")
    with pytest.raises(ValueError, match="batch_size"):
        encoder.encode(["a"], batch_size=0)
    with pytest.raises(ValueError, match="truncate_dim"):
        encoder.encode(["a"], truncate_dim=0)
    with pytest.raises(ValueError, match="one vector has none"):
        encoder.encode(["a"], precision="int8")
    with pytest.raises(TypeError, match="inputs"):
        encoder.encode()
    with pytest.raises(TypeError, match="bytes"):
        encoder.encode(b"a")
    with pytest.raises(ValueError, match="max_length is 513"):
        SentenceEncoder(max_length=513)
    with pytest.raises(ValueError, match="dtype"):
        SentenceEncoder(dtype="int4")
    with pytest.raises(ValueError, match="threads"):
        SentenceEncoder(threads=0)


def test_cut_texts_are_counted_once(encoder: SentenceEncoder) -> None:
    long = "word " * 400
    with pytest.warns(TruncationWarning, match="2 texts are longer than 256 tokens") as caught:
        encoder.encode([long, "short", long])
    assert len(caught) == 1
    warning = caught[0].message
    assert isinstance(warning, TruncationWarning)
    assert (warning.count, warning.total, warning.limit) == (2, 3, 256)


def changed(minilm_dir: Path, target: Path, settings: SentenceConfig) -> Path:
    """A copy of the default model that pools and prompts in another way."""
    shutil.copytree(minilm_dir, target, ignore=shutil.ignore_patterns("*_*", "modules.json"))
    settings.save(target)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm_dir / name, target)
    return target


def test_modules_and_prompts_of_the_directory(minilm_dir: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = StoredTensor.of("w", random.normal(0, 0.05, (96, 2 * 384)).astype(np.float32))
    bias = StoredTensor.of("b", random.normal(0, 0.05, 96).astype(np.float32))
    settings = SentenceConfig(
        minilm_dir,
        Pooling(384, ("cls", "mean_sqrt_len_tokens"), include_prompt=False),
        (Dense(768, 96, "tanh", weight, bias), Normalize(96)),
        max_seq_length=32,
        prompts={"query": "find this: ", "document": "", "passage": "text: "},
        default_prompt_name="passage",
    )
    directory = changed(minilm_dir, tmp_path / "model", settings)
    ours, theirs = SentenceEncoder(directory), SentenceTransformer(str(directory), device="cpu")
    assert (ours.max_length, ours.dimension) == (32, 96)
    texts = ["a short text", "word " * 100, ""]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the long text is cut, on purpose
        for call in ("encode", "encode_query", "encode_document"):
            assert worst(getattr(ours, call)(texts), getattr(theirs, call)(texts)) <= 1e-5, call
        assert worst(ours.encode(texts, prompt="p: "), theirs.encode(texts, prompt="p: ")) <= 1e-5


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "lasttoken"])
def test_poolings(minilm_dir: Path, tmp_path: Path, mode: str) -> None:
    directory = changed(
        minilm_dir, tmp_path / mode, SentenceConfig(minilm_dir, Pooling(384, (mode,)))
    )
    theirs = SentenceTransformer(str(directory), device="cpu")
    texts = ["a", "a somewhat longer text", "words and more words"]
    assert worst(SentenceEncoder(directory).encode(texts), theirs.encode(texts)) <= 2e-5


def test_unknown_module_is_an_error(minilm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_dir, tmp_path / "m")
    file = tmp_path / "m" / "modules.json"
    file.write_text(file.read_text().replace('Pooling"', 'WordWeights"'))
    with pytest.raises(ValueError, match="WordWeights"):
        SentenceEncoder(tmp_path / "m")


def test_lower_casing_of_the_directory(minilm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_dir, tmp_path / "m")
    file = tmp_path / "m" / "sentence_bert_config.json"
    write_json(file, {**read_json_object(file), "do_lower_case": True})
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    texts = ["ÉCOLE Straße İstanbul ΣΑΣ", "Plain"]
    assert worst(SentenceEncoder(tmp_path / "m").encode(texts), theirs.encode(texts)) <= 1e-5


def test_one_encoder_serves_many_threads(encoder: SentenceEncoder) -> None:
    texts = [f"text number {i}, of some length " * (i % 5 + 1) for i in range(12)]
    expected = [encoder.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(encoder.encode, texts))
    assert max(worst(a, b) for a, b in zip(found, expected, strict=True)) <= 1e-6


FORK = """
import os, warnings
import numpy, torch
from fastbert import SentenceEncoder
torch.set_num_threads(2)
encoder = SentenceEncoder()
before = encoder.encode(["a text", "another one"])
warnings.simplefilter("ignore")  # Python's own warning: threads are running
child = os.fork()
if child == 0:
    same = numpy.abs(encoder.encode(["a text", "another one"]) - before).max() < 1e-6
    os._exit(0 if same else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n"


def test_saved_directory_loads_in_sentence_transformers(
    encoder: SentenceEncoder, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path)
    texts = ["one text", "and another"]
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    assert worst(encoder.encode(texts), theirs) <= 1e-5
    assert worst(encoder.encode(texts), SentenceEncoder(tmp_path).encode(texts)) == 0


def test_a_device_that_is_not_there_is_named() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            SentenceEncoder(device="cuda")
    with pytest.raises(ValueError, match="no device's name"):
        SentenceEncoder(device="gpu!")


def test_train_mode_does_not_leak_into_vectors() -> None:
    mine = SentenceEncoder()
    expected = mine.encode("a text")
    mine.model.train()
    assert np.array_equal(mine.encode("a text"), expected)


def test_an_earlier_result_is_never_overwritten(encoder: SentenceEncoder) -> None:
    first = encoder.encode(["one", "two"])
    copy = first.copy()
    encoder.encode(["three", "four"])
    assert np.array_equal(first, copy)
