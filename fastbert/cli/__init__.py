"""The command line: ``fastbert COMMAND``, one command a file.

On sentence vectors: ``embed | search | similar``. With a head: ``fill-mask | next-sentence |
classify | tag | answer | rerank``. About the installation: ``verify | info | demo``.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 130
interrupted, 141 when the reader of a pipe went away (what a shell shows for ``cat`` there).
Commands import torch and numpy only when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from fastbert.cli import (
    answer,
    classify,
    demo,
    embed,
    fill_mask,
    info,
    next_sentence,
    rerank,
    search,
    similar,
    tag,
    verify,
)
from fastbert.cli.common import (
    COMMAND_ERRORS,
    error_line,
    exit_code_of,
    flush_stdout,
    terminate_cleanly,
    warnings_on_stderr,
)
from fastbert.version import __version__

__all__ = ["build_parser", "main"]

COMMANDS = (
    embed,
    search,
    similar,
    classify,
    tag,
    answer,
    rerank,
    fill_mask,
    next_sentence,
    verify,
    info,
    demo,
)
EXIT_USAGE, EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 2, 130, 141


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; building it loads no torch and no numpy."""
    parser = argparse.ArgumentParser(
        prog="fastbert",
        description="BERT without padding, checked against float64.",
        epilog="`fastbert COMMAND --help` explains a command. Data goes to stdout, all else to "
        "stderr. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastbert {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser


def _dispatch(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        with warnings_on_stderr():
            code: int = args.run(args)
    except (BrokenPipeError, *COMMAND_ERRORS) as error:
        if args.debug and not isinstance(error, BrokenPipeError):
            traceback.print_exc()
        raise
    return code


def _silence_stdout() -> None:
    """Point stdout at the null device, so that nothing complains at the interpreter's exit."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: arguments without the program's name; ``None`` takes ``sys.argv[1:]``.

    Returns:
        0 done, 1 failed, 2 usage, 130 interrupted, 141 closed pipe, 128 + n for signal n.
    """
    try:
        with terminate_cleanly():
            code = _dispatch(argv)
            flush_stdout()
    except SystemExit as stop:  # argparse's --help, --version and usage errors; signals
        return _after_exit(stop)
    except KeyboardInterrupt:
        print("fastbert: interrupted", file=sys.stderr)
        # Where the interrupt passed through code that Python compiled from a string, CPython
        # (run_eval_code_obj) notes it as unhandled and would end by SIGINT, not with our code.
        # The next such code takes the note back.
        exec("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_CLOSED_PIPE
    except COMMAND_ERRORS as error:
        print(error_line(error), file=sys.stderr)
        _drop_unwritten()
        return exit_code_of(error)
    return code


def _drop_unwritten() -> None:
    """Write what stdout still holds, or drop it: at exit Python would complain once more."""
    try:
        flush_stdout()
    except OSError:
        _silence_stdout()


def _after_exit(stop: SystemExit) -> int:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    try:
        flush_stdout()
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_CLOSED_PIPE
    except OSError as error:
        print(error_line(error), file=sys.stderr)
        _silence_stdout()
        return 1
    return code
