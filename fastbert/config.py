"""The model's configuration: Hugging Face's field names, checked before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbert.checks import check_choice, check_int, number, short
from fastbert.hub import resolve_directory
from fastbert.json_file import read_json_object, write_json

CONFIG_FILE = "config.json"
MODEL_TYPES = ("bert",)
# Hugging Face's name -> the waist's name. Only `gelu_tanh` is not one of theirs (see to_dict).
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "linear": "none",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
SUPPORTED_ACTIVATIONS = tuple(ACTIVATIONS)
DTYPES = ("float32", "float64", "float16", "bfloat16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MAX_WEIGHT_BYTES = 2**40
MAX_LABELS = 1_000_000

_SIZES = {  # field -> largest value that any BERT could mean
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**20,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 2**16,
    "intermediate_size": 2**24,
    "max_position_embeddings": 2**31 - 1,
    "type_vocab_size": 2**16,
}
_LABELS = ("num_labels", "id2label", "label2id")
_FLAGS = ("tie_word_embeddings", "output_attentions", "output_hidden_states", "return_dict")


@dataclass(unsafe_hash=True)  # its fields are fixed: see __setattr__
class BertConfig:
    """What a `config.json` says about a BERT; names and defaults are Hugging Face's.

    Sizes are counts, probabilities lie in [0, 1), `layer_norm_eps` is added to the variance.
    `dtype` is the checkpoint's ("float32", "float64", "float16", "bfloat16" or None). `extra` holds
    every field that we don't know, word for word; two configs that differ only there are equal.
    `num_labels`, `id2label` and `label2id` follow from each other; with none of them there are two
    labels, LABEL_0 and LABEL_1. Fields are fixed once the object is made: `replace` gives a copy.
    What is no field can be set and read like one (trainers do); it goes to `extra`.

    Raises:
        ValueError: A value that no such model can have, with the name, the value and the limit.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    problem_type: str | None = None
    num_labels: int = 0
    id2label: dict[int, str] = field(default_factory=dict, hash=False)
    label2id: dict[str, int] = field(default_factory=dict, hash=False)
    tie_word_embeddings: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    dtype: str | None = None
    architectures: list[str] | None = field(default=None, hash=False)
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, largest in _SIZES.items():
            check_int(name, getattr(self, name), 1, largest)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        self._check_total()
        if self.pad_token_id is not None:
            check_int("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        check_choice("hidden_act", self.hidden_act, SUPPORTED_ACTIVATIONS)
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.dtype is not None:  # a torch.dtype prints as "torch.float32"
            name = str(self.dtype).removeprefix("torch.")
            self._set("dtype", check_choice("dtype", name, DTYPES))
        self._check_numbers()
        self._check_labels()
        self._check_rest()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # fixed to all but __post_init__

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dataclass_fields__:
            if name in self.__dict__:
                raise FrozenInstanceError(
                    f"config.{name} is fixed; set model.config = model.config.replace({name}=…)"
                    " before the model is used, or pass it to from_pretrained"
                )
            self._set(name, value)
        else:
            _refuse_unsupported({name: value})
            self.extra[name] = value

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"config.{name} can't be deleted")

    if not TYPE_CHECKING:  # a type checker should still find a misspelt field

        def __getattr__(self, name: str) -> Any:
            extra = self.__dict__.get("extra", {})  # absent while it is unpickled
            if name in extra:
                return extra[name]
            raise AttributeError(f"BertConfig has no field {name!r}")

    def _check_rest(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {short(getattr(self, name))}, expected true or false")
        names = self.architectures
        if names is not None:
            if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
                raise ValueError(f"architectures is {short(names)}, expected a list of names")
            self._set("architectures", list(names))
        if not isinstance(self.extra, Mapping):
            raise ValueError(f"extra is {short(self.extra)}, expected a mapping")
        self._set("extra", dict(self.extra))
        _refuse_unsupported(self.extra)

    def _check_numbers(self) -> None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is None and name == "classifier_dropout":
                continue
            self._set(name, number(name, value))
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {short(value)}, expected 0 <= p < 1")
        for name in ("initializer_range", "layer_norm_eps"):
            value = number(name, getattr(self, name))
            self._set(name, value)
            if not 0 <= value < 1e3 or (value == 0 and name == "layer_norm_eps"):
                raise ValueError(f"{name} is {short(value)}, expected a small positive number")

    def _check_labels(self) -> None:
        by_id, by_name = self.id2label, self.label2id
        if not isinstance(by_id, Mapping) or not isinstance(by_name, Mapping):
            raise ValueError("id2label and label2id must be objects (mappings)")
        by_id = {_label_id("id2label", key): str(name) for key, name in by_id.items()}
        by_name = {str(name): _label_id("label2id", key) for name, key in by_name.items()}
        given = len(by_id) or len(by_name) or self.num_labels or 2
        check_int("num_labels", given, 1, MAX_LABELS)
        if self.num_labels and given != self.num_labels:
            raise ValueError(
                f"num_labels is {short(self.num_labels)}, but {given} labels are named"
            )
        if not by_id:
            by_id = {key: name for name, key in by_name.items()}
        self._set("num_labels", given)
        self._set("id2label", by_id or {i: f"LABEL_{i}" for i in range(given)})
        self._set("label2id", by_name or {name: key for key, name in self.id2label.items()})

    def _check_total(self) -> None:
        C, F = self.hidden_size, self.intermediate_size
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        total = 4 * (rows * C + self.num_hidden_layers * (4 * C * C + 2 * C * F))
        if total > MAX_WEIGHT_BYTES:
            sizes = ", ".join(f"{name} {getattr(self, name)}" for name in _SIZES)
            raise ValueError(
                f"these sizes mean {total} bytes of float32 weights ({total / 2**40:.1f} TiB), "
                f"expected at most {MAX_WEIGHT_BYTES}: {sizes}"
            )

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def activation(self) -> str:
        """The waist's name of `hidden_act`: none, gelu (erf), gelu_tanh, relu, silu or tanh."""
        return ACTIVATIONS[self.hidden_act]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> BertConfig:
        """Build a config from what a `config.json` holds.

        Args:
            values: Field names to values. `torch_dtype` is read as `dtype`; unknown fields go to
                `extra`; without `model_type` it is taken for a BERT.
            overrides: Fields that win over `values` (those in `extra` are added), and
                `num_labels=n`, which makes LABEL_0 … unless there are n labels already.

        Raises:
            TypeError: `values` is no mapping, or an override is no field.
            ValueError: As the class says, or a model type or feature that we don't have.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"config is a {type(values).__name__}, expected a mapping")
        known = set(FIELDS)
        strange = sorted(set(overrides) - known - {"extra"})
        if strange:
            raise TypeError(f"unknown config fields {strange}; known: {sorted(known)}")
        merged = dict(values)
        check_choice("model_type", merged.pop("model_type", MODEL_TYPES[0]), MODEL_TYPES)
        old_dtype = merged.pop("torch_dtype", None)
        if merged.get("dtype") is None:
            merged["dtype"] = old_dtype
        added = overrides.pop("extra", {})
        _merge_labels(merged, overrides)
        unset = [name for name in _LABELS if overrides.get(name) is None]
        merged.update((name, value) for name, value in overrides.items() if name not in unset)
        extra = {name: value for name, value in merged.items() if name not in known}
        chosen = {name: value for name, value in merged.items() if name in known}
        return cls(**chosen, extra={**extra, **added})

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: every field, the unknown ones too, JSON values only."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        del values["num_labels"]  # id2label says it
        values["id2label"] = {str(key): name for key, name in self.id2label.items()}
        values["label2id"] = dict(self.label2id)
        if self.architectures is not None:
            values["architectures"] = list(self.architectures)
        if self.hidden_act == "gelu_tanh":  # transformers does not know this name
            values["hidden_act"] = "gelu_pytorch_tanh"
        return {**self.extra, **values, "model_type": MODEL_TYPES[0]}

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | os.PathLike[str] | None, **overrides: Any
    ) -> BertConfig:
        """Read `config.json` of a model directory or hub id (None: the default model).

        Raises:
            FileNotFoundError: No such model, or no `config.json` in it.
            ValueError: As `from_dict`, with the file's name.
        """
        file = resolve_directory(path_or_id) / CONFIG_FILE
        values = read_json_object(file)
        try:
            return cls.from_dict(values, **overrides)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` into a directory (made if absent), atomically."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_json(Path(directory) / CONFIG_FILE, self.to_dict())

    def replace(self, **changes: Any) -> BertConfig:
        """Return a copy with some fields changed; `num_labels=` too, as in `from_dict`."""
        return BertConfig.from_dict(self.to_dict(), **changes)


FIELDS = tuple(f.name for f in fields(BertConfig) if f.name != "extra")
"""Names of the fields that we know."""


def _merge_labels(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Drop from `values` what they say about labels and `overrides` say otherwise."""
    stale: tuple[str, ...] = ()
    wanted, named = overrides.get("num_labels"), values.get("id2label")
    if overrides.get("id2label") is not None or overrides.get("label2id") is not None:
        stale = _LABELS
    elif wanted is not None:
        same = isinstance(named, Mapping) and len(named) == wanted
        stale = ("num_labels",) if same else _LABELS
    elif named:  # where a file disagrees with itself, transformers believes id2label
        stale = ("num_labels",)
    for name in _LABELS:
        if name in stale or values.get(name) is None:
            values.pop(name, None)


def _refuse_unsupported(extra: Mapping[str, Any]) -> None:
    """Raise for features that would change the result and that we don't have."""
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder", "pruned_heads"):
        if extra.get(name):
            raise ValueError(f"{name} is {short(extra[name])}: only full encoders are supported")
    if extra.get("quantization_config"):
        raise ValueError("quantization_config: already quantised checkpoints are not supported")
    positions = extra.get("position_embedding_type")
    if positions not in (None, "absolute"):
        raise ValueError(f"position_embedding_type is {short(positions)}, supported: 'absolute'")


def _label_id(name: str, value: object) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return check_int(f"a label id in {name}", value, 0, 2**31 - 1)
