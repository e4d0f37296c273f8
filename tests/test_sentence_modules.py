from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_dirs import C, add_modules, modules, write

from fastbert.safetensors_file import CheckpointError, StoredTensor
from fastbert.sentence_config import Dense, Normalize, Pooling, SentenceConfig

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """What a SentenceConfig reads of a directory: no weights, no tokenizer."""
    write(tmp_path / "model" / "config.json", {"hidden_size": C, "num_attention_heads": 2})
    add_modules(tmp_path / "model")
    return tmp_path / "model"


def test_saved_pooling_has_only_what_version_5_knows(tmp_path: Path) -> None:
    """Its constructor takes each key as an argument and knows no `embedding_dimension`."""
    Pooling(C, ("cls",)).write(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "word_embedding_dimension": C,
        "pooling_mode": "cls",
        "pooling_mode_cls_token": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
    }


@pytest.mark.parametrize("flag", FLAGS)
def test_old_style_pooling(model_dir: Path, flag: str) -> None:
    values = {"word_embedding_dimension": C, **dict.fromkeys(FLAGS, False), flag: True}
    write(model_dir / "1_Pooling" / "config.json", values)
    assert SentenceConfig.from_directory(model_dir).pooling == Pooling(C, (FLAGS[flag],))


def test_old_style_combinations_keep_the_librarys_order(model_dir: Path) -> None:
    write(model_dir / "1_Pooling" / "config.json", dict.fromkeys(reversed(FLAGS), True))
    config = SentenceConfig.from_directory(model_dir)
    assert config.pooling.modes == tuple(FLAGS.values())
    assert config.dimension == 5 * C


def test_no_flag_at_all_means_the_mean(model_dir: Path) -> None:
    assert SentenceConfig.from_directory(model_dir).pooling.modes == ("mean",)
    values = {"word_embedding_dimension": C, **dict.fromkeys(FLAGS, False)}
    write(model_dir / "1_Pooling" / "config.json", values)
    assert SentenceConfig.from_directory(model_dir).pooling.modes == ("mean",)


def test_both_styles_in_one_file(model_dir: Path) -> None:
    values = {
        "embedding_dimension": C,
        "word_embedding_dimension": C,
        "pooling_mode": "max",
        "pooling_mode_mean_tokens": True,
        "include_prompt": False,
    }
    write(model_dir / "1_Pooling" / "config.json", values)
    pooling = SentenceConfig.from_directory(model_dir).pooling
    assert pooling == Pooling(C, ("max",), include_prompt=False)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"pooling_mode": "weightedmean"}, "'weightedmean', supported: cls, max, mean"),
        ({"pooling_mode_weightedmean_tokens": True}, "'weightedmean'"),
        ({"pooling_mode": "median"}, "'median'"),
        ({"pooling_mode": []}, "pooling_mode"),
        ({"pooling_mode": {"a": 1}}, "pooling_mode"),
        ({"pooling_mode": ["cls", 3]}, "pooling_mode is 3"),
        ({"pooling_mode_new_tokens": True}, "pooling_mode_new_tokens"),
        ({"embedding_dimension": 9}, "vectors of 9, the model's have 8"),
        ({"word_embedding_dimension": "8"}, "vectors of '8'"),
        ({"include_prompt": "no"}, "include_prompt"),
    ],
)
def test_pooling_that_we_do_not_know(model_dir: Path, values: Any, match: str) -> None:
    write(model_dir / "1_Pooling" / "config.json", values)
    with pytest.raises(ValueError, match=match) as caught:
        SentenceConfig.from_directory(model_dir)
    assert "1_Pooling" in str(caught.value)


def test_pooling_absent(model_dir: Path) -> None:
    shutil.rmtree(model_dir / "1_Pooling")
    with pytest.raises(FileNotFoundError, match="1_Pooling"):
        SentenceConfig.from_directory(model_dir)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (modules("Transformer", "Pooling", "LSTM"), "models.LSTM' is not known"),
        (modules("Transformer", "Pooling", package="my.own"), "my.own.Transformer' is not known"),
        (modules("Transformer", "Pooling", package="pylate.models"), "not known"),
        (modules("MLMTransformer", package="sentence_transformers.sparse_encoder"), "not known"),
        (modules("Transformer", "WeightedLayerPooling"), "WeightedLayerPooling"),
        (modules("Transformer"), r"modules \['Transformer'\], supported"),
        (modules("Pooling", "Transformer"), "supported: Transformer, Pooling"),
        (modules("Transformer", "Normalize", "Pooling"), "supported: Transformer, Pooling"),
        (modules("Transformer", "Pooling", "Pooling"), "supported: Transformer, Pooling"),
        ([], "supported: Transformer"),
        ({}, "expected a list"),
        ([3], "expected a list"),
        ([{"path": ""}], "None is not known"),
        ([{"type": "sentence_transformers.models.Transformer", "path": "../x"}], "leads out"),
        ([{"type": "sentence_transformers.models.Transformer", "path": "/etc"}], "leads out"),
        ([{"type": "sentence_transformers.models.Transformer", "path": 3}], "module path 3"),
    ],
)
def test_modules_that_we_do_not_know(model_dir: Path, entries: Any, match: str) -> None:
    write(model_dir / "modules.json", entries)
    with pytest.raises(ValueError, match=match) as caught:
        SentenceConfig.from_directory(model_dir)
    assert "modules.json" in str(caught.value)


