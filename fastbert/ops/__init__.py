"""The waist: six ops and three edges on packed tokens. Model code calls these and names no device.

`use` forces one implementation; `implementations` lists them.
"""

from fastbert.forks import guard_forks
from fastbert.ops import triton
from fastbert.ops.attention import varlen_attention
from fastbert.ops.cross_entropy import linear_cross_entropy
from fastbert.ops.edges import POOLINGS, pack, pool, unpack, work_list
from fastbert.ops.embedding import embed_layer_norm
from fastbert.ops.flags import raise_if_flagged
from fastbert.ops.layer_norm import residual_layer_norm
from fastbert.ops.linear import bias_gelu, linear
from fastbert.ops.registry import draw_seed, implementations, register, register_loader, use

__all__ = [
    "POOLINGS",
    "bias_gelu",
    "draw_seed",
    "embed_layer_norm",
    "implementations",
    "linear",
    "linear_cross_entropy",
    "pack",
    "pool",
    "raise_if_flagged",
    "register",
    "register_loader",
    "residual_layer_norm",
    "unpack",
    "use",
    "varlen_attention",
    "work_list",
]

guard_forks()
register_loader(triton.NAME, "cuda", triton.load, triton.available)
