"""`BertModel` without padding beside transformers and sentence-transformers.

Run ``python -m benchmarks.model --help`` in a checkout with the extra `bench` installed. Markdown
goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.harness import MIN_ROUNDS, Case, Result, measure
from benchmarks.machine import cpu_seconds_of_others, facts, gemm_flops
from benchmarks.peers import BASELINE, BOUNDS, PEERS, Peer, candidate, float64_truth
from benchmarks.report import Group
from benchmarks.sentence_encoder import text_case
from benchmarks.workload import FIXED, MIXED, make_workload
from fastbert import BertConfig
from fastbert.atomic import atomic_write
from fastbert.cli.machine import this_machine
from fastbert.hub import resolve_directory

CASES = (*FIXED, *MIXED, "text")
HERE = Path(__file__).resolve().parent
QUIET = 0.1
"""Cores that others may keep busy before a warning."""
RESULTS_PAGE, RESULTS_PLOT = HERE / "README.md", HERE / "results.png"


@dataclass(frozen=True)
class Subject:
    """A model to measure with.

    Attributes:
        title: for headings.
        cases: those that fit its size.
        texts: of a mixed workload and of the sentences.
        without: peers that do not take it.
    """

    title: str
    cases: tuple[str, ...]
    texts: int
    without: tuple[str, ...] = ()


SUBJECTS = {
    "minilm": Subject("all-MiniLM-L6-v2", CASES, texts=128),
    # One mixed batch of 32 and no pipeline around it: an op costs ten times as much.
    "base": Subject(
        "BERT-base shape, random weights",
        ("1x16", "1x128", "8x128", "mixed"),
        texts=32,
        without=("sentence-transformers",),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for; 1 if any candidate was wrong."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    machine = facts()
    groups = [_measure_group(model, dtype, args) for model in args.models for dtype in args.dtype]
    markdown = report.to_markdown(groups, machine)
    sys.stdout.write(markdown)
    if args.markdown:
        _write(args.markdown, markdown)
    if args.json:
        _write(args.json, report.to_json(groups, machine))
    if args.plot:
        report.plot(groups, args.plot)
    if args.write_results:
        report.plot(groups, RESULTS_PLOT)
        report.write_between(RESULTS_PAGE, markdown)
    wrong = [
        f"{group.title}, {result.case}: {m.name} is wrong by {m.error:.1e}"
        for group in groups
        for result in group.results
        for m in result.measurements
        if not m.right
    ]
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model",
        description="Verify, then time BertModel on packed tokens beside its peers.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=SUBJECTS, default=["minilm"], help="default: minilm")
    add("--cases", nargs="+", choices=CASES, default=CASES, help="default: all that fit the model")
    add("--peers", nargs="+", choices=PEERS, default=tuple(PEERS), help="default: all")
    add("--dtype", nargs="+", choices=BOUNDS, default=["float32"], help="default: float32")
    add(
        "--threads",
        type=_positive,
        default=this_machine().usable_cpus,
        help="of torch, for everyone; default: every usable core",
    )
    add("--seconds", type=float, default=20.0, help="of timing a case; default: 20")
    add(
        "--min-rounds",
        type=_positive,
        default=MIN_ROUNDS,
        help=f"timed however long they take; default: {MIN_ROUNDS}",
    )
    add("--json", type=Path, metavar="FILE", help="write every duration there")
    add("--plot", type=Path, metavar="FILE", help="write a PNG there")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    add(
        "--write-results",
        action="store_true",
        help="replace the tables in benchmarks/README.md and its plot",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _measure_group(model: str, dtype: str, args: argparse.Namespace) -> Group:
    subject = SUBJECTS[model]
    names = [name for name in args.peers if name not in subject.without]
    with _directory(model) as directory, tqdm(disable=None, file=sys.stderr) as bar:
        peers: dict[str, Peer] = {name: PEERS[name](directory, dtype) for name in names}
        results = []
        for name in (name for name in subject.cases if name in args.cases):
            case = _case(name, subject, directory, dtype, peers)
            if case.candidates:
                results.append(_run(case, f"{subject.title} {dtype}", args, bar))
        return Group(subject.title, dtype, gemm_flops(getattr(torch, dtype)), tuple(results))


def _run(case: Case, where: str, args: argparse.Namespace, bar: tqdm[None]) -> Result:
    def progress(name: str) -> None:
        bar.set_description(f"{where} {case.name}: {name}", refresh=False)
        bar.update()

    result = measure(
        case,
        seconds=args.seconds,
        min_rounds=args.min_rounds,
        progress=progress,
        others=cpu_seconds_of_others,
    )
    if result.disturbance > QUIET:
        sys.stderr.write(
            f"{where} {case.name}: other processes kept {result.disturbance:.2f} cores busy;"
            " its numbers are worth little\n"
        )
    return result


def _case(name: str, subject: Subject, directory: Path, dtype: str, peers: dict[str, Peer]) -> Case:
    if name == "text":
        return text_case(directory, dtype, peers, subject.texts)
    workload = make_workload(name, directory, subject.texts)
    truth = float64_truth(directory, workload)
    found = [candidate(n, p, workload, truth, BOUNDS[dtype]) for n, p in peers.items()]
    return Case(name, tuple(found), BASELINE, workload.work(BertConfig.from_pretrained(directory)))


@contextmanager
def _directory(model: str) -> Iterator[Path]:
    """The default model's directory, or a temporary one with BERT-base's shape."""
    default = resolve_directory(None)
    if model == "minilm":
        yield default
        return
    from transformers import BertConfig as PeerConfig
    from transformers import BertModel as PeerModel

    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        PeerModel(PeerConfig()).save_pretrained(name)
        directory = Path(name)
        (directory / "tokenizer.json").write_bytes((default / "tokenizer.json").read_bytes())
        yield directory


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
