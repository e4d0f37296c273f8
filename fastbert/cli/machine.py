"""What this machine offers: processor, instruction sets, usable CPUs. Linux first, no torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What BERT's kernels can use, as /proc/cpuinfo spells it, in the order of age.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)


@dataclass(frozen=True)
class Machine:
    """The processor and how much of it this process may use."""

    system: str
    cpu: str
    instruction_sets: tuple[str, ...]
    cpus: int  # of the machine
    affinity: int  # this process may be scheduled on
    cgroup_cpus: float | None  # quota of the control group, None without one

    @property
    def usable_cpus(self) -> int:
        """CPUs worth a thread each: affinity, capped by the quota (at least 1)."""
        if self.cgroup_cpus is None:
            return self.affinity
        return max(1, min(self.affinity, int(self.cgroup_cpus)))


def this_machine(root: Path = Path("/")) -> Machine:
    """Read this machine's description; whatever cannot be read is left out.

    Args:
        root: where ``proc`` and ``sys`` stand.
    """
    cpuinfo = _cpuinfo(root)
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    cpus = os.cpu_count() or 1
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpuinfo.get("model name") or platform.processor() or "unknown",
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        cpus=cpus,
        affinity=len(os.sched_getaffinity(0)) if has_affinity else cpus,
        cgroup_cpus=cgroup_quota(root),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return the fields of the first processor."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the control groups above this process grant, None without a limit.

    Both versions of control groups are read; of nested groups the tightest one counts.
    """
    quotas = []
    for line in _read(root / "proc/self/cgroup").split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path:
            continue
        if not controllers:
            quotas += _quotas(root, ("sys/fs/cgroup",), path, _quota_v2)
        elif "cpu" in controllers.split(","):
            mounts = (f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu")
            quotas += _quotas(root, mounts, path, _quota_v1)
    return min(quotas, default=None)


def _quotas(
    root: Path, mounts: tuple[str, ...], path: str, quota: Callable[[Path], float | None]
) -> list[float]:
    found = []
    for mount in mounts:
        base = root / mount
        group = base / path.lstrip("/")
        # Inside a container the path may name groups that only the host sees; the mount itself
        # then is the container's own group.
        for directory in (group, *group.parents):
            value = quota(directory)
            if value is not None:
                found.append(value)
            if directory == base:
                break
    return found


def _quota_v2(directory: Path) -> float | None:
    words = _read(directory / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(directory: Path) -> float | None:
    quota = _read(directory / "cpu.cfs_quota_us").strip()
    period = _read(directory / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)
