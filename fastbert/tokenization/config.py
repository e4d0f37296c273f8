"""What a directory's JSON files say about its tokenizer, and how it is said again on saving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbert.checks import check_choice, short
from fastbert.json_file import read_json_object, write_json

if TYPE_CHECKING:
    from tokenizers import AddedToken

NO_LIMIT = int(1e30)
"""`model_max_length` of a tokenizer that knows none (the ecosystem's number for it)."""
LARGEST_LIMIT = 10**20
"""A `model_max_length` above this one is no limit."""

NAMED_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NORMALIZER_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_SIDES = ("right", "left")
# Written by other tools about one machine, or as the state of one call: never passed on.
_PRIVATE = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "backend",
    "files_loaded",
    "init_inputs",
    "is_local",
    "local_files_only",
    "max_len",
    "max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "special_tokens_map_file",
    "stride",
    "tokenizer_class",
    "tokenizer_file",
    "truncation_strategy",
    "vocab_file",
)


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer's settings, under Hugging Face's names.

    Attributes:
        do_lower_case: lower-case the text (character by character, so a final sigma stays plain).
        strip_accents: remove combining accents; None means as `do_lower_case`.
        tokenize_chinese_chars: set spaces around every CJK ideograph.
        unk_token, sep_token, cls_token: always there. pad_token, mask_token: None where absent.
        extra_special_tokens: further tokens that are never split and that decoding can skip.
        model_max_length: the default of `max_length`, in tokens with the special ones.
        padding_side, truncation_side: "right" or "left".
        clean_up_tokenization_spaces: decoding removes the spaces before punctuation once more.
        split_special_tokens: read special tokens in a text as plain text.
        others: keys that fastbert does not use, kept for saving.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    unk_token: str = "[UNK]"
    sep_token: str = "[SEP]"
    pad_token: str | None = "[PAD]"
    cls_token: str = "[CLS]"
    mask_token: str | None = "[MASK]"
    extra_special_tokens: tuple[str, ...] = ()
    model_max_length: int = NO_LIMIT
    padding_side: str = "right"
    truncation_side: str = "right"
    clean_up_tokenization_spaces: bool = False
    split_special_tokens: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("do_lower_case", "tokenize_chinese_chars", "clean_up_tokenization_spaces"):
            _check_bool(name, getattr(self, name))
        _check_bool("split_special_tokens", self.split_special_tokens)
        if self.strip_accents is not None:
            _check_bool("strip_accents", self.strip_accents)
        for name, token in self.named_tokens().items():
            if token is None and name in ("pad_token", "mask_token"):
                continue
            if not isinstance(token, str) or not token:
                raise ValueError(f"{name} is {short(token)}, expected a token")
        limit = self.model_max_length
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"model_max_length is {short(limit)}, expected an integer above 0")
        check_choice("padding_side", self.padding_side, _SIDES)
        check_choice("truncation_side", self.truncation_side, _SIDES)

    def named_tokens(self) -> dict[str, str | None]:
        """Return the five named special tokens by their attribute names."""
        return {
            "unk_token": self.unk_token,
            "sep_token": self.sep_token,
            "pad_token": self.pad_token,
            "cls_token": self.cls_token,
            "mask_token": self.mask_token,
        }

    def special_tokens(self) -> list[str]:
        """Return every special token once, the named ones first."""
        named = [token for token in self.named_tokens().values() if token is not None]
        return list(dict.fromkeys([*named, *self.extra_special_tokens]))


SETTINGS = tuple(f.name for f in fields(TokenizerConfig) if f.name != "others")


@dataclass(frozen=True)
class Stated:
    """What the files of a directory say: `settings` under the names of `TokenizerConfig`."""

    settings: dict[str, Any]
    added_tokens: dict[int, AddedToken]
    forms: dict[str, AddedToken]  # named tokens that were given as objects, by their text
    whole_json: bool  # the class named is a bare wrapper: tokenizer.json alone decides


