"""Shared fixtures: the default model's directory and real English text."""

from __future__ import annotations

import os
import pydoc_data.topics
import re
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported
if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores; threads beside them would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
# The installed package is under test, so the checkout's root stays off the path.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The default model: real all-MiniLM-L6-v2 weights."""
    from fastbert.hub import resolve_directory

    return resolve_directory(None)


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    """200 sentences and documents, from one word to more than 512 tokens.

    Python's own reference documentation: real English, on every machine.
    """
    topics = [re.sub(r"\s+", " ", text) for _, text in sorted(pydoc_data.topics.topics.items())]
    sentences = [s for text in topics for s in re.split(r"(?<=[.!?]) ", text) if len(s) > 3]
    words = [word for word in sentences[0].split() if word.isalpha()]
    texts = words[:8] + sentences[:: max(1, len(sentences) // 132)][:132]
    for number, text in enumerate(topics[:60]):  # paragraphs and documents of growing length
        texts.append(text[: 60 * (number + 1)])
    return texts[:200]
