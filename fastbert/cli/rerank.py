"""``fastbert rerank``: candidates in the order in which they answer a query."""

from __future__ import annotations

import argparse
import heapq
from typing import TYPE_CHECKING, NamedTuple

from fastbert.cli.common import CommandError, note, positive_int, progress_bar, signals_deferred
from fastbert.cli.inputs import (
    Record,
    RecordReader,
    batch_size,
    chunks,
    refuse_overwriting_an_input,
)
from fastbert.cli.outputs import open_output
from fastbert.cli.results import View, not_finite, on_terminal, result_writer, shown_score
from fastbert.cli.rows import is_unicode
from fastbert.cli.task_model import Needed, check_model, load_task
from fastbert.cli.task_run import (
    add_document,
    add_task_options,
    task_parser,
    task_reader,
)

if TYPE_CHECKING:
    from fastbert.cross_encoder import CrossEncoder

NEEDED = Needed(
    "a cross-encoder of one label",
    "BertForSequenceClassification",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
)
EPILOG = """\
Here the order is that of the scores, best first: {"file", "line", "score", "text"}; of equal
scores the candidate read first wins. Blank texts are no candidates. With --top-k only the best
are kept in memory, without it all.

examples:
  fastbert rerank --model DIR "how do I undo a commit" candidates.txt
  fastbert rerank --model DIR "late delivery" reviews.csv --text-field body --top-k 10
"""


class Candidate(NamedTuple):
    """A text, where it stands and how well it answers; candidates compare by that."""

    score: float
    order: int  # minus the candidate's number, so that of equal scores the first read wins
    record: Record


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "rerank",
        "order candidates by how well they answer a query",
        "Print the candidates of files, best first, as a cross-encoder scores them.\n"
        "A line of a text file is one candidate.",
        EPILOG,
    )
    parser.add_argument("query", metavar="QUERY", help="what is asked for")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for stdin")
    add_document(parser)
    parser.add_argument(
        "-k", "--top-k", type=positive_int, metavar="N", help="print the best only (default: all)"
    )
    add_task_options(parser, NEEDED, {"text": "text"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the candidates, best first; 0 also when there are none."""
    check_model(args, NEEDED)
    if not args.query.strip():
        raise CommandError("the query is blank", code=2)
    if not is_unicode(args.query):
        raise CommandError("the query is not UTF-8", code=2)
    reader = task_reader(args, [args.text_field], document=args.document)
    refuse_overwriting_an_input(args.output, reader.names)
    view = View(("score", "text"), _fields, _rows)
    with open_output(args.output) as file:
        writer = result_writer(args, file, view)
        best = rank(_load(args), args, reader)
        writer.write([found.record for found in best], best)
    reader.report_skipped()
    if not best:
        note("no candidates: every text is blank, or there is none")
    return 0


def _load(args: argparse.Namespace) -> CrossEncoder:
    with signals_deferred():
        from fastbert.cross_encoder import CrossEncoder
    encoder = load_task(CrossEncoder, args, NEEDED)
    if encoder.num_labels != 1:
        raise CommandError(
            f"{args.model}: gives {encoder.num_labels} scores a pair (rerank needs {NEEDED})"
        )
    return encoder


def rank(encoder: CrossEncoder, args: argparse.Namespace, reader: RecordReader) -> list[Candidate]:
    """Return the candidates of ``reader``, best first; of ``--top-k``, if given, no more."""
    best: list[Candidate] = []
    number = 0
    with progress_bar(reader.total_bytes(), hidden=on_terminal(args)) as bar:
        for chunk in chunks(reader, args.chunk_lines):
            records = [record for record in chunk if record.text.strip()]
            scores = encoder.predict(
                [(args.query, record.text) for record in records],
                batch_size=batch_size(args),
                show_progress_bar=False,
                convert_to_tensor=True,  # not narrowed to float32
            ).tolist()
            for place, (score, record) in enumerate(zip(scores, records, strict=True)):
                if score != score:  # a NaN compares with nothing: there would be no order
                    raise CommandError(not_finite(record))
                best.append(Candidate(score, -(number + place), record))
            if args.top_k is not None:
                best = heapq.nlargest(args.top_k, best, key=lambda found: found[:2])
            number += len(records)
            bar.update(sum(record.size for record in chunk))
    return sorted(best, key=lambda found: found[:2], reverse=True)


def _fields(found: Candidate) -> dict[str, object]:
    return {"score": found.score, "text": found.record.text}


def _rows(record: Record, found: Candidate) -> list[tuple[str, ...]]:
    return [(shown_score(found.score), record.text)]
