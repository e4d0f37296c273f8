"""``fastbert fill-mask``: the tokens that a masked language model expects."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import positive_int, signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, shown_score
from fastbert.cli.task_model import Needed, check_model, checking_options, load_task
from fastbert.cli.task_run import (
    Compute,
    add_files,
    add_inline,
    add_task_options,
    inline_records,
    run_task,
    task_parser,
    task_reader,
)

if TYPE_CHECKING:
    from fastbert.tasks.fill_mask import Fill

NEEDED = Needed("a masked language model", "BertForMaskedLM", "bert-base-uncased")
EPILOG = """\
{"masks": [[{"token", "token_id", "score", "text", "start", "end"}, …], …]} has a list a mask,
best token first; "text" is the record with that mask filled. A blank line has no masks; any
other text without one is an error.

examples:
  fastbert fill-mask --model DIR --text "Paris is the [MASK] of France."
  fastbert fill-mask --model DIR sentences.txt --top-k 10 -o filled.jsonl
  fastbert fill-mask --model DIR reviews.csv --text-field body --target good --target bad
"""
Fills = Sequence[Sequence["Fill"]]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "fill-mask",
        "fill the [MASK]s of texts",
        "Print the likeliest tokens for every [MASK] of every text.\n"
        "A line of a text file is one text.",
        EPILOG,
    )
    add_files(parser)
    add_inline(parser, "text", "a text with masks")
    parser.add_argument(
        "-k", "--top-k", type=positive_int, default=5, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="WORD",
        help="score only this word, which must be one token; repeatable",
    )
    add_task_options(parser, NEEDED, {"text": "text"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fill the masks of every record."""
    check_model(args, NEEDED)
    reader = task_reader(args, [args.text_field])
    view = View(("mask", "score", "token", "text"), _fields, _rows)
    return run_task(args, reader, inline_records(args.text), _load, view)


def _load(args: argparse.Namespace) -> Compute[Fills]:
    with signals_deferred():
        from fastbert.tasks.fill_mask import FillMask
    task: Callable[..., Any] = load_task(FillMask, args, NEEDED)  # a list in, a list out

    def fill(texts: list[str]) -> list[Fills]:
        return task(
            texts,
            top_k=args.top_k,
            targets=args.target,
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    def compute(chunk: list[Record]) -> list[Fills]:
        found = iter(fill([record.text for record in chunk if record.text.strip()]))
        return [next(found) if record.text.strip() else [] for record in chunk]

    with checking_options():
        fill([])
    return compute


def _fields(masks: Fills) -> dict[str, object]:
    return {"masks": [[asdict(fill) for fill in fills] for fills in masks]}


def _rows(record: Record, masks: Fills) -> list[tuple[str, ...]]:
    return [
        (str(number), shown_score(fill.score), fill.token, fill.text)
        for number, fills in enumerate(masks, start=1)
        for fill in fills
    ]
