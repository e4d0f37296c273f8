"""``fastbert demo``: search, parity and speed, shown on the package's own documentation."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from fastbert.cli.common import (
    CommandError,
    add_common_options,
    add_model_options,
    load_encoder,
)
from fastbert.cli.outputs import stdout_bytes, to_bytes
from fastbert.cli.table import cut_to_width

if TYPE_CHECKING:
    from fastbert.cli.corpus import Passage
    from fastbert.cli.speed import Speed
    from fastbert.sentence_encoder import SentenceEncoder

QUESTIONS = (
    "What turns texts into vectors?",
    "What do the outputs hold where a token is masked?",
    "Is anything downloaded without being asked for?",
)
HITS = 3
WIDTH = 100


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="search the package's own documentation, then show parity and speed on it",
        description="Index the package's own documentation, answer three questions from it, then "
        "compare its vectors with float64 and time packed against padded batches on it. Exit code "
        "1 if the vectors miss the bar of `fastbert verify`.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it all; 0 if parity holds, else 1."""
    from fastbert.cli.corpus import passages

    out = stdout_bytes()
    documentation = passages()
    if not documentation:
        raise CommandError("this installation carries neither a README nor docstrings")
    encoder = load_encoder(args)
    _answer(out, encoder, documentation)
    passed = _parity(out, args, encoder, documentation)
    if passed:  # a wrong result has no speed
        _speed(out, encoder, [passage.text for passage in documentation])
    return 0 if passed else 1


def _say(out: IO[bytes], line: str = "") -> None:
    out.write(to_bytes(line + "\n"))
    out.flush()


def _answer(out: IO[bytes], encoder: SentenceEncoder, documentation: Sequence[Passage]) -> None:
    texts = [passage.text for passage in documentation]
    start = time.perf_counter()
    vectors = encoder.encode_document(texts, show_progress_bar=False)
    seconds = time.perf_counter() - start
    _say(out, f"indexed {len(texts)} passages of fastbert's documentation in {seconds:.1f} s")
    wanted = encoder.encode_query(list(QUESTIONS), show_progress_bar=False)
    for question, scores in zip(QUESTIONS, encoder.similarity(wanted, vectors), strict=True):
        _say(out, f"\n{question}")
        best = sorted(zip(scores.tolist(), documentation, strict=True), key=lambda hit: -hit[0])
        for score, passage in best[:HITS]:
            text = " ".join(passage.text.split())
            line = f"  {score:.4f}  {passage.file}:{passage.line}  {text}"
            _say(out, cut_to_width(line, WIDTH))


def _parity(
    out: IO[bytes],
    args: argparse.Namespace,
    encoder: SentenceEncoder,
    documentation: Sequence[Passage],
) -> bool:
    from fastbert.cli.parity import BARS
    from fastbert.cli.speed import within_tokens
    from fastbert.cli.verify import load_exact, vector_difference

    dtype = str(encoder.model.dtype).removeprefix("torch.")
    texts = within_tokens(encoder, [passage.text for passage in documentation])
    difference = vector_difference(encoder, load_exact(args), texts)
    passed = difference.within(BARS[dtype])
    _say(out, f"\nparity of {len(texts)} vectors in {dtype} with float64")
    _say(
        out,
        f"  max abs {difference.max_abs:.1e}, 1 - cosine at most {1 - difference.cosine_min:.1e}: "
        + ("passed" if passed else "FAILED"),
    )
    return passed


def _speed(out: IO[bytes], encoder: SentenceEncoder, texts: list[str]) -> None:
    from fastbert.cli.speed import measure

    speed = measure(encoder, texts)
    _say(
        out,
        f"\nspeed on {speed.texts} of these passages, {speed.tokens} tokens, {speed.device}, "
        f"{speed.threads} threads, outputs compared first, {speed.rounds} rounds",
    )
    _say(out, f"  {'':<30}{'median ms':>10}{'min–max':>16}{'tokens/s':>10}{'padding':>9}")
    for line in speed_lines(speed):
        _say(out, line)


def speed_lines(speed: Speed) -> list[str]:
    """Return a line a candidate: time, spread, real tokens a second, share of padding."""
    packed = speed.timings["packed"].median
    lines = []
    for name, timing in speed.timings.items():
        low, high = timing.spread
        spread = f"{low * 1e3:.0f}–{high * 1e3:.0f}"
        rate = speed.tokens / timing.median
        ratio = timing.median / packed
        lines.append(
            f"  {name:<30}{timing.median * 1e3:>10.0f}{spread:>16}{rate:>10.0f}"
            f"{speed.padding[name]:>9.0%}   {ratio:.2f}x the time of packed"
        )
    return lines
