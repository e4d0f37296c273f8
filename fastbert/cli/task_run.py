"""What the commands of the tasks share: their options, their models, and the way of a record."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import TypeVar

from fastbert.cli.common import (
    CommandError,
    add_common_options,
    add_model_options,
    positive_int,
    progress_bar,
)
from fastbert.cli.inputs import (
    SUFFIXES,
    Record,
    RecordReader,
    add_input_options,
    chunks,
    refuse_overwriting_an_input,
)
from fastbert.cli.outputs import open_output
from fastbert.cli.results import View, add_output_options, on_terminal, result_writer
from fastbert.cli.rows import is_unicode
from fastbert.cli.task_model import Needed, without_index

Result = TypeVar("Result")
Compute = Callable[[list[Record]], Sequence[Result]]

TASK_FORMATS = ("auto", "text", "jsonl", "csv", "tsv")
TASK_SUFFIXES: Mapping[str, str] = MappingProxyType({**SUFFIXES, ".csv": "csv", ".tsv": "tsv"})
INLINE = "<arguments>"  # where a text of the command line stands
EPILOG = """\
Output is one JSON object a record, in order: {"file": …, "line": …, and what was found}; on a
terminal it is a table. Offsets count characters of the text as given. A record is a line, blank
ones included; in CSV and TSV files a row under the header, where quoted fields may hold line
ends, and "line" is where the row begins.

"""


def task_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Add a command to the parser and return its own, without options so far."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=EPILOG + epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def whole_number(text: str) -> int:
    """Parse an argument that may be 0."""
    return 0 if text == "0" else positive_int(text)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the files that a task reads."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="a file, or - for stdin")


def add_inline(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add an option that gives a text on the command line, as often as it is given."""
    parser.add_argument(f"--{name}", action="append", metavar="TEXT", help=f"{text}; repeatable")


def add_document(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes each file one text."""
    parser.add_argument(
        "--document", action="store_true", help="read each FILE whole, as one text of many lines"
    )


def add_task_options(
    parser: argparse.ArgumentParser, needed: Needed, fields: Mapping[str, str | None]
) -> None:
    """Add what every task takes: input, output and model.

    Args:
        parser: the command's.
        needed: what kind of checkpoint it needs, for the help.
        fields: NAME → default of each ``--NAME-field``.
    """
    add_input_options(parser, formats=TASK_FORMATS, fields=fields)
    add_output_options(parser)
    group = add_model_options(
        parser,
        text=f"a checkpoint directory or a hub id: {needed}",
        length="most tokens of a text or window, special ones included (default: the model's)",
    )
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="open PyTorch's pickles where there is no safetensors file",
    )
    add_common_options(parser)


def task_reader(
    args: argparse.Namespace, fields: Sequence[str], *, document: bool = False
) -> RecordReader:
    """Return the reader of a task's files, each record with the texts of ``fields``."""
    if document and args.format not in ("auto", "text"):
        raise CommandError(f"--document reads text, not --format {args.format}", code=2)
    return RecordReader(
        args.files,
        file_format="document" if document else args.format,
        text_field=fields[0],
        more_fields=fields[1:],
        suffixes=TASK_SUFFIXES,
        skip_bad=args.skip_bad,
    )


def inline_records(texts: Sequence[str] | None, *more: Sequence[str] | None) -> list[Record]:
    """Return the texts of the command line as records; ``more`` are those beside them.

    Raises:
        CommandError: they are not as many on every side, or not UTF-8.
    """
    sides = [list(side or ()) for side in (texts, *more)]
    if len(set(map(len, sides))) > 1:
        counts = " and ".join(str(len(side)) for side in sides)
        raise CommandError(f"pairs need as many first texts as second ones, got {counts}", code=2)
    if not all(is_unicode(text) for side in sides for text in side):
        raise CommandError("a text of the command line is not UTF-8", code=2)
    return [
        Record(INLINE, number, row[0], 0, row[1:])
        for number, row in enumerate(zip(*sides, strict=True), start=1)
    ]


def run_task(
    args: argparse.Namespace,
    reader: RecordReader,
    inline: Sequence[Record],
    load: Callable[[argparse.Namespace], Compute[Result]],
    view: View[Result],
) -> int:
    """Work on every record, in order and in bounded memory; 0 when all results are written.

    Args:
        args: of the command line.
        reader: of its files.
        inline: records that come before those of the files.
        load: loads the model, checks the options, and gives what computes a chunk's results.
        view: how a result is shown.
    """
    if not inline and not reader.names:
        raise CommandError("nothing to read: give a FILE (- is stdin) or a text", code=2)
    refuse_overwriting_an_input(args.output, reader.names)
    # The output is opened before the model is loaded: a directory that can't be written to is
    # told now and not after an hour.
    with open_output(args.output) as file:
        writer = result_writer(args, file, view)
        compute = load(args)
        with progress_bar(reader.total_bytes(), hidden=on_terminal(args)) as bar:
            for chunk in chunks(chain(inline, reader), args.chunk_lines):
                writer.write(*evaluate(compute, chunk, reader))
                file.flush()
                bar.update(sum(record.size for record in chunk))
    reader.report_skipped()
    return 0


def evaluate(
    compute: Compute[Result], chunk: list[Record], reader: RecordReader
) -> tuple[list[Record], Sequence[Result]]:
    """Return the records that could be worked on, and their results.

    Raises:
        CommandError: one could not, with its file and line, unless bad ones are skipped.
    """
    try:
        return chunk, compute(chunk)
    except ValueError:
        pass  # which record it was shows when each is alone
    kept: list[Record] = []
    results: list[Result] = []
    for record in chunk:
        try:
            results += compute([record])
            kept.append(record)
        except ValueError as error:
            reader.refuse(record.place, without_index(error))
    return kept, results
