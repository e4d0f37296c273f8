"""A sentence-transformers directory in the style of version 5, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

C = 8


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def modules(*kinds: str, package: str = "sentence_transformers.models") -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def add_modules(folder: Path) -> None:
    """Make a plain encoder's directory one with mean pooling."""
    write(folder / "modules.json", modules("Transformer", "Pooling"))
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": C})
