"""Reads SASS, NVIDIA's machine code: instructions, control flow, natural loops, tensor work.

The text is that of ``nvdisasm -c``, which Triton's wheel brings. A loop is found by dominators and
not by addresses, since ptxas puts wait loops out of line and leaves loops by ``CALL.REL.NOINC``,
a jump that keeps no return address.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*$")
_LABEL = re.compile(r"^\s*(\.L\w+):\s*$")
_TARGET = re.compile(r"`\((\.L\w+)\)")
_SECTION = re.compile(r"^\s*\.section\s+(\.\S+?),")
_HMMA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4)}
_JUMPS = ("BRA", "JMP", "CALL", "BRX", "JMX")
_ENDS = ("EXIT", "RET", "KILL", "BPT")
_WIDTHS = {"8": 1, "U8": 1, "S8": 1, "16": 2, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a warp.

    Attributes:
        address: in bytes from the kernel's start.
        guard: the predicate under which it runs, e.g. ``!P0``; empty if always.
        op: with its modifiers, e.g. ``HMMA.16816.F32.BF16``.
        operands: as written.
        target: the label that it may jump to, or None.
    """

    address: int
    guard: str
    op: str
    operands: str
    target: str | None

    @property
    def name(self) -> str:
        """The operation without modifiers."""
        return self.op.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes that each thread of a load or store moves; LDSM and STSM count matrices."""
        parts = self.op.split(".")[1:]
        if self.name in ("LDSM", "STSM"):
            return 4 * int(parts[-1]) if parts[-1] in ("2", "4") else 4
        return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)

    @property
    def idle(self) -> bool:
        """Whether it is there to fill time only: its predicate is never true."""
        return self.guard in ("!PT", "!UPT")

    @property
    def conditional(self) -> bool:
        """Whether a jump may also not be taken: guarded, or with a predicate as operand."""
        without_target = _TARGET.sub("", self.operands).strip(" ,")
        return bool(self.guard) or bool(re.match(r"!?U?P\d|~?UR\d", without_target))

    @property
    def tensor_shape(self) -> tuple[int, int, int] | None:
        """M, N, K of one tensor-core instruction; None for others and where none is shown."""
        if self.name == "HMMA":
            return _HMMA_SHAPES[self.op.split(".")[1]]
        if self.name == "HGMMA":
            m, n, k = map(int, self.op.split(".")[1].split("x"))
            return m, n, k
        return None


TENSOR_NAMES = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "DMMA", "QMMA", "QGMMA", "UTCQMMA", "OMMA")


@dataclass(frozen=True)
class Program:
    """A kernel's instructions, and where its labels point.

    Attributes:
        code: in the order of addresses.
        labels: name → index into `code`.
    """

    code: tuple[Instruction, ...]
    labels: dict[str, int]


def parse(text: str) -> Program:
    """Read what ``nvdisasm -c`` prints for a cubin of one kernel.

    Raises:
        ValueError: if there is no instruction, or a jump to an unknown label.
    """
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    inside = True
    for line in text.splitlines():
        if section := _SECTION.match(line):
            inside = section[1].startswith(".text")
        elif inside and (label := _LABEL.match(line)):
            labels[label[1]] = len(code)
        elif inside and (found := _LINE.match(line)):
            address, guard, op, operands = found.groups()
            target = _TARGET.search(operands) if op.partition(".")[0] in _JUMPS else None
            code.append(
                Instruction(int(address, 16), guard or "", op, operands, target and target[1])
            )
    unknown = {i.target for i in code if i.target} - labels.keys()
    if not code or unknown:
        raise ValueError(f"not a kernel's SASS: {len(code)} instructions, unknown labels {unknown}")
    return Program(tuple(code), labels)


@dataclass(frozen=True)
class Loop:
    """A natural loop: the blocks that reach a jump back to a header which dominates it.

    Attributes:
        header: index of its first instruction.
        members: indices of all its instructions, those of inner loops included.
    """

    header: int
    members: frozenset[int]


def successors(program: Program) -> list[tuple[int, ...]]:
    """Indices that may run after each instruction.

    A call without a return address (``CALL.REL.NOINC``) is a jump, unless the kernel returns from
    somewhere: then what follows the call runs too.
    """
    returns = any(i.name == "RET" for i in program.code)
    last = len(program.code) - 1
    found = []
    for place, instruction in enumerate(program.code):
        after = {place + 1} if place < last else set()
        if instruction.name in _JUMPS and not instruction.idle:
            falls = instruction.conditional or (instruction.name == "CALL" and returns)
            after = after if falls else set()
            if instruction.target is not None and program.labels[instruction.target] <= last:
                after.add(program.labels[instruction.target])
        elif instruction.name in _ENDS and not instruction.guard:
            after = set()
        found.append(tuple(sorted(after)))
    return found


class Flow:
    """Blocks of a program that its entry reaches, their dominators, and its natural loops."""

    def __init__(self, program: Program) -> None:
        self.program = program
        after = successors(program)
        count = len(program.code)
        leaders = {0, *(s for i in range(count) for s in after[i] if after[i] != (i + 1,))}
        leaders |= {i + 1 for i in range(count - 1) if after[i] != (i + 1,)}
        starts = sorted(leaders)
        ends = [*starts[1:], count]
        self.blocks = {a: range(a, b) for a, b in zip(starts, ends, strict=True)}
        self.next = {start: after[block[-1]] for start, block in self.blocks.items()}
        self.order = self._reverse_postorder()
        self.parent = self._dominators()

    def _reverse_postorder(self) -> list[int]:
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(self.next[0]))]
        while stack:
            block, rest = stack[-1]
            following = next((s for s in rest if s not in seen), None)
            if following is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(self.next[following])))
        return order[::-1]

    def _dominators(self) -> dict[int, int]:
        """Each block's immediate dominator (Cooper, Harvey and Kennedy, 2001)."""
        place = {block: i for i, block in enumerate(self.order)}
        self.before: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for following in self.next[block]:
                self.before[following].append(block)
        parent = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                ready = [b for b in self.before[block] if b in parent]
                common = ready[0]
                for other in ready[1:]:
                    while common != other:
                        if place[common] > place[other]:
                            common = parent[common]
                        else:
                            other = parent[other]
                if parent.get(block) != common:
                    parent[block] = common
                    changed = True
        return parent

    def dominates(self, upper: int, block: int) -> bool:
        """Whether every way from the entry to `block` passes the block `upper`."""
        while block != upper and block != 0:
            block = self.parent[block]
        return block == upper

    def loops(self) -> list[Loop]:
        """Natural loops, one a header."""
        bodies: dict[int, set[int]] = {}
        for block in self.order:
            for header in self.next[block]:
                if self.dominates(header, block):
                    bodies.setdefault(header, {header}).update(self._body(header, block))
        return [Loop(header, frozenset(self._members(body))) for header, body in bodies.items()]

    def _body(self, header: int, latch: int) -> set[int]:
        body, waiting = {header}, [latch]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += self.before[block]
        return body

    def _members(self, blocks: Iterable[int]) -> Iterable[int]:
        return (place for block in blocks for place in self.blocks[block])

    def after(self, loop: Loop) -> list[int]:
        """Indices outside a loop that may run after it, without jumping back: its epilogue."""
        inside = {block for block in self.order if block in loop.members}
        waiting = [following for block in inside for following in self.next[block]]
        found: set[int] = set()
        while waiting:
            block = waiting.pop()
            if block not in inside and block not in found:
                found.add(block)
                waiting += [b for b in self.next[block] if not self.dominates(b, block)]
        return sorted(self._members(found))


