from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastbert.checkpoint import (
    CheckpointError,
    LoadReport,
    StoredTensor,
    canonical_names,
    canonical_tensors,
    check_shapes,
    compare_names,
    qkv_parts,
    split_qkv,
    tied_sources,
)

DECODER = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias")


def test_canonical_names() -> None:
    pairs = {
        "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
        "bert.pooler.dense.bias": "bert.pooler.dense.bias",
        "module.encoder.layer.0.output.dense.bias": "bert.encoder.layer.0.output.dense.bias",
        "module.bert.pooler.dense.bias.x": "bert.pooler.dense.bias.x",
        "_orig_mod.module.embeddings.LayerNorm.gamma": "bert.embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.beta": "bert.embeddings.LayerNorm.bias",
        "cls.predictions.transform.LayerNorm.gamma": "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.bias": "cls.predictions.bias",
        "classifier.weight": "classifier.weight",
        "qa_outputs.bias": "qa_outputs.bias",
        # gamma and beta inside somebody's own names are left alone
        "my.gamma": "my.gamma",
        "LayerNorm.gamma.weight": "LayerNorm.gamma.weight",
        "MyLayerNorm.gamma": "MyLayerNorm.gamma",
        "encoder.gamma_LayerNorm.gammas": "bert.encoder.gamma_LayerNorm.gammas",
        "remodule.x": "remodule.x",
    }
    assert canonical_names(pairs) == pairs
    dropped = [
        "embeddings.position_ids",
        "bert.embeddings.position_ids",
        "module.embeddings.token_type_ids",
    ]
    assert canonical_names([*dropped, "my.position_ids"]) == {"my.position_ids": "my.position_ids"}


def test_two_names_for_one_tensor() -> None:
    one = StoredTensor.of("", np.ones(3, np.float32))
    names = ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight")
    same = canonical_tensors(dict.fromkeys(names, one))
    assert list(same) == ["bert.embeddings.LayerNorm.weight"]
    assert same["bert.embeddings.LayerNorm.weight"].name == "bert.embeddings.LayerNorm.weight"
    ones = np.ones(3, np.float32)
    others = (np.zeros(3, np.float32), ones.view(np.int32), ones[:, None], ones.astype(np.float64))
    for other in others:
        with pytest.raises(CheckpointError, match=r"LayerNorm\.gamma.*both mean.*differ|differ"):
            canonical_tensors({names[0]: one, names[1]: StoredTensor.of("", other)})


def test_tied_sources() -> None:
    words = "bert.embeddings.word_embeddings.weight"
    weight, decoder_bias, bias = DECODER
    assert tied_sources([words, bias]) == {weight: words, decoder_bias: bias}
    assert tied_sources([words, decoder_bias]) == {weight: words, bias: decoder_bias}
    assert tied_sources([weight, bias]) == {words: weight, decoder_bias: bias}
    assert tied_sources([words, bias], tie_word_embeddings=False) == {decoder_bias: bias}
    assert tied_sources([words, *DECODER]) == {}
    assert tied_sources([]) == {}


def test_compare_names() -> None:
    words = "bert.embeddings.word_embeddings.weight"
    expected = [words, *DECODER]
    assert compare_names(expected, [words, DECODER[2]]).ok
    assert compare_names(expected, [words, DECODER[1]]).ok
    assert compare_names(expected, [words]) == LoadReport(tuple(sorted(DECODER[1:])), ())
    untied = compare_names(expected, [words, DECODER[2]], tie_word_embeddings=False)
    assert untied == LoadReport((DECODER[0],), ())
    assert compare_names([words], [words, DECODER[2]]) == LoadReport((), (DECODER[2],))
    report = compare_names(["a", "b"], ["c"])
    assert not report.ok
    assert str(report) == (
        "2 tensors of the model not in the checkpoint: a, b. "
        "1 tensor of the checkpoint not in the model: c."
    )
    many = compare_names([f"n{i:03}" for i in range(100)], [])
    assert "100 tensors" in str(many)
    assert str(many).endswith("n019 and 80 more.")
    assert "\n" not in str(many)


def test_check_shapes() -> None:
    tensors = {"a": StoredTensor.of("a", np.zeros((2, 3)))}
    check_shapes({"a": (2, 3), "b": (1,)}, tensors)
    for wrong in ((3, 2), (6,), (2, 3, 1)):
        with pytest.raises(CheckpointError, match=r"a: the checkpoint holds shape \[2, 3\]"):
            check_shapes({"a": wrong}, tensors)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_qkv_splits(kind: str) -> None:
    stem = "bert.encoder.layer.0.attention.self"
    fused: dict[str, Any] = {
        "other.query.weight": np.zeros((2, 2)),
        f"{stem}.qkv.bias": np.repeat([0.0, 1.0, 2.0], 2),
        f"{stem}.qkv.weight": np.repeat([[0.0], [1.0], [2.0]], 2, axis=0) * np.ones(2),
    }
    if kind == "torch":
        fused = {name: torch.from_numpy(array) for name, array in fused.items()}
    split = split_qkv(fused)
    assert len(split) == 7
    for i, part in enumerate(("query", "key", "value")):
        assert split[f"{stem}.{part}.bias"].tolist() == [i, i]
        assert split[f"{stem}.{part}.weight"].tolist() == [[i, i], [i, i]]
    assert qkv_parts("bert.pooler.dense.weight") == ()


def test_qkv_that_does_not_split() -> None:
    with pytest.raises(CheckpointError, match="7 rows"):
        split_qkv({"bert.encoder.layer.0.attention.self.qkv.bias": np.zeros(7)})
