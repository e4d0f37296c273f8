"""``fastbert next-sentence``: whether one text follows another."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, shown_score
from fastbert.cli.task_model import Needed, check_model, load_task
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
    from fastbert.tasks.next_sentence import NextSentenceResult

NEEDED = Needed("a next-sentence model", "BertForNextSentencePrediction", "bert-base-uncased")
EPILOG = """\
{"is_next": true, "score": 0.98}: the score is the probability that the second text follows.

examples:
  fastbert next-sentence --model DIR --text "It rained." --pair "We stayed at home."
  fastbert next-sentence --model DIR pairs.txt
  fastbert next-sentence --model DIR pairs.csv --text-field sentence1 --pair-field sentence2
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "next-sentence",
        "say whether one text follows another",
        "Print for every pair of texts whether the second follows the first.\n"
        "A line of a text file is FIRST<tab>SECOND.",
        EPILOG,
    )
    add_files(parser)
    add_inline(parser, "text", "a first text")
    add_inline(parser, "pair", "the second text beside it")
    add_task_options(parser, NEEDED, {"text": "text", "pair": "pair"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judge every pair."""
    check_model(args, NEEDED)
    reader = task_reader(args, [args.text_field, args.pair_field])
    view = View(("next", "score", "text", "pair"), asdict, _rows)
    return run_task(args, reader, inline_records(args.text, args.pair), _load, view)


def _load(args: argparse.Namespace) -> Compute[NextSentenceResult]:
    with signals_deferred():
        from fastbert.tasks.next_sentence import NextSentence
    task: Callable[..., Any] = load_task(NextSentence, args, NEEDED)  # a list in, a list out

    def compute(chunk: list[Record]) -> list[NextSentenceResult]:
        return task(
            [record.text for record in chunk],
            [record.more[0] for record in chunk],
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    return compute


def _rows(record: Record, found: NextSentenceResult) -> list[tuple[str, ...]]:
    judged = "yes" if found.is_next else "no"
    return [(judged, shown_score(found.score), record.text, record.more[0])]
