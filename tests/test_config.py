from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbert.config import ACTIVATIONS, BertConfig


def test_defaults_are_hugging_faces() -> None:
    from transformers import BertConfig as Theirs

    theirs = json.loads(json.dumps(Theirs().to_dict()))
    ours = BertConfig().to_dict()
    assert {name: theirs.get(name) for name in ours} == ours


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_labels": 5, "problem_type": "regression"},
        {"dtype": "bfloat16", "hidden_act": "gelu_new"},
        {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1}},
        {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False, "my_own": {"a": [1]}},
        {"output_hidden_states": True, "classifier_dropout": 0.25, "pad_token_id": None},
    ],
)
def test_round_trips_with_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertConfig as Theirs

    theirs = Theirs(hidden_size=48, num_attention_heads=4, **changes)
    ours = BertConfig.from_dict(theirs.to_dict())
    for name in ("hidden_size", *changes):
        found = ours.extra[name] if name == "my_own" else getattr(ours, name)
        expected = getattr(theirs, name)
        assert found == expected or f"torch.{found}" == str(expected)
    assert Theirs.from_dict(ours.to_dict()).to_dict() == theirs.to_dict()

    theirs.save_pretrained(tmp_path / "theirs")
    assert BertConfig.from_pretrained(tmp_path / "theirs") == ours
    ours.save_pretrained(tmp_path / "ours")
    loaded = Theirs.from_pretrained(tmp_path / "ours").to_dict()
    assert {**loaded, "_name_or_path": ""} == {**theirs.to_dict(), "_name_or_path": ""}


def test_unknown_fields_survive(tmp_path: Path, minilm_dir: Path) -> None:
    before = json.loads((minilm_dir / "config.json").read_text())
    config = BertConfig.from_pretrained(minilm_dir)
    assert config.extra["gradient_checkpointing"] is False
    config.save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert {name: after[name] for name in before} == before
    assert BertConfig.from_pretrained(tmp_path) == config
    odd = BertConfig.from_dict({"extra": "a field of that name", "x": None})
    assert odd.extra == {"extra": "a field of that name", "x": None}
    assert odd.to_dict()["extra"] == "a field of that name"


def test_extra_is_not_compared() -> None:
    assert BertConfig.from_dict({"transformers_version": "4"}) == BertConfig()
    assert hash(BertConfig.from_dict({"a": 1})) == hash(BertConfig())
    assert BertConfig(num_labels=3) != BertConfig()


