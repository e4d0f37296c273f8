"""What a sentence-transformers directory says: its modules, its length, its prompts. No torch."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastbert.checks import check_choice, check_int, short
from fastbert.config import BertConfig
from fastbert.json_file import read_json, read_json_object, write_json
from fastbert.sentence_modules import Dense, Normalize, Pooling, module_folder
from fastbert.version import __version__

__all__ = ["Dense", "Normalize", "Pooling", "SentenceConfig"]

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
DEFAULT_PROMPTS = {"query": "", "document": ""}

# Version 5 writes `sentence_transformers.models.Pooling`, version 6 the module's file between.
_TYPE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)\."
    r"(?:\w+\.)?(Transformer|Pooling|Dense|Normalize|Dropout)"
)
_KNOWN_TYPES = "Transformer, Pooling, Dense, Normalize, Dropout"
_HARMLESS_LENGTH_KEYS = {"max_seq_length", "do_lower_case", "unpad_inputs"}
_HARMLESS_TOKENIZER_KEYS = {"model_max_length", "trust_remote_code", "padding_side", "use_fast"}
# What version 6 writes for a plain encoder of texts.
_PLAIN_ENCODER = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}

logger = logging.getLogger("fastbert")


@dataclass(frozen=True)
class SentenceConfig:
    """How a directory turns a text into a vector.

    Attributes:
        transformer_directory: Where the encoder's config, weights and tokenizer lie.
        pooling: How token vectors become one.
        steps: What follows, in order: `Dense` and `Normalize`.
        max_seq_length: The longest text in tokens, special ones included.
        do_lower_case: Lowercase every text first, whatever the tokenizer does after that (accents
            included: they stay where its own settings leave them).
        prompts: Names to texts put before the input.
        default_prompt_name: The prompt used where the caller names none.
        similarity_fn_name: cosine, dot, euclidean or manhattan.
        truncate_dim: Keep only so many leading numbers of a vector; None keeps all.
    """

    transformer_directory: Path
    pooling: Pooling
    steps: tuple[Dense | Normalize, ...] = ()
    max_seq_length: int = 512
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_PROMPTS))
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None

    @property
    def dimension(self) -> int:
        """The width of a sentence vector before any truncation."""
        return self.steps[-1].dimension if self.steps else self.pooling.dimension

    @classmethod
    def from_directory(
        cls, directory: str | os.PathLike[str], *, allow_pickle: bool = False
    ) -> SentenceConfig:
        """Read a sentence-transformers directory (versions 5 and 6), or a plain BERT's.

        A plain one is pooled by the mean and not normalised, as sentence-transformers does, with a
        warning in the log. A length beyond the model's positions is cut to them.

        Args:
            directory: The directory that holds `modules.json`, or a plain `config.json`.
            allow_pickle: Read a Dense module's `pytorch_model.bin` where it has no safetensors.

        Raises:
            FileNotFoundError: A file that must be there is not.
            ValueError: A module type, an option or a value that we don't know, named.
        """
        root = Path(directory)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such directory")
        if not (root / MODULES_FILE).is_file():
            config = BertConfig.from_pretrained(root)
            logger.warning(
                "no %s in %s: mean pooling, no normalisation, as for any plain encoder",
                MODULES_FILE,
                root,
            )
            length = min(_tokenizer_length(root), config.max_position_embeddings)
            return cls(root, Pooling(config.hidden_size), max_seq_length=length)
        modules = _read_modules(root)
        transformer = modules[0][1]
        config = BertConfig.from_pretrained(transformer)
        pooling, steps = _read_steps(modules, config.hidden_size, allow_pickle)
        named, do_lower_case = read_length(transformer)
        length = _tokenizer_length(transformer) if named is None else named
        return cls(
            transformer_directory=transformer,
            pooling=pooling,
            steps=steps,
            max_seq_length=min(length, config.max_position_embeddings),
            do_lower_case=do_lower_case,
            **_read_rest(root),
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write everything but the encoder itself, so that versions 5 and 6 both read it.

        The encoder's config, weights and tokenizer belong into the same directory. Each file is
        replaced atomically, `modules.json` last.

        Raises:
            OSError: A file can't be written; the old one is still there.
        """
        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        entries = [{"idx": 0, "name": "0", "path": "", "type": _type_name("Transformer")}]
        for i, module in enumerate((self.pooling, *self.steps), start=1):
            kind = type(module).__name__
            folder = f"{i}_{kind}"
            entries.append({"idx": i, "name": str(i), "path": folder, "type": _type_name(kind)})
            if not isinstance(module, Normalize):  # it has nothing to say
                (root / folder).mkdir(exist_ok=True)
                module.write(root / folder)
        # Version 5 passes each key of this file to a constructor: only what both know.
        length = {"max_seq_length": self.max_seq_length, "do_lower_case": self.do_lower_case}
        write_json(root / LENGTH_FILE, length)
        prompts: dict[str, Any] = {
            "model_type": "SentenceTransformer",
            "__version__": {"fastbert": __version__},
            "prompts": dict(self.prompts),
            "default_prompt_name": self.default_prompt_name,
            "similarity_fn_name": self.similarity_fn_name,
        }
        if self.truncate_dim is not None:
            prompts["truncate_dim"] = self.truncate_dim
        write_json(root / PROMPTS_FILE, prompts)
        write_json(root / MODULES_FILE, entries)


