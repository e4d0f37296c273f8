"""``fastbert search``: the passages of files that are nearest in meaning to a query."""

from __future__ import annotations

import argparse
import heapq
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from fastbert.cli.common import (
    CommandError,
    add_common_options,
    add_model_options,
    load_encoder,
    note,
    positive_int,
    progress_bar,
)
from fastbert.cli.inputs import (
    CHUNK_RECORDS,
    Record,
    RecordReader,
    add_input_options,
    batch_size,
    chunks,
    reader_from,
)
from fastbert.cli.outputs import stdout_bytes, to_bytes
from fastbert.cli.rows import is_unicode
from fastbert.cli.table import cut_to_width

if TYPE_CHECKING:
    from fastbert.sentence_encoder import SentenceEncoder

EPILOG = """\
A passage is a line (or the text of a JSONL object) that is not blank. Only the best hits are
kept in memory. On a terminal a hit is cut to the width of the window and control characters
are shown as spaces; a pipe, a file and --json get passages whole (line ends inside a JSONL text
become spaces, so that one hit stays one line).

examples:
  fastbert search "how do I undo a commit" notes.txt docs/*.txt
  fastbert search "late delivery" reviews.jsonl --text-field body --top-k 3 --json
"""


class Hit(NamedTuple):
    """A passage, where it stands and how near it is; hits compare by nearness."""

    score: float
    order: int  # minus the passage's number, so that of equal scores the first read wins
    record: Record


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "search",
        help="find the lines nearest in meaning to a query",
        description="Print the lines nearest in meaning to a query, best first, one a line:\n"
        "score  file:line  passage",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for stdin")
    parser.add_argument(
        "-k", "--top-k", type=positive_int, default=10, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--json", action="store_true", help='lines of {"score", "file", "line", "text"}'
    )
    add_input_options(parser)
    add_model_options(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the best hits; 0 also when there is no passage at all."""
    if not args.query.strip():
        raise CommandError("the query is blank", code=2)
    if not is_unicode(args.query):
        raise CommandError("the query is not UTF-8", code=2)
    reader = reader_from(args, args.files)
    out = stdout_bytes()
    encoder = load_encoder(args)
    options = {"batch_size": batch_size(args), "show_progress_bar": False}
    hits = search(encoder, args.query, reader, args.top_k, args.chunk_lines, **options)
    reader.report_skipped()
    if not hits:
        note("no passages: every line is blank, or there is none")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for hit in hits:
        line = _json_line(hit) if args.json else _plain_line(hit, width)
        out.write(to_bytes(line + "\n"))
    return 0


def search(
    encoder: SentenceEncoder,
    query: str,
    reader: RecordReader,
    top_k: int,
    chunk_lines: int = CHUNK_RECORDS,
    **options: Any,
) -> list[Hit]:
    """Return the ``top_k`` passages nearest to ``query``, best first.

    Nearness is the model's own similarity (cosine, where it names none). Of equal scores the
    passage read first wins. Memory: one chunk and ``top_k`` passages. ``options`` are those of
    `SentenceEncoder.encode`.
    """
    wanted = encoder.encode_query([query], **options)  # (1, C)
    best: list[Hit] = []
    number = 0
    with progress_bar(reader.total_bytes()) as bar:
        for chunk in chunks(reader, chunk_lines):
            passages = [record for record in chunk if record.text.strip()]
            if passages:
                texts = [record.text for record in passages]
                vectors = encoder.encode_document(texts, **options)
                scores = encoder.similarity(wanted, vectors)[0].tolist()
                best = _merge(best, _hits(scores, passages, number), top_k)
            number += len(passages)
            bar.update(sum(record.size for record in chunk))
    return best


def _hits(scores: Iterable[float], passages: Iterable[Record], first: int) -> Iterator[Hit]:
    for place, (score, record) in enumerate(zip(scores, passages, strict=True)):
        yield Hit(score, -(first + place), record)


def _merge(best: list[Hit], new: Iterable[Hit], top_k: int) -> list[Hit]:
    return heapq.nlargest(top_k, [*best, *new], key=lambda hit: (hit.score, hit.order))


def _json_line(hit: Hit) -> str:
    fields = {
        "score": round(hit.score, 6),
        "file": hit.record.file,
        "line": hit.record.line,
        "text": hit.record.text,
    }
    return json.dumps(fields, ensure_ascii=False)


def _plain_line(hit: Hit, width: int | None) -> str:
    passage = hit.record.text.replace("\r\n", " ").replace("\n", " ")
    line = f"{hit.score:.4f}  {hit.record.file}:{hit.record.line}  {passage}"
    return line if width is None else cut_to_width(line, width)
