from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense as TheirDense
from sentence_transformers.base.modules import Normalize as TheirNormalize
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from fastbert.safetensors_file import CheckpointError, StoredTensor
from fastbert.sentence_config import Dense, Normalize, Pooling, SentenceConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", "##a", "##b", "##c"]
TEXTS = ["a b c", "f", "ab cab dab a b c d e f a b c d e f", "A É"]
C = 8
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain BERT directory: tiny, random, 16 positions."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=C,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model_dir(encoder_dir: Path, tmp_path: Path) -> Path:
    """The encoder with modules.json and a mean pooling in the style of version 5."""
    folder = tmp_path / "model"
    shutil.copytree(encoder_dir, folder)
    write(folder / "modules.json", modules("Transformer", "Pooling"))
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": C})
    return folder


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def modules(*kinds: str, package: str = "sentence_transformers.models") -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def test_default_model(minilm_dir: Path) -> None:
    config = SentenceConfig.from_directory(minilm_dir)
    assert config.transformer_directory == minilm_dir
    assert config.pooling == Pooling(384, ("mean",), include_prompt=True)
    assert config.steps == (Normalize(384),)  # listed, without a folder
    assert (config.max_seq_length, config.dimension) == (256, 384)
    assert (config.do_lower_case, config.similarity_fn_name) == (False, "cosine")
    assert config.prompts == {"query": "", "document": ""}


