"""The package as a newcomer meets it: imports, names, the README's own code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastbert

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout


def test_import_loads_neither_torch_nor_transformers() -> None:
    heavy = ("torch", "transformers", "numpy", "tokenizers")
    code = f"import sys, fastbert; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_rooms_without_torch_load_no_torch() -> None:
    rooms = [
        "config",
        "hub",
        "atomic",
        "packing",
        "tokenizer",
        "checkpoint",
        "sentence_config",
        "similarity",
    ]
    imports = ", ".join(f"fastbert.{room}" for room in rooms)
    code = f"import sys, {imports}; print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def test_every_public_name_resolves() -> None:
    for name in fastbert.__all__:
        assert getattr(fastbert, name) is not None
        assert name in dir(fastbert)
    with pytest.raises(AttributeError, match="Heads"):
        fastbert.Heads  # noqa: B018  # the look-up is what is tested


def test_version_is_the_metadata_s() -> None:
    from importlib.metadata import version

    assert version("fastbert") == fastbert.__version__
    assert f"## {fastbert.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_reference_imports_nothing_of_ours() -> None:
    source = (ROOT / "fastbert" / "reference.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) fastbert", source, re.MULTILINE)


def readme_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_readme_has_code() -> None:
    assert readme_blocks()


@pytest.mark.filterwarnings("ignore:.*starts at random")  # the README's new classification head
def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(readme_blocks()):  # in order: a later one goes on from there
        exec(compile(block, f"README.md, block {number}", "exec"), names)
