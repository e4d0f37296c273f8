"""torch across a fork: its thread pool does not survive one, its callers should."""

from __future__ import annotations

import os

import torch


class _Process:
    forked = False
    guarded = False


def guard_forks() -> None:
    """From now on, a forked child computes with one torch thread instead of hanging.

    The child inherits the pool's book-keeping but none of its threads, so the first parallel region
    would wait for them for ever (seen with GNU OpenMP in `embedding` after two threads had run in
    the parent). A child that wants more threads has to be spawned, not forked.
    """
    if not _Process.guarded:
        _Process.guarded = True
        os.register_at_fork(after_in_child=_after_fork)


def set_threads(threads: int) -> None:
    """`torch.set_num_threads`, except in a forked child, which stays with one."""
    if not _Process.forked and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _after_fork() -> None:
    _Process.forked = True
    torch.set_num_threads(1)
