"""What the boundary of an op costs: checks, dispatch and autograd, without any work behind it.

Run ``python -m benchmarks.overhead``. An op of the waist whose launcher does nothing stands beside
the same for one of torch's own ops on one element; microseconds a call, medians with quartiles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Spread
from benchmarks.report import table
from fastbert import ops

CALLS, ROUNDS = 500, 40
BARS = {"without grad": 4.0, "with grad": 12.0}
"""Microseconds a call that an op's boundary may cost (a public function, down to its launcher)."""

_NAME = "nothing"  # of the implementation


def register_nothing() -> None:
    """Let `ops.use("nothing")` serve two ops by launchers that return what was made before."""
    x = torch.zeros(1, 8)
    statistics = torch.zeros(1)
    norm = (x.clone(), statistics, statistics.clone())
    norm_back = (x.clone(), torch.empty(0), torch.zeros(8), torch.zeros(8))
    attended = (torch.zeros(1, 1, 8), torch.zeros(1, 1))
    for name, result in (
        ("residual_layer_norm", norm),
        ("residual_layer_norm_backward", norm_back),
        ("varlen_attention", attended),
        ("varlen_attention_backward", torch.zeros(1, 3, 1, 8)),
    ):
        ops.register(_NAME, name, "nowhere", lambda *args, _result=result: _result)


def calls(grad: bool) -> dict[str, Callable[[], Tensor]]:
    """Name → one call of an op that does no work, or hardly any."""
    x = torch.zeros(1, 8, requires_grad=grad)
    weight, bias = torch.ones(8), torch.zeros(8)
    qkv = torch.zeros(1, 3, 1, 8, requires_grad=grad)
    bounds, work = (torch.tensor(v, dtype=torch.int32) for v in ([0, 1], [[0, 0]]))
    seed = torch.empty(0, dtype=torch.int64)
    return {
        "residual_layer_norm": lambda: ops.residual_layer_norm(
            x, None, weight, bias, 1e-5, 0.0, seed
        ),
        "varlen_attention": lambda: ops.varlen_attention(qkv, bounds, 1, work, 1.0, 0.0, seed),
        "torch.nn.functional.layer_norm": lambda: torch.nn.functional.layer_norm(
            x, (8,), weight, bias
        ),
        "torch.relu": lambda: torch.relu(x),
    }


def microseconds(call: Callable[[], Tensor], rounds: int = ROUNDS) -> Spread:
    """Of one call: the median and the quartiles of rounds of many."""
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter() - start) / CALLS * 1e6)
    return Spread.of(samples)


def measure(rounds: int = ROUNDS) -> dict[str, dict[str, Spread]]:
    """Op → way → microseconds a call."""
    register_nothing()
    found: dict[str, dict[str, Spread]] = {}
    with ops.use(_NAME):
        for way, grad in (("without grad", False), ("with grad", True)):
            with torch.set_grad_enabled(grad):
                for name, call in calls(grad).items():
                    found.setdefault(name, {})[way] = microseconds(call, rounds)
    return found


def main() -> int:
    """Print the table; 1 if an op of ours is above its bar."""
    torch.set_num_threads(1)
    found = measure()
    rows = [
        (
            name,
            *(f"{ways[way].median:.1f} ({ways[way].low:.1f}–{ways[way].high:.1f})" for way in BARS),
        )
        for name, ways in found.items()
    ]
    bars = [f"{way}, µs (bar {bar:.0f})" for way, bar in BARS.items()]
    sys.stdout.write(table(["", *bars], rows) + "\n")
    ours = [ways for name, ways in found.items() if not name.startswith("torch.")]
    over = any(ways[way].median > bar for ways in ours for way, bar in BARS.items())
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