def test_frozen_copied_and_pickled() -> None:
    names = {0: "a"}
    config = BertConfig(id2label=names)
    names[1] = "b"
    assert config.id2label == {0: "a"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
    changed = config.replace(hidden_size=96)
    assert (changed.hidden_size, changed.id2label) == (96, {0: "a"})
    assert config.replace(extra={"note": 1}).extra["note"] == 1


def test_labels_follow_from_each_other() -> None:
    assert BertConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    three = BertConfig(num_labels=3)
    assert three.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    named = BertConfig(id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert (named.num_labels, named.label2id["perhaps"]) == (3, 2)
    assert BertConfig(label2id={"no": 0, "yes": 1}).id2label == {0: "no", 1: "yes"}
    assert named.replace(num_labels=3) == named  # three labels already, their names stay
    assert named.replace(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert three.replace(id2label={0: "a"}).label2id == {"a": 0}
    assert three.replace(label2id={"a": 0}).id2label == {0: "a"}
    assert three.replace(num_labels=None, id2label=None) == three
    assert BertConfig.from_dict({"num_labels": 4}).num_labels == 4
    believed = BertConfig.from_dict({"num_labels": 4, "id2label": {"0": "a"}})
    assert believed.num_labels == 1
    with pytest.raises(ValueError, match="num_labels is 4, but 1"):
        BertConfig.from_dict({}, num_labels=4, id2label={0: "a"})


def test_dtype_old_and_new() -> None:
    import torch

    assert BertConfig.from_dict({"torch_dtype": "float16"}).dtype == "float16"
    assert BertConfig.from_dict({"torch_dtype": "float16", "dtype": "float32"}).dtype == "float32"
    assert BertConfig.from_dict({"torch_dtype": "float16", "dtype": None}).dtype == "float16"
    config = BertConfig.from_dict({}, dtype=torch.bfloat16)
    assert config.dtype == "bfloat16"
    assert "torch_dtype" not in config.to_dict()
    with pytest.raises(ValueError, match="float8"):
        BertConfig(dtype="float8_e4m3fn")


def test_activations() -> None:
    import torch
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    plain = {
        "none": lambda x: x,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "tanh": torch.tanh,
    }
    assert set(ACTIVATIONS.values()) == set(plain)
    for name in ACTIVATIONS:
        config = BertConfig(hidden_act=name)
        theirs = ACT2FN[config.to_dict()["hidden_act"]]  # each saved name is one that they know
        torch.testing.assert_close(theirs(x), plain[config.activation](x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"quick_gelu.*supported: gelu, gelu_new"):
        BertConfig(hidden_act="quick_gelu")


HUGE = 10**400


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, expected 1 to"),
        ({"hidden_size": -768}, "hidden_size is -768"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": HUGE}, "hidden_size is an integer of 1329 bits"),
        ({"hidden_size": True}, "hidden_size is True, expected an integer"),
        ({"hidden_size": 768.0}, "hidden_size is 768.0, expected an integer"),
        ({"hidden_size": "768"}, "hidden_size is '768'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": 770}, "770 is not a multiple of num_attention_heads 12"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 12 * 1024}, "bytes of float32 weights"),
        ({"num_hidden_layers": 10_000, "hidden_size": 12_000}, "10000"),
        ({"pad_token_id": 30522}, "pad_token_id is 30522, expected 0 to 30521"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob is -0.1"),
        ({"hidden_dropout_prob": float("nan")}, "finite"),
        ({"hidden_dropout_prob": HUGE}, "finite"),
        ({"attention_probs_dropout_prob": 1.0}, "0 <= p < 1"),
        ({"classifier_dropout": "0.1"}, "classifier_dropout"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps"),
        ({"initializer_range": None}, "initializer_range"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"problem_type": "ranking"}, "ranking.*supported: regression"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"architectures": "BertModel"}, "architectures"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": {"first": "a"}}, "label id in id2label is 'first'"),
        ({"label2id": {"a": "x"}}, "label id in label2id"),
        ({"num_labels": HUGE}, "num_labels"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, expected 1 to 1000000"),
        ({"model_type": "roberta"}, "model_type is 'roberta', supported: bert"),
        ({"model_type": 3}, "model_type is 3"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"position_embedding_type": "relative_key"}, "relative_key.*supported: 'absolute'"),
    ],
)
def test_absurd_values_are_named(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        BertConfig.from_dict(values)
    (tmp_path / "config.json").write_text(
        json.dumps(values) if HUGE not in values.values() else "{"
    )
    with pytest.raises(ValueError, match=r"config\.json"):
        BertConfig.from_pretrained(tmp_path)


def test_absurd_sizes_allocate_nothing() -> None:
    code = """
import resource, sys
from fastbert.config import BertConfig
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for values in ({"vocab_size": 2**31 - 1, "hidden_size": 2**19}, {"num_labels": 2**40}):
    try:
        BertConfig.from_dict(values)
    except ValueError:
        continue
    sys.exit("accepted")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_kinds_of_input(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="list"):
        BertConfig.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"unknown config fields \['num_layers'\]"):
        BertConfig.from_dict({}, num_layers=3)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        BertConfig.from_pretrained(tmp_path)
    for content in (b"", b"{", b"[1]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            BertConfig.from_pretrained(tmp_path)


short_text = st.text("ab1é", max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | short_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_text, inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(BertConfig)] + ["model_type"]),
        json_values,
        max_size=3,
    )
)
def test_any_json_is_read_or_named(values: dict[str, Any]) -> None:
    try:
        config = BertConfig.from_dict(values)
    except ValueError:
        return
    assert BertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BertConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        BertConfig(hidden_size=96).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before


def test_these_rooms_load_no_torch() -> None:
    code = """
import sys
import fastbert.checkpoint, fastbert.config, fastbert.hub, fastbert.sentence_config
from fastbert.sentence_config import SentenceConfig
SentenceConfig.from_directory(fastbert.hub.resolve_directory(None))
print({"torch", "transformers", "huggingface_hub", "safetensors"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