def test_dropout_is_nothing_at_inference(model_dir: Path) -> None:
    write(model_dir / "modules.json", modules("Transformer", "Pooling", "Dropout", "Normalize"))
    assert SentenceConfig.from_directory(model_dir).steps == (Normalize(C),)


def test_transformer_in_a_folder_of_its_own(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.move(model_dir, tmp_path / "new" / "0_Transformer")
    inner = tmp_path / "new" / "0_Transformer"
    shutil.move(inner / "1_Pooling", tmp_path / "new" / "1_Pooling")
    entries = modules("Transformer", "Pooling")
    entries[0]["path"] = "0_Transformer"
    write(tmp_path / "new" / "modules.json", entries)
    write(inner / "sentence_bert_config.json", {"max_seq_length": 7})
    config = SentenceConfig.from_directory(tmp_path / "new")
    assert (config.transformer_directory, config.max_seq_length) == (inner, 7)


def dense_in(model_dir: Path, values: Any) -> None:
    Dense(
        C,
        2,
        "tanh",
        StoredTensor.of("w", np.ones((2, C), np.float32)),
        StoredTensor.of("b", np.ones(2, np.float32)),
    ).write(make(model_dir / "2_Dense"))
    file = model_dir / "2_Dense" / "config.json"
    write(file, {**json.loads(file.read_text()), **values})
    write(model_dir / "modules.json", modules("Transformer", "Pooling", "Dense"))


def make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "Mish.*supported.*'GELU'"),
        ({"activation_function": "os.system"}, "os.system"),
        ({"activation_function": "my.torch.nn.Tanh"}, "my.torch.nn.Tanh"),
        ({"activation_function": None}, "activation_function is None"),
        ({"in_features": 5}, "takes vectors of 5, the module before gives 8"),
        ({"in_features": True}, "in_features"),
        ({"out_features": 10**30}, "out_features"),
        ({"out_features": 3}, r"shape \[2, 8\], the config implies \[3, 8\]"),
        ({"bias": False}, r"holds the tensors \['linear.bias', 'linear.weight'\]"),
        ({"bias": 1}, "expected bools"),
        ({"use_residual": True}, "residual.weight"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ({"scale": 2}, "unknown settings"),
    ],
)
def test_dense_that_we_do_not_know(model_dir: Path, values: Any, match: str) -> None:
    dense_in(model_dir, {})
    assert SentenceConfig.from_directory(model_dir).dimension == 2
    dense_in(model_dir, values)
    with pytest.raises(ValueError, match=match):
        SentenceConfig.from_directory(model_dir)


def test_dense_weights(model_dir: Path) -> None:
    dense_in(model_dir, {"activation_function": "torch.nn.Tanh"})
    (model_dir / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="2_Dense"):
        SentenceConfig.from_directory(model_dir)
    weights = {"linear.weight": torch.ones(2, C), "linear.bias": torch.zeros(2)}
    torch.save(weights, model_dir / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        SentenceConfig.from_directory(model_dir)
    (dense,) = SentenceConfig.from_directory(model_dir, allow_pickle=True).steps
    assert isinstance(dense, Dense)
    assert (dense.activation, dense.weight.numpy().sum()) == ("tanh", 2 * C)


def test_normalise_of_something_else(model_dir: Path) -> None:
    write(model_dir / "modules.json", modules("Transformer", "Pooling", "Normalize"))
    file = model_dir / "2_Normalize" / "config.json"
    write(file, {"module_input_name": "sentence_embedding"})
    assert SentenceConfig.from_directory(model_dir).steps == (Normalize(C),)
    write(file, {"module_input_name": "token_embeddings"})
    with pytest.raises(ValueError, match="token_embeddings"):
        SentenceConfig.from_directory(model_dir)
