"""Activations and their derivatives on float32 values inside a kernel, by the names of the waist.

gelu(x) = x·Φ(x); gelu_tanh(x) = x·σ(2u) with u = √(2/π)·(x + 0.044715 x³), which is
0.5·x·(1 + tanh u); silu(x) = x·σ(x). Φ comes from its tail, Φ(-a) = 2^P(a) for a ≥ 0 with a
polynomial P of degree 8: log2 Φ(-a) is smooth where erf itself needs a division or several ranges,
so an element costs 8 FMAs, one exponential and nothing that branches. P(0) is -1; the rest is a
minimax fit of (a + 1)·2^P(a) on 0..5, off by 7.3e-8 at most; beyond, P falls faster than
log2 Φ(-a). Against float64 gelu errs by at most 2.5e-7 where |x| < 8, half an ulp of float32 there
(plain torch in float32: 1.1e-6), and its derivative by 1.6e-7 (plain torch: 2.5e-7). NaN stays NaN;
gelu(-inf) is 0 and gelu(inf) inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAMES = ("none", "gelu", "gelu_tanh", "relu", "silu", "tanh")

# In products these stand right of a tensor: the interpreter takes a constant left of one for all.
_LOG2E = tl.constexpr(1.4426950408889634)
_TWICE_ROOT = tl.constexpr(1.5957691216057308)  # 2·√(2/π)
_1_OVER_SQRT_2PI = tl.constexpr(0.3989422804014327)
_CUBIC = tl.constexpr(0.044715)
_FAR = tl.constexpr(16.0)
"""Where 2^P(a) is 0 in float32: |x| is cut here, so that infinity times it is 0 too."""


@triton.jit
def _tail(a):
    """Φ(-a) for 0 <= a."""
    p = a * -1.1583941841308842e-06 + 1.8975124476128258e-05
    p = p * a - 8.871364843798801e-05
    p = p * a - 3.7052331026643515e-04
    p = p * a + 7.361062802374363e-03
    p = p * a - 5.26924803853035e-02
    p = p * a - 4.5914867520332336e-01
    p = p * a - 1.151111125946045
    return tl.exp2(p * a - 1.0)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * (-_LOG2E)))


@triton.jit
def _sigmoid_and_slope(x):
    """σ(x), and σ(x)·(1 - σ(x)) without the cancellation of 1 - σ(x)."""
    e = tl.exp2(tl.abs(x) * (-_LOG2E))
    r = 1.0 / (1.0 + e)
    return tl.where(x > 0.0, r, e * r), e * r * r


@triton.jit
def _twice_u(x):
    return x * ((x * x) * (_TWICE_ROOT * _CUBIC) + _TWICE_ROOT)


@triton.jit
def _tanh(x):
    """1 - 2σ(-2x) cancels near 0, so there a minimax fit of degree 11, off by 7e-8 of tanh x."""
    z = x * x
    p = z * -5.717042833566666e-03 + 2.0650586113333702e-02
    p = p * z - 5.374349653720856e-02
    p = p * z + 1.3331490755081177e-01
    p = p * z - 3.333328366279602e-01
    near = x + x * (z * p)
    far = 1.0 - 2.0 * _sigmoid(tl.abs(x) * -2.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of float32 `x`."""
    y = x
    if ACTIVATION == "gelu":
        a = tl.minimum(tl.abs(x), _FAR)
        y = _relu(x) - a * _tail(a)
    elif ACTIVATION == "gelu_tanh":
        y = x * _sigmoid(_twice_u(x))
    elif ACTIVATION == "relu":
        y = _relu(x)
    elif ACTIVATION == "silu":
        y = x * _sigmoid(x)
    elif ACTIVATION == "tanh":
        y = _tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return y


@triton.jit
def derivative(x, ACTIVATION: tl.constexpr):
    """The activation's derivative at float32 `x`."""
    y = tl.full(x.shape, 1.0, tl.float32)
    if ACTIVATION == "gelu":
        a = tl.minimum(tl.abs(x), _FAR, propagate_nan=tl.PropagateNan.ALL)
        below = _tail(a) - a * (tl.exp2(a * a * (-0.5 * _LOG2E)) * _1_OVER_SQRT_2PI)  # at -a
        y = tl.where(x > 0.0, 1.0 - below, below)
    elif ACTIVATION == "gelu_tanh":
        s, slope = _sigmoid_and_slope(_twice_u(x))
        y = s + x * ((x * x) * (3.0 * _TWICE_ROOT * _CUBIC) + _TWICE_ROOT) * slope
    elif ACTIVATION == "relu":
        y = tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "silu":
        s, slope = _sigmoid_and_slope(x)
        y = s + x * slope
    elif ACTIVATION == "tanh":
        s, slope = _sigmoid_and_slope(2.0 * x)
        y = 4.0 * slope
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return y
