"""What a cross-encoder's directory says: its activation, its length, its prompts. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastbert.checks import short
from fastbert.config import BertConfig
from fastbert.json_file import read_json, read_json_object, write_json
from fastbert.sentence_config import (
    LENGTH_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    choose_prompt,
    read_length,
    read_prompts,
)
from fastbert.version import __version__

_MODEL_TYPE = "CrossEncoder"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_CLASSES = {  # a torch.nn class that may stand behind the logits -> the module that holds it
    "GELU": "torch.nn.modules.activation",
    "Identity": "torch.nn.modules.linear",
    "LogSigmoid": "torch.nn.modules.activation",
    "ReLU": "torch.nn.modules.activation",
    "SiLU": "torch.nn.modules.activation",
    "Sigmoid": "torch.nn.modules.activation",
    "Softmax": "torch.nn.modules.activation",
    "Softplus": "torch.nn.modules.activation",
    "Tanh": "torch.nn.modules.activation",
}
ACTIVATIONS = tuple(_CLASSES)
_BY_PATH = {
    f"{place}.{name}": name for name, home in _CLASSES.items() for place in ("torch.nn", home)
}
# What version 6 writes beside a plain classifier of texts.
_PLAIN = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


@dataclass(frozen=True)
class CrossEncoderConfig:
    """How a directory turns a pair's logits into scores.

    Attributes:
        activation: the `torch.nn` class behind the logits, of `ACTIVATIONS`.
        max_length: most tokens of a pair, special ones included; None: as the tokenizer says.
        prompts: names to texts put before the first text of a pair.
        default_prompt_name: the prompt used where the caller names none.
    """

    activation: str
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    @classmethod
    def from_config(cls, config: BertConfig) -> CrossEncoderConfig:
        """What `config.json` says, as versions 2 to 5 of sentence-transformers wrote it.

        The newer key goes before the older one; without either, one label has a Sigmoid and more
        have the Identity.

        Raises:
            ValueError: an activation that is not of `ACTIVATIONS`, named.
        """
        newer = config.extra.get("sentence_transformers")
        if isinstance(newer, Mapping) and "activation_fn" in newer:
            key, path = "sentence_transformers.activation_fn", newer["activation_fn"]
        else:
            key = "sbert_ce_default_activation_function"
            path = config.extra.get(key)
        if path is None:
            return cls("Sigmoid" if config.num_labels == 1 else "Identity")
        return cls(_activation(f"config.json: {key}", path))

    @classmethod
    def from_directory(
        cls, directory: str | os.PathLike[str], config: BertConfig
    ) -> CrossEncoderConfig:
        """Read a cross-encoder's directory of sentence-transformers 2 to 6, or a plain one.

        The files of version 6 count only where `modules.json` stands beside them and they speak of
        a cross-encoder; then their activation goes before that of `config.json`.

        Args:
            directory: the directory that holds `config.json`.
            config: what that file says.

        Raises:
            ValueError: a module, an activation, an option or a value that we don't know, named.
        """
        root = Path(directory)
        file = root / PROMPTS_FILE
        values = read_json_object(file) if file.is_file() else {}
        if not (root / MODULES_FILE).is_file() or values.get("model_type") != _MODEL_TYPE:
            return cls.from_config(config)
        _check_modules(root / MODULES_FILE)
        if values.get("keep_in_fp32_modules"):
            raise ValueError(f"{file}: keep_in_fp32_modules is not supported")
        path = values.get("activation_fn")
        prompts, default = read_prompts(file, values, {})
        length, do_lower_case = read_length(root, _PLAIN)
        if do_lower_case:
            raise ValueError(f"{root / LENGTH_FILE}: do_lower_case is not supported")
        return cls(
            activation=cls.from_config(config).activation
            if path is None
            else _activation(f"{file}: activation_fn", path),
            max_length=length,
            prompts=prompts,
            default_prompt_name=default,
        )

    def prompt(self, name: str | None, prompt: str | None) -> str:
        """The text to put before a pair: `prompt`, else the one named, else the default one.

        Raises:
            TypeError: `prompt` is no str.
            ValueError: there is no prompt of that name.
        """
        return choose_prompt(self.prompts, self.default_prompt_name, name, prompt)

    def save(self, directory: str | os.PathLike[str], config: BertConfig) -> None:
        """Write what versions 4 to 6 of sentence-transformers read, beside weights and tokenizer.

        Each file is replaced atomically, `modules.json` last. The length is the tokenizer's.

        Args:
            directory: where the model was saved.
            config: its own; it is written again, with the activation.

        Raises:
            OSError: a file can't be written; the old one is still there.
        """
        root = Path(directory)
        path = f"{_CLASSES[self.activation]}.{self.activation}"
        values = config.to_dict()
        values.pop("sbert_ce_default_activation_function", None)
        values["sentence_transformers"] = {"activation_fn": path}
        BertConfig.from_dict(values).save_pretrained(root)
        write_json(root / LENGTH_FILE, _PLAIN)
        prompts = {
            "model_type": _MODEL_TYPE,
            "__version__": {"fastbert": __version__},
            "activation_fn": path,
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
        }
        write_json(root / PROMPTS_FILE, prompts)
        write_json(root / MODULES_FILE, [{"idx": 0, "name": "0", "path": "", "type": _TRANSFORMER}])


def _activation(where: str, path: object) -> str:
    """Return the class's name; nothing that a file names is ever imported."""
    if not isinstance(path, str) or path not in _BY_PATH:
        raise ValueError(f"{where} is {short(path)}, supported: torch.nn's {', '.join(_CLASSES)}")
    return _BY_PATH[path]


def _check_modules(file: Path) -> None:
    """Raise unless the directory is one transformer with its head, and nothing behind it."""
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file}: holds {short(entries)}, expected a list of modules")
    found = [(entry.get("type"), entry.get("path", "")) for entry in entries]
    kind = str(found[0][0]) if found else ""
    known = kind.startswith("sentence_transformers.") and kind.endswith(".Transformer")
    if len(found) != 1 or not known or found[0][1] != "":
        raise ValueError(
            f"{file}: holds the modules {found}, supported: one Transformer in the directory itself"
        )
