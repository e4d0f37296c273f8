"""``fastbert tag``: named entities and other labelled parts of texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastbert.cli.common import CommandError, signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, as_fields, shown_score
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
    from fastbert.tasks.token_classification import Span, TokenClassification, WordTag

NEEDED = Needed("a tagger", "BertForTokenClassification", "one fine-tuned for named entities")
EPILOG = """\
{"spans": [{"label": "PER", "score": 0.99, "start": 0, "end": 4, "text": "Anna"}, …]}; with
--words it is {"words": [{"word": "Anna", "label": "B-PER", "score": 0.99}, …]}. Texts longer
than the model are read in windows, and every token is judged once.

examples:
  fastbert tag --model DIR --text "Anna lives in Paris."
  fastbert tag --model DIR --document article.txt --strategy average
  fastbert tag --model DIR tokenised.txt --words -o tags.jsonl
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "tag",
        "find the labelled parts of texts, such as names",
        "Print the labelled spans of every text: names, parts of speech, whatever the checkpoint\n"
        "knows. A line of a text file is one text.",
        EPILOG,
    )
    add_files(parser)
    add_inline(parser, "text", "a text")
    add_document(parser)
    parser.add_argument(
        "--strategy",
        choices=("none", "simple", "first", "average", "max"),
        help="how tokens become spans: each alone, neighbours of one label, or words first, by"
        " their first piece, the pieces' average or the surest piece (default: simple)",
    )
    parser.add_argument(
        "--words",
        action="store_true",
        help="a text is words with spaces between; tag each one (strategies first, average, max;"
        " default: first)",
    )
    parser.add_argument(
        "--stride",
        type=whole_number,
        metavar="TOKENS",
        help="tokens that neighbouring windows share (default: a quarter of a window)",
    )
    parser.add_argument(
        "--ignore-label",
        action="append",
        metavar="LABEL",
        help="leave out its spans (default: O; an empty one reports all); repeatable",
    )
    add_task_options(parser, NEEDED, {"text": "text"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tag every record."""
    check_model(args, NEEDED)
    reader = task_reader(args, [args.text_field], document=args.document)
    inline = inline_records(args.text)
    if not args.words:
        columns = ("score", "label", "start", "end", "text")
        spans = View(columns, _span_fields, _span_rows)
        return run_task(args, reader, inline, _load_spans, spans)
    if args.ignore_label is not None:
        raise CommandError("--words tags every word: no --ignore-label", code=2)
    if args.strategy in ("none", "simple"):
        raise CommandError(
            f"--words with --strategy {args.strategy}: expected first, average or max", code=2
        )
    words = View(("score", "label", "word"), _word_fields, _word_rows)
    return run_task(args, reader, inline, _load_words, words)


def _load(args: argparse.Namespace) -> TokenClassification:
    with signals_deferred():
        from fastbert.tasks.token_classification import TokenClassification
    return load_task(TokenClassification, args, NEEDED)


def _load_spans(args: argparse.Namespace) -> Compute[Sequence[Span]]:
    task = _load(args)

    def tag(texts: list[str]) -> list[list[Span]]:
        return task(
            texts,
            strategy=args.strategy or "simple",
            stride=args.stride,
            ignore_labels=("O",) if args.ignore_label is None else args.ignore_label,
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    with checking_options():
        tag(["a"])
    return lambda chunk: tag([record.text for record in chunk])


def _load_words(args: argparse.Namespace) -> Compute[Sequence[WordTag]]:
    task = _load(args)

    def tag(texts: list[str]) -> list[list[WordTag]]:
        return task.tag_words(
            [text.split() for text in texts],
            strategy=args.strategy or "first",
            stride=args.stride,
            batch_tokens=args.batch_tokens,
            progress=False,
        )

    with checking_options():
        tag(["a"])
    return lambda chunk: tag([record.text for record in chunk])


def _span_fields(spans: Sequence[Span]) -> dict[str, object]:
    return {"spans": [as_fields(span) for span in spans]}


def _span_rows(record: Record, spans: Sequence[Span]) -> list[tuple[str, ...]]:
    return [
        (shown_score(span.score), span.label, str(span.start), str(span.end), span.text)
        for span in spans
    ]


def _word_fields(tags: Sequence[WordTag]) -> dict[str, object]:
    return {"words": [as_fields(tag) for tag in tags]}


def _word_rows(record: Record, tags: Sequence[WordTag]) -> list[tuple[str, ...]]:
    return [(shown_score(tag.score), tag.label, tag.word) for tag in tags]