def read_stated(directory: Path) -> Stated:
    """Read tokenizer_config.json, special_tokens_map.json and added_tokens.json where they are.

    Tokens may be strings or objects with their text under `content`. `added_tokens_decoder` in
    tokenizer_config.json, where present, replaces the two older files.

    Raises:
        ValueError: A file is no JSON object, or a value has another form than these.
    """
    file = directory / "tokenizer_config.json"
    raw = read_json_object(file) if file.is_file() else {}
    kind = raw.get("tokenizer_class")
    added = {
        _token_id(index, file): _added_token(value, file)
        for index, value in _object(raw, "added_tokens_decoder", file).items()
    }
    if "added_tokens_decoder" not in raw:
        raw.update(_read_optional(directory / "special_tokens_map.json"))
        special = {_content(raw.get(name), file) for name in NAMED_TOKENS}
        for content, index in _read_optional(directory / "added_tokens.json").items():
            added[_token_id(index, file)] = _legacy_token(content, content in special)
    settings = {name: raw[name] for name in SETTINGS if name in raw}
    forms = {}
    for name in NAMED_TOKENS:
        if name in settings:
            settings[name] = _content(raw[name], file)
            if isinstance(raw[name], Mapping):
                form = _added_token({**raw[name], "special": True}, file)
                forms[form.content] = form
    extra = raw.get("extra_special_tokens") or raw.get("additional_special_tokens") or ()
    values = extra.values() if isinstance(extra, Mapping) else extra
    settings["extra_special_tokens"] = tuple(
        filter(None, (_content(value, file) for value in values))
    )
    limit = raw.get("model_max_length", raw.get("max_len"))
    settings["model_max_length"] = NO_LIMIT if limit is None else _limit(limit, file)
    settings["others"] = {
        key: value for key, value in raw.items() if key not in SETTINGS and key not in _PRIVATE
    }
    whole_json = kind in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return Stated(settings, added, forms, whole_json)


def write_config(directory: Path, config: TokenizerConfig, added: dict[int, AddedToken]) -> None:
    """Write tokenizer_config.json and special_tokens_map.json, each atomically."""
    content: dict[str, Any] = {**config.others}
    content.update({name: getattr(config, name) for name in SETTINGS})
    content["extra_special_tokens"] = list(config.extra_special_tokens)
    content["added_tokens_decoder"] = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(added.items())
    }
    content["tokenizer_class"] = "BertTokenizer"
    write_json(directory / "tokenizer_config.json", content)
    names = {name: token for name, token in config.named_tokens().items() if token is not None}
    write_json(directory / "special_tokens_map.json", names)


def stated_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that steer the normalizer, those that are stated."""
    return {name: settings[name] for name in _NORMALIZER_FLAGS if name in settings}


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {short(value)}, expected true or false")


def _limit(value: object, file: Path) -> int:
    # 1e30 is how "no limit" is written, as a float or as an integer.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ValueError(f"{file}: model_max_length is {short(value)}, expected a number of tokens")
    return min(int(min(value, 1e30)), NO_LIMIT)


def _object(raw: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {key} is {short(value)}, expected an object")
    return value


def _content(value: object, file: Path) -> str | None:
    """Return the text of a token given as a string, as {"content": …}, or as null."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{file}: {short(value)} stands for a token, expected a string")


def _token_id(value: object, file: Path) -> int:
    text = str(value)
    if isinstance(value, int | str) and not isinstance(value, bool) and text.isdecimal():
        return int(text)
    raise ValueError(f"{file}: {short(value)} stands for the id of an added token")


def _added_token(value: object, file: Path) -> AddedToken:
    from tokenizers import AddedToken

    content = _content(value, file)
    if not content:
        raise ValueError(f"{file}: {short(value)} stands for an added token")
    given = value if isinstance(value, Mapping) else {"special": True}
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: bool(given[name]) for name in names if name in given}
    return AddedToken(content, **flags)


def _legacy_token(content: str, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    return AddedToken(content, normalized=not special, special=special)
