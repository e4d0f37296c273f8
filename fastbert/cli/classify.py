"""``fastbert classify``: the labels of texts, or of pairs of texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import CommandError, positive_int, signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, shown_score
from fastbert.cli.task_model import Needed, check_model, checking_options, load_task
from fastbert.cli.task_run import (
    Compute,
    add_document,
    add_files,
    add_inline,
    add_task_options,
    inline_records,
    run_task,
    task_parser,
    task_reader,
    whole_number,
)

if TYPE_CHECKING:
    from fastbert.tasks.text_classification import Label

NEEDED = Needed(
    "a classifier of texts", "BertForSequenceClassification", "one fine-tuned for sentiment"
)
EPILOG = """\
{"labels": [{"label": "positive", "score": 0.99}, …]}, best first. A text longer than the model
is cut, and the number of those is told at the end; --combine reads it whole, in windows.

examples:
  fastbert classify --model DIR --text "What a film!"
  fastbert classify --model DIR reviews.jsonl --text-field body --top-k all -o labels.jsonl
  fastbert classify --model DIR --document book.txt --combine mean --stride 64
  fastbert classify --model DIR claims.csv --text-field premise --pair-field hypothesis
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "classify",
        "label texts, or pairs of texts",
        "Print the labels of every text: sentiment, topics, whatever the checkpoint knows.\n"
        "A line of a text file is one text; with --pair-field it is FIRST<tab>SECOND.",
        EPILOG,
    )
    add_files(parser)
    add_inline(parser, "text", "a text")
    add_inline(parser, "pair", "a second text beside it")
    add_document(parser)
    parser.add_argument(
        "-k",
        "--top-k",
        type=_number_or_all,
        default=1,
        metavar="N",
        help="labels a text, or all (default: %(default)s)",
    )
    parser.add_argument(
        "--function",
        choices=("softmax", "sigmoid", "none"),
        help="what makes scores of the model's outputs (default: as its config says)",
    )
    parser.add_argument(
        "--combine",
        choices=("sum", "mean", "max"),
        help="read long texts in windows, and combine their outputs so (default: cut them)",
    )
    parser.add_argument(
        "--stride",
        type=whole_number,
        metavar="TOKENS",
        help="tokens that neighbouring windows share (default: 0)",
    )
    add_task_options(parser, NEEDED, {"text": "text", "pair": None})
    parser.set_defaults(run=run)


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else positive_int(text)


def _paired(args: argparse.Namespace) -> bool:
    return args.pair is not None or args.pair_field is not None


def run(args: argparse.Namespace) -> int:
    """Classify every record."""
    check_model(args, NEEDED)
    if args.stride is not None and args.combine is None:
        raise CommandError("--stride is for windows: give --combine too", code=2)
    if _paired(args) and (args.combine is not None or args.document):
        raise CommandError("pairs have no windows: no --combine or --document", code=2)
    fields = [args.text_field]
    texts = [args.text]
    if _paired(args):
        fields.append(args.pair_field or "pair")
        texts.append(args.pair)
    reader = task_reader(args, fields, document=args.document)
    view = View(("score", "label", "text"), _fields, _rows)
    return run_task(args, reader, inline_records(*texts), _load, view)


def _load(args: argparse.Namespace) -> Compute[Sequence[Label]]:
    with signals_deferred():
        from fastbert.tasks.text_classification import TextClassification
    task: Callable[..., Any] = load_task(TextClassification, args, NEEDED)  # a list in, a list out
    paired = _paired(args)

    def classify(texts: list[str], pairs: list[str] | None) -> list[list[Label]]:
        return task(
            texts,
            pairs,
            top_k=args.top_k,
            function=args.function,
            combine=args.combine,
            stride=args.stride or 0,
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    def compute(chunk: list[Record]) -> list[list[Label]]:
        pairs = [record.more[0] for record in chunk] if paired else None
        return classify([record.text for record in chunk], pairs)

    with checking_options():
        classify(["a"], ["a"] if paired else None)
    return compute


def _fields(labels: Sequence[Label]) -> dict[str, object]:
    return {"labels": [asdict(label) for label in labels]}


def _rows(record: Record, labels: Sequence[Label]) -> list[tuple[str, ...]]:
    text = "  ".join([record.text, *record.more])
    return [(shown_score(label.score), label.label, text) for label in labels]
