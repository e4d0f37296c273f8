"""The package's own public documentation as passages: real text wherever a wheel is installed.

It is the README that the distribution's metadata carries and the docstrings of everything public,
read from the source by ``ast``: nothing is imported, nothing outside the installed package read.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

PACKAGE = "fastbert"
# The files that a user meets by name; the rest of the package documents itself to its developers.
ROOMS = (
    "__init__.py",
    "config.py",
    "engine.py",
    "hub.py",
    "model.py",
    "ops",
    "packing.py",
    "quantize.py",
    "sentence_encoder.py",
    "similarity.py",
    "tokenizer.py",
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Passage(NamedTuple):
    """A paragraph of documentation and where it stands, line counted from 1."""

    file: str
    line: int
    text: str


def passages() -> list[Passage]:
    """Return the documentation, paragraph by paragraph: the README first, then the docstrings."""
    package = resources.files(PACKAGE)
    rooms = [package / name for name in ROOMS]
    return [*readme_passages(readme()), *docstring_passages(rooms, PACKAGE)]


def sample_texts(count: int = 40, longest: int = 6000) -> list[str]:
    """Return a few words, ``count`` passages from the shortest to the longest, and documents.

    The documents are the beginning of the whole documentation, each twice as long as the one
    before, up to ``longest`` characters: more than any BERT reads, so that its limit is met too.
    """
    texts = sorted((passage.text for passage in passages()), key=len)
    whole = "\n".join(passage.text for passage in passages())
    step = max(1, len(texts) // count)
    words = whole.split()[:4]
    documents = [whole[:size] for size in (longest // 8, longest // 4, longest // 2, longest)]
    return [*words, *texts[::step][:count], *documents]


def readme() -> str:
    """Return the README of the installed distribution, empty where it carries none."""
    try:
        fields = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""
    return str(fields.json.get("description", ""))


def readme_passages(markdown: str) -> Iterator[Passage]:
    """Yield the paragraphs of a Markdown text, each with the heading it stands under.

    A fenced block belongs to the paragraph before it, which usually introduces it.
    """
    heading = ""
    for line, block in _with_fences(_blocks(markdown.split("\n"))):
        if block.startswith("#"):
            title, _, block = block.partition("\n")
            heading = title.lstrip("#").strip()
            line += 1
        if block.strip():
            yield Passage("README.md", line, f"{heading}: {block}" if heading else block)


def _blocks(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of paragraphs and list items; inside a fence nothing separates."""
    block: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        blank = not line.strip() or line.startswith("<!--")
        if (blank or line.startswith("- ")) and not fenced:
            if block:
                yield start, "\n".join(block)
            block = []
            if blank:
                continue
        if not block:
            start = number
        block.append(line)
    if block:
        yield start, "\n".join(block)


def _with_fences(blocks: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    held: tuple[int, str] | None = None
    for line, block in blocks:
        if held is not None and block.startswith("```") and not held[1].startswith("#"):
            held = held[0], f"{held[1]}\n{block}"
            continue
        if held is not None:
            yield held
        held = line, block
    if held is not None:
        yield held


def docstring_passages(rooms: Iterable[Traversable], name: str) -> Iterator[Passage]:
    """Yield the paragraphs of all public docstrings in files and folders, in order of name."""
    for item in sorted(rooms, key=lambda item: item.name):
        if item.is_dir():
            if not item.name.startswith(("_", ".")):
                yield from docstring_passages(item.iterdir(), f"{name}/{item.name}")
        elif item.name.endswith(".py"):
            path = f"{name}/{item.name}"
            tree = ast.parse(item.read_text(encoding="utf-8"))
            module = item.name.removesuffix(".py")
            package = name.rpartition("/")[2]
            yield from _of_node(tree, path, package if module == "__init__" else module)


def _of_node(node: Documented, path: str, name: str) -> Iterator[Passage]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring is not None:
        first = node.body[0].lineno
        lines = docstring.split("\n")
        first += next((i for i, line in enumerate(lines) if line.strip()), 0)  # cleandoc drops them
        for line, text in _blocks(inspect.cleandoc(docstring).split("\n")):
            yield Passage(path, first + line - 1, f"{name}: {' '.join(text.split())}")
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not child.name.startswith("_"):
            inner = child.name if isinstance(node, ast.Module) else f"{name}.{child.name}"
            yield from _of_node(child, path, inner)
