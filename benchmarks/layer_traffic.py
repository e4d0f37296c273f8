"""Launches of a BERT layer's forward pass, and the bytes that cross them, by a formula.

Every tensor that crosses a launch is written once and read once; caches are left out. With
itemsize e of activations and weights, and float32 statistics, B sequences and W work items:

    bytes = e (18 T C + 2 T F + 4 C² + 2 C F + 9 C + F) + 4 (H T + 4 T) + 4 (B + 1) + 8 W
"""

from __future__ import annotations

from dataclasses import dataclass

FORMULA = "e (18 T C + 2 T F + 4 C² + 2 C F + 9 C + F) + 4 (H T + 4 T) + 4 (B + 1) + 8 W"


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch and a layer.

    Attributes:
        T, B, W: packed tokens, sequences, work items of attention.
        C, F, H: hidden, feed-forward, heads.
        itemsize: bytes of an element of activations and weights.
    """

    T: int
    C: int
    F: int
    H: int
    B: int
    W: int
    itemsize: int = 2


@dataclass(frozen=True)
class Launch:
    """One launch and what it moves.

    Attributes:
        name: what it computes.
        op: the op of the waist.
        read, written: bytes.
    """

    name: str
    op: str
    read: int
    written: int


def launches(shape: Shape) -> tuple[Launch, ...]:
    """The seven launches of a layer's forward pass, in order."""
    T, C, F, e = shape.T, shape.C, shape.F, shape.itemsize

    def product(name: str, rows: int, columns: int) -> Launch:
        read = e * (T * columns + rows * columns + rows)  # x, weight, bias
        return Launch(name, "linear", read, e * T * rows)

    # x, residual, weight and bias in; the sum's norm, mean and 1/std out
    norm = Launch("norm", "residual_layer_norm", e * (2 * T * C + 2 * C), e * T * C + 8 * T)
    lists = 4 * (shape.B + 1) + 8 * shape.W  # cu_seqlens and the work list
    attention = Launch(
        "attention", "varlen_attention", e * 3 * T * C + lists, e * T * C + 4 * shape.H * T
    )
    return (
        product("QKV", 3 * C, C),
        attention,
        product("projection", C, C),
        norm,
        product("up + GELU", F, C),
        product("down", C, F),
        norm,
    )


def layer_bytes(shape: Shape) -> int:
    """`FORMULA`, which is the sum over `launches`."""
    T, C, F, H = shape.T, shape.C, shape.F, shape.H
    elements = 18 * T * C + 2 * T * F + 4 * C * C + 2 * C * F + 9 * C + F
    return shape.itemsize * elements + 4 * (H * T + 4 * T) + 4 * (shape.B + 1) + 8 * shape.W
