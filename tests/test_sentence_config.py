from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_dirs import C, add_modules, write
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense as TheirDense
from sentence_transformers.base.modules import Normalize as TheirNormalize
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from fastbert.sentence_config import Dense, Normalize, Pooling, SentenceConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", "##a", "##b", "##c"]
TEXTS = ["a b c", "f", "ab cab dab a b c d e f a b c d e f", "A É"]


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
    add_modules(folder)
    return folder


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