def test_default_model_saved_by_version_6(minilm_dir: Path, tmp_path: Path) -> None:
    theirs = SentenceTransformer(str(minilm_dir), device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    before = SentenceConfig.from_directory(minilm_dir)
    after = SentenceConfig.from_directory(tmp_path / "theirs")
    assert after == dataclasses.replace(before, transformer_directory=tmp_path / "theirs")

    shutil.copytree(tmp_path / "theirs", tmp_path / "ours")
    for name in ("1_Pooling", "2_Normalize"):
        shutil.rmtree(tmp_path / "ours" / name)
    after.save(tmp_path / "ours")
    ours = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    assert ours.max_seq_length == 256


CHAINS: dict[str, tuple[Any, list[Any]]] = {
    "mean": ("mean", []),
    "cls, normalised": ("cls", [TheirNormalize()]),
    "max": ("max", []),
    "lasttoken": ("lasttoken", []),
    "mean_sqrt_len_tokens": ("mean_sqrt_len_tokens", []),
    "cls and mean": (("cls", "mean"), []),
    "all": (("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken"), []),
    "mean and cls, an order that flags can't say": (("mean", "cls"), []),
    "mean twice": (("mean", "mean"), []),
    "dense": ("mean", [TheirDense(C, 5), TheirNormalize()]),
    "dense after two": (("cls", "max"), [TheirDense(2 * C, 3, activation_function=None)]),
    "dense without bias": ("cls", [TheirDense(C, C, bias=False)]),
    "residual": ("mean", [TheirDense(C, C, use_residual=True)]),
    "projected residual": ("mean", [TheirDense(C, 5, use_residual=True)]),
    "two dense": ("mean", [TheirDense(C, 5), TheirNormalize(), TheirDense(5, 4)]),
    "gelu": ("mean", [TheirDense(C, 5, activation_function=torch.nn.GELU())]),
    "relu": ("mean", [TheirDense(C, 5, activation_function=torch.nn.ReLU())]),
    "silu": ("mean", [TheirDense(C, 5, activation_function=torch.nn.SiLU())]),
}


def by_hand(config: SentenceConfig, tokens: torch.Tensor) -> torch.Tensor:
    """One text's vector from its token vectors (S, C), as the config says."""
    ways = {
        "cls": tokens[0],
        "max": tokens.amax(0),
        "mean": tokens.mean(0),
        "mean_sqrt_len_tokens": tokens.sum(0) / len(tokens) ** 0.5,
        "lasttoken": tokens[-1],
    }
    x = torch.cat([ways[mode] for mode in config.pooling.modes])
    functions = {
        "none": lambda y: y,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
    }
    for step in config.steps:
        if isinstance(step, Normalize):
            x = torch.nn.functional.normalize(x, dim=0)
            continue
        bias = step.bias.torch() if step.bias else None
        y = functions[step.activation](torch.nn.functional.linear(x, step.weight.torch(), bias))
        if step.use_residual:
            y = y + (step.residual.torch() @ x if step.residual else x)
        x = y
    return x


@pytest.mark.parametrize("chain", CHAINS)
def test_read_and_written_as_version_6_does(encoder_dir: Path, tmp_path: Path, chain: str) -> None:
    mode, rest = CHAINS[chain]
    parts = [Transformer(str(encoder_dir)), TheirPooling(C, mode), *rest]
    theirs = SentenceTransformer(modules=parts, device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    truth = theirs.encode(TEXTS)

    config = SentenceConfig.from_directory(tmp_path / "theirs")
    assert config.dimension == truth.shape[1]
    tokens = theirs.encode(TEXTS, output_value="token_embeddings")
    vectors = torch.stack([by_hand(config, t) for t in tokens])
    np.testing.assert_allclose(vectors.numpy(), truth, atol=1e-6)

    shutil.copytree(encoder_dir, tmp_path / "ours")
    config.save(tmp_path / "ours")
    ours = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(ours.encode(TEXTS), truth)
    again = SentenceConfig.from_directory(tmp_path / "ours")
    for before, after in zip(config.steps, again.steps, strict=True):
        if isinstance(before, Dense) and isinstance(after, Dense):
            np.testing.assert_array_equal(before.weight.numpy(), after.weight.numpy())
    assert (again.pooling, again.dimension) == (config.pooling, config.dimension)


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


# Length, case, prompts


@pytest.mark.parametrize(
    ("length_file", "tokenizer_length", "expected"),
    [
        ({"max_seq_length": 9, "do_lower_case": False}, 12, 9),
        ({"max_seq_length": 99}, 12, 16),  # beyond the positions: cut to them
        ({"max_seq_length": None}, 12, 12),
        ({}, 12, 12),
        (None, 12, 12),
        (None, 99, 16),
        (None, int(1e30), 16),
        (None, 1e30, 16),
        (None, None, 16),
        ({"max_seq_length": 9, "processor_kwargs": {"model_max_length": 5}}, 12, 5),
        ({"tokenizer_args": {"model_max_length": 5}, "model_args": {"x": 1}}, 12, 5),
        ({"transformer_task": "feature-extraction", "unpad_inputs": False}, 12, 12),
    ],
)
def test_lengths(model_dir: Path, length_file: Any, tokenizer_length: Any, expected: int) -> None:
    if length_file is not None:
        write(model_dir / "sentence_bert_config.json", length_file)
    write(model_dir / "tokenizer_config.json", {"model_max_length": tokenizer_length})
    assert SentenceConfig.from_directory(model_dir).max_seq_length == expected


@pytest.mark.parametrize(
    ("length_file", "match"),
    [
        ({"max_seq_length": 0}, "max_seq_length is 0"),
        ({"max_seq_length": "9"}, "max_seq_length is '9'"),
        ({"max_seq_length": True}, "max_seq_length is True"),
        ({"do_lower_case": "yes"}, "do_lower_case"),
        ({"query_length": 32}, "query_length"),
        ({"query_expansion": {"length": 3}}, "query_expansion"),
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs"),
        ({"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name"),
        ({"modality_config": {"image": {}}}, "modality_config"),
        ({"config_args": {"hidden_act": "relu"}}, "config_args"),
        ({"tokenizer_args": {"strip_accents": True}}, "strip_accents"),
        ([], "expected an object"),
    ],
)
def test_lengths_that_we_do_not_know(model_dir: Path, length_file: Any, match: str) -> None:
    write(model_dir / "sentence_bert_config.json", length_file)
    with pytest.raises(ValueError, match=match) as caught:
        SentenceConfig.from_directory(model_dir)
    assert "sentence_bert_config.json" in str(caught.value)


def test_saved_settings_return(model_dir: Path) -> None:
    config = dataclasses.replace(
        SentenceConfig.from_directory(model_dir),
        max_seq_length=11,
        do_lower_case=True,
        prompts={"query": "find: ", "document": "", "own": "é "},
        default_prompt_name="own",
        similarity_fn_name="dot",
        truncate_dim=3,
        pooling=Pooling(C, ("mean",), include_prompt=False),
    )
    config.save(model_dir)
    assert SentenceConfig.from_directory(model_dir) == config
    theirs = SentenceTransformer(str(model_dir), device="cpu")
    assert theirs.max_seq_length == 11
    assert theirs.prompts == config.prompts
    assert theirs.default_prompt_name == "own"
    assert theirs.similarity_fn_name == "dot"
    assert theirs.truncate_dim == 3
    assert theirs[0].do_lower_case is True
    assert theirs[1].include_prompt is False


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
        ({"prompts": {"query": 3}}, "prompts"),
        ({"prompts": ["query"]}, "prompts"),
        ({"default_prompt_name": "none"}, "default_prompt_name is 'none', supported: query"),
        ({"similarity_fn_name": "maxsim"}, "'maxsim', supported: cosine"),
        ({"truncate_dim": 0}, "truncate_dim"),
        (3, "expected an object"),
    ],
)
def test_prompts_that_we_do_not_know(model_dir: Path, values: Any, match: str) -> None:
    write(model_dir / "config_sentence_transformers.json", values)
    with pytest.raises(ValueError, match=match) as caught:
        SentenceConfig.from_directory(model_dir)
    assert "config_sentence_transformers.json" in str(caught.value)


def test_a_plain_encoder(encoder_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastbert"):
        config = SentenceConfig.from_directory(encoder_dir)
    assert "mean pooling, no normalisation" in caplog.text
    theirs = SentenceTransformer(str(encoder_dir), device="cpu")
    assert config.max_seq_length == theirs.max_seq_length
    tokens = theirs.encode(TEXTS, output_value="token_embeddings")
    vectors = torch.stack([by_hand(config, t) for t in tokens])
    np.testing.assert_allclose(vectors.numpy(), theirs.encode(TEXTS), atol=1e-6)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        SentenceConfig.from_directory(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        SentenceConfig.from_directory(tmp_path)