def _type_name(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"


def _read_modules(root: Path) -> list[tuple[str, Path]]:
    """Return (kind, folder) of each module of `modules.json`: a Transformer and a Pooling first."""
    file = root / MODULES_FILE
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file}: holds {short(entries)}, expected a list of modules")
    modules = []
    for entry in entries:
        kind = entry.get("type")
        known = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
        if known is None:
            raise ValueError(
                f"{file}: module type {kind!r} is not known; known, of sentence_transformers: "
                f"{_KNOWN_TYPES}"
            )
        try:
            folder = module_folder(root, entry.get("path", ""))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if known[1] != "Dropout":  # the identity outside training
            modules.append((known[1], folder))
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise ValueError(
            f"{file}: modules {kinds}, supported: Transformer, Pooling, then Dense and Normalize"
        )
    return modules


def _read_steps(
    modules: list[tuple[str, Path]], hidden_size: int, allow_pickle: bool
) -> tuple[Pooling, tuple[Dense | Normalize, ...]]:
    """Read the pooling and what follows it; each must take the width that the one before gives."""
    pooling = Pooling.read(modules[1][1], hidden_size)
    steps: list[Dense | Normalize] = []
    width = pooling.dimension
    for kind, folder in modules[2:]:
        if kind == "Dense":
            steps.append(Dense.read(folder, width, allow_pickle=allow_pickle))
        else:
            steps.append(Normalize.read(folder, width))
        width = steps[-1].dimension
    return pooling, tuple(steps)


def read_length(
    transformer: Path, plain: Mapping[str, Any] = _PLAIN_ENCODER
) -> tuple[int | None, bool]:
    """Return (max_seq_length, do_lower_case) of the transformer module; None where it names none.

    `plain` holds what may stand there beside: settings that mean what is computed anyway.
    """
    file = transformer / LENGTH_FILE
    values = read_json_object(file) if file.is_file() else {}
    tokenizer: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("tokenizer_args", "processor_kwargs") and isinstance(value, dict):
            tokenizer = value
        elif key in ("config_args", "config_kwargs") and isinstance(value, dict):
            if set(value) - {"trust_remote_code"}:
                raise ValueError(f"{file}: {key} {short(value)} is not supported")
        elif key in plain:
            if value is not None and value != plain[key]:
                raise ValueError(f"{file}: {key} is {short(value)}, supported: {plain[key]!r}")
        elif key not in _HARMLESS_LENGTH_KEYS | {"model_args", "model_kwargs"} and value:
            raise ValueError(f"{file}: {key} ({short(value)}) is not supported")
    strange = sorted(set(tokenizer) - _HARMLESS_TOKENIZER_KEYS)
    if strange:
        raise ValueError(f"{file}: tokenizer settings {strange} are not supported here")
    do_lower_case = values.get("do_lower_case") or False
    if not isinstance(do_lower_case, bool):
        raise ValueError(f"{file}: do_lower_case is {short(do_lower_case)}, expected a bool")
    length = tokenizer.get("model_max_length", values.get("max_seq_length"))
    if length is not None:
        length = check_int(f"{file}: max_seq_length", length, 1, 2**31 - 1)
    return length, do_lower_case


def _tokenizer_length(transformer: Path) -> int:
    """Return the tokenizer's `model_max_length`, a huge number where it has none."""
    file = transformer / "tokenizer_config.json"
    length = read_json_object(file).get("model_max_length") if file.is_file() else None
    if length is None or (isinstance(length, int | float) and length >= 2**31):
        return 2**31 - 1  # transformers writes 1e30 for "no limit"
    return check_int(f"{file}: model_max_length", length, 1, 2**31 - 1)


def read_prompts(
    file: Path, values: Mapping[str, Any], defaults: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Return the prompts and the name of the default one, or raise ValueError."""
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise ValueError(f"{file}: prompts is {short(prompts)}, expected names to texts")
    prompts = {**defaults, **prompts}
    default = values.get("default_prompt_name")
    if default is not None:
        check_choice(f"{file}: default_prompt_name", default, tuple(prompts))
    return prompts, default


def choose_prompt(
    prompts: Mapping[str, str], default: str | None, name: str | None, prompt: str | None
) -> str:
    """Return `prompt`, else the one named, else the default one, else "".

    Raises:
        TypeError: `prompt` is no str.
        ValueError: there is no prompt of that name.
    """
    if prompt is not None:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt is a {type(prompt).__name__}, expected str")
        return prompt
    name = default if name is None else name
    if name is None:
        return ""
    if name not in prompts:
        raise ValueError(f"no prompt is named {name!r}; there are: {sorted(prompts)}")
    return prompts[name]


def _read_rest(root: Path) -> dict[str, Any]:
    """Return the fields that `config_sentence_transformers.json` sets."""
    file = root / PROMPTS_FILE
    values = read_json_object(file) if file.is_file() else {}
    kind = values.get("model_type") or "SentenceTransformer"
    check_choice(f"{file}: model_type", kind, ("SentenceTransformer",))
    prompts, default = read_prompts(file, values, DEFAULT_PROMPTS)
    truncate_dim = values.get("truncate_dim")
    if truncate_dim is not None:
        check_int(f"{file}: truncate_dim", truncate_dim, 1, 2**31 - 1)
    similarity = values.get("similarity_fn_name") or SIMILARITIES[0]
    return {
        "prompts": prompts,
        "default_prompt_name": default,
        "similarity_fn_name": check_choice(f"{file}: similarity", similarity, SIMILARITIES),
        "truncate_dim": truncate_dim,
    }