def tensor_macs(instructions: Iterable[Instruction]) -> int:
    """Multiply-adds of a warp (HMMA) or a warpgroup (HGMMA), shapes that show none left out."""
    shapes = (i.tensor_shape for i in instructions)
    return sum(s[0] * s[1] * s[2] for s in shapes if s is not None)


def hottest(flow: Flow) -> Loop | None:
    """The innermost loop with tensor instructions, else the longest innermost; None without loops.

    Of several with tensor instructions, the one with most multiply-adds and, of those, with fewest
    instructions: a loop that masks its last tile stands beside the one that runs often.
    """
    code = flow.program.code
    loops = flow.loops()
    tensor = [
        (loop, sum(code[place].name in TENSOR_NAMES for place in loop.members)) for loop in loops
    ]
    hot = [loop for loop, count in tensor if count] or loops
    inner = [loop for loop in hot if not any(o.members < loop.members for o in hot)]
    if not inner:
        return None
    if not any(count for _, count in tensor):
        return max(inner, key=lambda loop: len(loop.members))
    return max(
        inner,
        key=lambda loop: (tensor_macs(code[i] for i in loop.members), -len(loop.members)),
    )


def select(program: Program, places: Iterable[int]) -> list[Instruction]:
    """Those instructions in the order of addresses, without the ones that never run."""
    return [program.code[i] for i in sorted(places) if not program.code[i].idle]


def counts(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How often each operation occurs, without modifiers, the most frequent first."""
    return dict(Counter(i.name for i in instructions).most_common())
