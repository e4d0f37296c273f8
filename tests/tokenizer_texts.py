"""Texts and vocabularies that reach the odd corners of Unicode, for the tokenizer's tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fastbert.tokenizer import BertTokenizer

SCRIPTS = """
the of hello world tokenization unbelievable Running PARIS don't e-mail 3.14 1,000 U.S.A.
naïve café CAFÉ Ångström jalapeño Straße ﬁne İstanbul ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ ŀlama Ǆungla
привет мир שלום مرحبا नमस्ते สวัสดี 한국어 조선글 日本語 カタカナ ひらがな 中文 漢字測試 𠀀𠀁 㐀
"""
WORDS = SCRIPTS.split()
PIECES = (
    "e\u0301",  # a combining acute
    "A\u030a\u0323",  # two marks, out of canonical order
    "\u0301",  # a mark with nothing before it
    "\u1e9b\u0323",
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇫🇷🇩🇪",
    "❤️",
    "🏴\U000e0067\U000e0062\U000e007f",
    "\u200b\u200c\u200d\u2060\ufeff",
    "a\u200bb",
    "a\u00adb",
    "\x00",
    "a\x00b",
    "\x01\x07\x1b",
    "\x7f\x85\x9f",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\ufffd",
    "a\ufffdb",
    "\ue000",
    "\U0010ffff",
    "\u0378",
    "\ufdfa",
    "\uac00\u11a8",
    "[MASK]",
    "[SEP]x[CLS]",
    "[mask]",
    "[UNK][PAD]",
    "##ing",
    "``quotes''",
    "¿…—«»$+<=>^`|~",
    "。，！？",
    "x" * 100,
    "x" * 101,
    "é" * 60,
)
GAPS = ("", "", " ", " ", " ", "  ", "\t", "\n", "\r\n", "-", ".")


def make_text(rng: random.Random, most: int) -> str:
    """A text of up to `most` words, odd pieces and arbitrary code points, with odd gaps."""
    parts = []
    for _ in range(rng.randrange(most + 1)):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.9:
            parts.append(rng.choice(PIECES))
        else:
            code = rng.choice((0x250, 0x3000, 0x10000, 0x110000))
            point = chr(rng.randrange(code))
            parts.append("" if "\ud800" <= point <= "\udfff" else point)
        parts.append(rng.choice(GAPS))
    return "".join(parts)


def write_tokenizer(directory: Path, config: dict[str, Any]) -> Path:
    """A directory with a vocab.txt alone: every other character of ours, whole or as a piece."""
    characters = sorted(set("".join([*WORDS, *PIECES])) - set("\n\r \x00"))
    lower = sorted({c for w in WORDS for c in w.lower()} | set(characters))
    words = WORDS[::2] + [w.lower() for w in WORDS[::3]]
    entries = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += lower[::2] + ["##" + c for c in lower[::2]] + words + ["##ing", "##ization", "xx"]
    unique = list(dict.fromkeys(e for e in entries if not e.isspace() and e == e.strip()))
    (directory / "vocab.txt").write_bytes("".join(e + "\n" for e in unique).encode())
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
LETTER_VOCAB = [*SPECIAL, *LETTERS, *("##" + c for c in LETTERS)]
"""As many tokens as letters: "a" is 5, "##a" is 31."""


def json_directory(entries: list[str], directory: Path, change: dict[str, Any]) -> Path:
    """A directory with a tokenizer.json alone, whose top-level keys `change` replaces."""
    BertTokenizer(entries, do_lower_case=False).save_pretrained(directory)
    file = directory / "tokenizer.json"
    raw = {**json.loads(file.read_text(encoding="utf-8")), **change}
    file.write_text(json.dumps(raw))
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).unlink()
    return directory
