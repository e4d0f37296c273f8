"""The directories that `CrossEncoder` reads and writes."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cross_encoders import LIMIT, make, peer, some_pairs

from fastbert import BertConfig
from fastbert.checkpoint import CheckpointError
from fastbert.cross_encoder import _MODULES, CrossEncoder
from fastbert.cross_encoder_config import ACTIVATIONS, CrossEncoderConfig
from fastbert.json_file import read_json_object, write_json

PROMPTS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.base.modules.transformer.Transformer",
}


quiet = pytest.mark.filterwarnings("ignore::fastbert.TruncationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("three"), num_labels=3)


def full_path(activation: str) -> str:
    return f"{type(_MODULES[activation]()).__module__}.{activation}"


def edit(file: Path, **values: Any) -> None:
    write_json(file, {**(read_json_object(file) if file.is_file() else {}), **values})


def test_every_activation_is_torchs() -> None:
    assert tuple(_MODULES) == ACTIVATIONS
    assert all(type(made()) is getattr(torch.nn, name) for name, made in _MODULES.items())


@quiet
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_of_config_json(tmp_path: Path, activation: str) -> None:
    path = full_path(activation)
    place = make(tmp_path, 2, sbert_ce_default_activation_function=path)
    ours, pairs = CrossEncoder(place), some_pairs(5)
    assert ours.settings.activation == activation
    with warnings.catch_warnings(action="ignore"):  # of torch: a softmax without an axis
        truth = peer(place).predict(pairs)
    assert abs(ours.predict(pairs) - truth).max() <= 1e-6
    config = {"sentence_transformers": {"activation_fn": f"torch.nn.{activation}"}}
    edit(place / "config.json", **config, sbert_ce_default_activation_function="torch.nn.ReLU6")
    assert CrossEncoder(place).settings.activation == activation  # the newer key goes first


def test_the_default_activation(folder: Path, three: Path, tmp_path: Path) -> None:
    for place, name in ((folder, "Sigmoid"), (three, "Identity")):
        assert CrossEncoder(place).settings.activation == name
        assert type(peer(place).activation_fn).__name__ == name
    for extra in (
        {"sbert_ce_default_activation_function": None},
        {"sentence_transformers": {"version": "5.0.0"}},
        {"sentence_transformers": {"activation_fn": None}},
    ):
        place = make(tmp_path / str(extra), **extra)
        assert CrossEncoder(place).settings.activation == "Sigmoid"


@pytest.mark.parametrize(
    "path", ["this.Sigmoid", "torch.nn.PReLU", "torch.sigmoid", "nn.Sigmoid", "Sigmoid", 3, ["x"]]
)
def test_an_unknown_activation_is_refused_by_name(tmp_path: Path, path: Any) -> None:
    config = BertConfig(extra={"sentence_transformers": {"activation_fn": path}})
    named = repr(path).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"activation_fn is {named}, supported: .*Sigmoid"):
        CrossEncoderConfig.from_config(config)
    with pytest.raises(ValueError, match=rf"sbert_ce\S+ is {named}"):
        CrossEncoderConfig.from_config(
            BertConfig(extra={"sbert_ce_default_activation_function": path})
        )
    write_json(tmp_path / "modules.json", [TRANSFORMER])
    edit(tmp_path / PROMPTS, model_type="CrossEncoder", activation_fn=path)
    with pytest.raises(ValueError, match=rf"{PROMPTS}: activation_fn is {named}"):
        CrossEncoderConfig.from_directory(tmp_path, BertConfig())
    assert "this" not in sys.modules  # nothing that a file names is imported


@quiet
def test_reads_what_sentence_transformers_writes(folder: Path, tmp_path: Path) -> None:
    theirs = peer(
        folder,
        activation_fn=torch.nn.Tanh(),
        max_length=17,
        prompts={"ask": "how do i "},
        default_prompt_name="ask",
    )
    theirs.save_pretrained(str(tmp_path))
    ours, pairs = CrossEncoder(tmp_path), some_pairs()
    assert (ours.settings.activation, ours.max_length) == ("Tanh", 17)
    assert abs(ours.predict(pairs) - theirs.predict(pairs)).max() <= 1e-6
    assert abs(ours.predict(pairs, prompt="") - theirs.predict(pairs, prompt="")).max() <= 1e-6
    named = ours.predict(pairs, prompt_name="ask")
    assert (named == ours.predict(pairs)).all()
    assert abs(named - ours.predict(pairs, prompt="")).max() > 0.01
    for key, value in (("prompts", {"ask": 3}), ("prompts", ["x"]), ("default_prompt_name", "b")):
        edit(tmp_path / PROMPTS, **{"prompts": {}, key: value})
        with pytest.raises(ValueError, match=key):
            CrossEncoder(tmp_path)


@quiet
@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-6), ("float64", 1e-10)])
@pytest.mark.parametrize("activation", ["Identity", "Softmax"])
def test_sentence_transformers_reads_what_we_write(
    tmp_path: Path, dtype: str, bar: float, activation: str
) -> None:
    old = {"sbert_ce_default_activation_function": full_path(activation)}
    first = CrossEncoder(make(tmp_path / "a", 2, **old), dtype=dtype, max_length=30)
    first.save_pretrained(tmp_path / "b")
    assert first.tokenizer.model_max_length > 30  # only the copy on disk is shortened
    theirs, again = (
        peer(tmp_path / "b", getattr(torch, dtype)),
        CrossEncoder(tmp_path / "b", dtype=dtype),
    )
    pairs = some_pairs()
    truth = first.predict(pairs, convert_to_tensor=True)
    with warnings.catch_warnings(action="ignore"):  # of torch: a softmax without an axis
        scores = theirs.predict(pairs, convert_to_tensor=True)
    assert (scores - truth).abs().max() <= bar
    assert torch.equal(again.predict(pairs, convert_to_tensor=True), truth)
    assert theirs.max_seq_length == again.max_length == 30
    assert again.settings == first.settings
    assert type(theirs.activation_fn).__name__ == activation
    assert read_json_object(tmp_path / "b" / PROMPTS)["activation_fn"] == full_path(activation)
    # Versions 4 and 5 read nothing but config.json and the tokenizer.
    config = read_json_object(tmp_path / "b" / "config.json")
    assert config["sentence_transformers"] == {"activation_fn": full_path(activation)}
    assert not old.keys() & config.keys()
    assert config["architectures"] == ["BertForSequenceClassification"]


@quiet
def test_prompts_survive_saving(folder: Path, tmp_path: Path) -> None:
    first = CrossEncoder(folder)
    first.settings = CrossEncoderConfig("Tanh", None, {"ask": "how "}, "ask")
    first.save_pretrained(tmp_path)
    pairs = some_pairs()
    again, theirs = CrossEncoder(tmp_path), peer(tmp_path)
    assert again.settings == first.settings
    assert (again.predict(pairs) == first.predict(pairs)).all()
    assert abs(theirs.predict(pairs) - first.predict(pairs)).max() <= 1e-6


def test_saving_onto_its_own_directory(tmp_path: Path) -> None:
    encoder = CrossEncoder(make(tmp_path))
    score = encoder.predict(("cat", "mat"))
    encoder.save_pretrained(tmp_path)
    assert CrossEncoder(tmp_path).predict(("cat", "mat")) == score


def test_max_length_rules(folder: Path, tmp_path: Path) -> None:
    assert CrossEncoder(folder).max_length == peer(folder).max_seq_length == LIMIT
    assert CrossEncoder(folder, max_length=9).max_length == 9
    for wrong in (0, LIMIT + 1, True, 9.0):
        with pytest.raises(ValueError, match="max_length"):
            CrossEncoder(folder, max_length=wrong)  # type: ignore[arg-type]
    place = make(tmp_path)
    edit(place / "tokenizer_config.json", model_max_length=21)
    assert CrossEncoder(place).max_length == peer(place).max_seq_length == 21
    CrossEncoder(place).save_pretrained(place)
    plain = read_json_object(place / LENGTH)
    for values, wanted in (
        ({"max_seq_length": 15}, 15),
        ({"max_seq_length": 33}, 33),  # not the smaller of the two
        ({"processor_kwargs": {"model_max_length": 15}}, 15),
        ({"max_seq_length": 33, "tokenizer_args": {"model_max_length": 15}}, 15),
        ({"max_seq_length": None, "processor_kwargs": {}, "unpad_inputs": True}, 21),
    ):
        write_json(place / LENGTH, {**plain, **values})
        assert CrossEncoder(place).max_length == peer(place).max_seq_length == wanted
    write_json(place / LENGTH, {"max_seq_length": 15})
    assert CrossEncoder(place, max_length=30).max_length == 30
    write_json(place / LENGTH, {"max_seq_length": LIMIT + 60})
    assert CrossEncoder(place).max_length == LIMIT  # a longer pair would have no positions


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        (LENGTH, {"transformer_task": "feature-extraction"}, "transformer_task"),
        (LENGTH, {"do_lower_case": True}, "do_lower_case"),
        (LENGTH, {"processor_kwargs": {"never_split": ["a"]}}, "never_split"),
        (LENGTH, {"max_seq_length": "9"}, "max_seq_length"),
        (PROMPTS, {"keep_in_fp32_modules": ["0.model.classifier"]}, "keep_in_fp32_modules"),
    ],
)
def test_options_not_supported_are_named(
    tmp_path: Path, file: str, values: dict[str, Any], named: str
) -> None:
    CrossEncoder(make(tmp_path)).save_pretrained(tmp_path)
    edit(tmp_path / file, **values)
    with pytest.raises(ValueError, match=named):
        CrossEncoder(tmp_path)


@pytest.mark.parametrize(
    "modules",
    [
        [],
        {"0": TRANSFORMER},
        ["Transformer"],
        [{**TRANSFORMER, "path": "0_Transformer"}],
        [{**TRANSFORMER, "type": "evil.Transformer"}],
        [TRANSFORMER, {**TRANSFORMER, "type": "sentence_transformers.base.modules.dense.Dense"}],
    ],
)
def test_other_modules_are_refused(tmp_path: Path, modules: Any) -> None:
    CrossEncoder(make(tmp_path)).save_pretrained(tmp_path)
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(ValueError, match=r"modules\.json: holds"):
        CrossEncoder(tmp_path)


def test_version_6_files_count_only_for_a_cross_encoder(folder: Path, tmp_path: Path) -> None:
    place = make(tmp_path)
    edit(place / PROMPTS, model_type="CrossEncoder", activation_fn=full_path("Tanh"))
    assert CrossEncoder(place).settings == CrossEncoder(folder).settings  # no modules.json
    write_json(place / "modules.json", [TRANSFORMER])
    assert CrossEncoder(place).settings.activation == "Tanh"
    edit(place / PROMPTS, model_type="SentenceTransformer")
    assert CrossEncoder(place).settings == CrossEncoder(folder).settings


def test_a_checkpoint_without_a_classifier_is_refused(minilm_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        CrossEncoder(minilm_dir)
    with pytest.raises(FileNotFoundError):
        CrossEncoder(tmp_path / "nothing")
