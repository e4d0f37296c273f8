"""``fastbert answer``: the parts of texts that answer a question."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastbert.cli.common import CommandError, positive_int, signals_deferred
from fastbert.cli.inputs import Record
from fastbert.cli.results import View, shown_score
from fastbert.cli.task_model import Needed, check_model, checking_options, load_task
from fastbert.cli.task_run import (
    Compute,
    add_document,
    add_files,
    add_inline,
    add_task_options,
    inline_records,
    run_task,
    task_parser,
    task_reader,
    whole_number,
)

if TYPE_CHECKING:
    from fastbert.tasks.question_answering import Answer

NEEDED = Needed("a reader", "BertForQuestionAnswering", "one fine-tuned on SQuAD")
EPILOG = """\
{"answers": [{"text": "1889", "score": 0.98, "start": 20, "end": 24}]}: start and end count
characters of the context. No answer (of a blank context, or with --no-answer) is "" at 0. A
blank line asks nothing and has no answers. Contexts longer than the model are read in windows.

examples:
  fastbert answer --model DIR --question "When was it built?" --document tower.txt
  fastbert answer --model DIR --question "Who?" --context "Anna laughed." --top-k 3
  fastbert answer --model DIR squad.csv --question-field question --context-field passage
  printf 'Who laughed?\\tAnna laughed.\\n' | fastbert answer --model DIR -
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = task_parser(
        commands,
        "answer",
        "find the answers to questions in texts",
        "Print the part of every text that answers a question.\n"
        "A line of a text file is QUESTION<tab>CONTEXT; with --question it is one context, and\n"
        "with --document too each FILE is one.",
        EPILOG,
    )
    add_files(parser)
    parser.add_argument(
        "--question", metavar="TEXT", help="ask this of every context, instead of its own question"
    )
    add_inline(parser, "context", "a context for --question")
    add_document(parser)
    parser.add_argument(
        "-k",
        "--top-k",
        type=positive_int,
        default=1,
        metavar="N",
        help="answers a question (default: %(default)s)",
    )
    parser.add_argument(
        "--no-answer", action="store_true", help="let a context hold no answer, where that scores"
    )
    parser.add_argument(
        "--max-answer-tokens",
        type=positive_int,
        default=30,
        metavar="TOKENS",
        help="longest answer (default: %(default)s)",
    )
    parser.add_argument(
        "--stride",
        type=whole_number,
        metavar="TOKENS",
        help="tokens that neighbouring windows share (default: 128, or half the room)",
    )
    add_task_options(parser, NEEDED, {"question": "question", "context": "context"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer every record's question."""
    check_model(args, NEEDED)
    if args.question is None:
        if args.context is not None or args.document:
            raise CommandError("--context and --document need a --question", code=2)
        fields = [args.question_field, args.context_field]
    else:
        if not args.question.strip():
            raise CommandError("the question is blank", code=2)
        inline_records([args.question])  # refuses what is not UTF-8
        fields = [args.context_field]
    reader = task_reader(args, fields, document=args.document)
    view = View(("score", "start", "end", "answer"), _fields, _rows)
    return run_task(args, reader, inline_records(args.context), _load, view)


def _load(args: argparse.Namespace) -> Compute[Sequence[Answer]]:
    with signals_deferred():
        from fastbert.tasks.question_answering import QuestionAnswering
    task = load_task(QuestionAnswering, args, NEEDED)

    def ask(questions: list[str], contexts: list[str]) -> list[list[Answer]]:
        found = task(
            questions,
            contexts,
            top_k=args.top_k,
            no_answer=args.no_answer,
            max_answer_tokens=args.max_answer_tokens,
            stride=args.stride,
            batch_tokens=args.batch_tokens,
            progress=False,
        )
        return [[answers] for answers in found] if args.top_k == 1 else found

    def compute(chunk: list[Record]) -> list[Sequence[Answer]]:
        pairs = [
            (record.text, record.more[0]) if args.question is None else (args.question, record.text)
            for record in chunk
        ]
        asked = [pair for pair in pairs if any(map(str.strip, pair))]
        found = iter(ask([question for question, _ in asked], [context for _, context in asked]))
        return [next(found) if any(map(str.strip, pair)) else () for pair in pairs]

    with checking_options():
        ask([args.question or "a"], ["a"])
    return compute


def _fields(answers: Sequence[Answer]) -> dict[str, object]:
    return {"answers": [asdict(answer) for answer in answers]}


def _rows(record: Record, answers: Sequence[Answer]) -> list[tuple[str, ...]]:
    return [
        (shown_score(answer.score), str(answer.start), str(answer.end), answer.text)
        for answer in answers
    ]
