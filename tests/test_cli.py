"""The command line as a whole: exit codes, one-line errors, pipes, signals, lazy imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from fastbert.cli import build_parser, common, main

CLI = [sys.executable, "-m", "fastbert"]
COMMANDS = (
    *("embed", "search", "verify", "info", "demo"),
    *("fill-mask", "next-sentence", "classify", "tag", "answer", "rerank", "similar"),
)


def cli(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def buffered() -> dict[str, str]:
    """The environment without what would make Python's stdout unbuffered."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_no_command_prints_help_to_stderr_and_exits_2(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "COMMAND" in captured.err


def test_version_and_help_go_to_stdout(capsys):
    from fastbert.version import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastbert {__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: fastbert {command}")
    assert captured.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["embed"],
        ["search", "only a query"],
        ["embed", "a", "--format", "csv"],
        ["embed", "a", "--threads", "0"],
        ["embed", "a", "--threads", "two"],
        ["embed", "a", "-o", "vectors.txt"],
        ["embed", "a", "--dty", "float32"],  # no abbreviations: a later option could take them
        ["embed", "-", "-"],
        ["search", "  ", "a"],
        ["search", "q", "a", "--top-k", "-1"],
    ],
)
def test_usage_errors_exit_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("text\n")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error:" in captured.err


def test_help_is_quick_and_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom fastbert.cli import main\nmain(['--help'])\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    times = []
    for _ in range(5):
        before = os.times()
        assert cli("--help").returncode == 0
        after = os.times()
        # CPU seconds of the child: a busy neighbour does not count
        times.append(sum(after[i] - before[i] for i in (2, 3)))
    assert min(times) < 0.3


def test_a_missing_file_is_one_line(capsys):
    assert main(["embed", "there/is/no.txt"]) == 1
    assert capsys.readouterr().err == (
        "fastbert: error: there/is/no.txt: No such file or directory\n"
    )


def test_debug_shows_the_traceback_before_and_after_the_command():
    for arguments in (["--debug", "embed", "no.txt"], ["embed", "no.txt", "--debug"]):
        result = cli(*arguments)
        assert result.returncode == 1
        assert "Traceback" in result.stderr
        assert result.stderr.endswith("fastbert: error: no.txt: No such file or directory\n")
    assert "Traceback" not in cli("embed", "no.txt").stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "out of memory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (FileNotFoundError(2, "No such file", "x"), "x: No such file"),
        (FileNotFoundError("the default model is not installed"), "the default model is not"),
        (common.CommandError("m"), "m"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_are_one_line(error, line):
    shown = common.error_line(error)
    assert shown.startswith(f"fastbert: error: {line}")
    assert "\n" not in shown


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setattr("fastbert.cli.info.run", broken)
    with pytest.raises(KeyError):
        main(["info"])


def test_warnings_are_one_line_and_authors_warnings_are_hidden(monkeypatch, capsys):
    def warn(args):
        warnings.warn("told\nonce", stacklevel=1)
        warnings.warn("not for users", DeprecationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("fastbert.cli.info.run", warn)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "fastbert: warning: told once\n"


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastbert.cli.info.run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "fastbert: interrupted\n"


def heed_interrupts() -> None:
    """Undo what a shell does to a job in the background: it makes it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if any(path.glob(".*.tmp")):
            return
        time.sleep(0.05)
    raise AssertionError("the command never opened its output")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_embedding_leaves_no_file(number, code, tmp_path):
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    command = [*CLI, "embed", "-", "-o", str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    ) as process:
        wait_for(tmp_path)
        process.stdin.write(b"one line\n")
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert b"Traceback" not in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]
    assert out.read_bytes() == b"old"


def test_an_interrupt_inside_compiled_text_is_130_too():
    code = (
        "import sys\nfrom fastbert.cli import info, main\n"
        "def run(args):\n    exec('raise KeyboardInterrupt')\n"
        "info.run = run\nsys.exit(main(['info']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (130, b"fastbert: interrupted\n")


def test_a_signal_during_a_heavy_import_waits_for_its_end():
    order = []

    def import_while_stopped():
        with common.terminate_cleanly(), common.signals_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            order.append("imported")

    done = threading.Event()
    other = threading.Thread(target=done.wait)  # the kernel may hand the signal to this one
    other.start()
    try:
        with pytest.raises(SystemExit, match="143"):
            import_while_stopped()
    finally:
        done.set()
        other.join()
    assert order == ["imported"]


def test_an_ignored_hangup_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with common.terminate_cleanly():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, old)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("arguments", [["info", "--json"], ["--help"]])
def test_a_closed_pipe_is_quiet(arguments):
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [*CLI, *arguments], stdout=write, stderr=subprocess.PIPE, env=buffered(), check=False
    )
    os.close(write)
    assert result.stderr == b""
    assert result.returncode == 141


def test_a_full_device_and_a_closed_stdout_are_told():
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*CLI, "info"], stdout=full, stderr=subprocess.PIPE, env=buffered(), check=False
        )
    assert result.returncode == 1
    assert result.stderr == b"fastbert: error: No space left on device\n"
    result = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m fastbert info >&-"],
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, b"fastbert: error: stdout is closed\n")


def test_every_command_has_debug_and_runs():
    parser = build_parser()
    for arguments in (["embed", "a"], ["search", "q", "a"], ["verify"], ["info"], ["demo"]):
        args = parser.parse_args([*arguments, "--debug"])
        assert args.debug is True
        assert callable(args.run)
        assert parser.parse_args(arguments).debug is False


def test_info_json_is_one_object(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"versions", "machine", "torch", "serves", "absent"}
