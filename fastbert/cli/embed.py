"""``fastbert embed``: one vector a line, from files of any size, in bounded memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import (
    add_common_options,
    add_model_options,
    load_encoder,
    positive_int,
    progress_bar,
)
from fastbert.cli.inputs import (
    RecordReader,
    add_input_options,
    batch_size,
    chunks,
    reader_from,
    refuse_overwriting_an_input,
)
from fastbert.cli.outputs import JsonlWriter, NpyWriter, open_output

if TYPE_CHECKING:
    from fastbert.sentence_encoder import SentenceEncoder

EPILOG = """\
One record is one line: blank lines are records too, and only "\\n" ends a line, so that line
i of a text file is row i of the .npy file (counted from 0 and 1 as usual: line 1 is row 0).
JSONL output is {"file": …, "line": …, "embedding": […]}. An output file appears whole or not
at all.

examples:
  fastbert embed notes.txt -o notes.npy
  fastbert embed a.jsonl b.jsonl --text-field body -o both.jsonl
  echo "a text" | fastbert embed -
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "embed",
        help="turn the lines of files into vectors",
        description="Turn every line of text or JSONL files into a vector, order kept.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, or - for stdin")
    parser.add_argument(
        "-o",
        "--output",
        type=_output_name,
        metavar="OUT",
        help="a .npy file (float32, one row a record), a .jsonl file, or - for JSONL on stdout "
        "(default)",
    )
    parser.add_argument(
        "--normalize", action="store_true", help="scale vectors to length 1 (many models do)"
    )
    parser.add_argument(
        "--truncate-dim", type=positive_int, metavar="C", help="keep the first C numbers only"
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="a prompt that the model defines")
    add_input_options(parser)
    add_model_options(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def _output_name(name: str) -> str:
    if name != "-" and Path(name).suffix.lower() not in (".npy", ".jsonl", ".ndjson"):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .npy or .jsonl, or -, got {name!r}"
        )
    return name


def run(args: argparse.Namespace) -> int:
    """Embed every record; 0 when all are written."""
    reader = reader_from(args, args.inputs)
    refuse_overwriting_an_input(args.output, args.inputs)
    # The output is opened before the model is loaded: a directory that can't be written to is
    # told now and not after an hour.
    with open_output(args.output) as file:
        encoder = load_encoder(args)
        options = {
            "normalize_embeddings": args.normalize,
            "truncate_dim": args.truncate_dim,
            "prompt_name": args.prompt_name,
            "batch_size": batch_size(args),
            "show_progress_bar": False,
        }
        columns = encoder.encode([], **options).shape[1]
        npy = Path(args.output or "-").suffix.lower() == ".npy"
        writer = NpyWriter(file, columns) if npy else JsonlWriter(file, columns)
        _embed(encoder, reader, writer, args.chunk_lines, options)
        writer.finish()
    reader.report_skipped()
    return 0


def _embed(
    encoder: SentenceEncoder,
    reader: RecordReader,
    writer: NpyWriter | JsonlWriter,
    chunk_lines: int,
    options: dict[str, Any],
) -> None:
    with progress_bar(reader.total_bytes()) as bar:
        for chunk in chunks(reader, chunk_lines):
            vectors = encoder.encode([record.text for record in chunk], **options)
            writer.write(chunk, vectors)
            bar.update(sum(record.size for record in chunk))
