"""`nn.Linear` and `nn.LayerNorm` whose compute is the waist's; parameters keep torch's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbert import ops
from fastbert.reference import ACTIVATIONS


class Linear(nn.Linear):
    """activation(x · weightᵀ + bias) through `ops.linear`."""

    def forward(self, input: Tensor, activation: str = "none") -> Tensor:
        """(T, K) → (T, N)."""
        return ops.linear(input, self.weight, self.bias, activation)


class ResidualLayerNorm(nn.LayerNorm):
    """LayerNorm(dropout(x) + residual) on (T, C) through `ops.residual_layer_norm`."""

    def forward(self, x: Tensor, residual: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
        """(T, C) → (T, C); nothing is dropped in eval mode."""
        dropout_p = dropout_p if self.training else 0.0
        seed = ops.draw_seed(dropout_p, x.device)
        return ops.residual_layer_norm(
            x, residual, self.weight, self.bias, self.eps, dropout_p, seed
        )


def activate(dense: nn.Module, x: Tensor, activation: str) -> Tensor:
    """activation(dense(x)), fused where `dense` is a plain `Linear`.

    Adapters and parametrisations replace the module by one of another type; what they add, and what
    a forward hook sees, belongs before the activation, so there the activation runs on its own.
    """
    if type(dense) is Linear and not dense._forward_hooks:
        out: Tensor = dense(x, activation)  # as a module: pruning's hook makes the weight first
        return out
    return ACTIVATIONS[activation](dense(x))


def init_module(module: nn.Module, std: float) -> None:
    """Give every parameter of a module, and of what it holds, its initial value."""
    for part in module.modules():
        for name, _ in part.named_parameters(recurse=False):
            init_parameter(part, name, std)


def init_parameter(module: nn.Module, name: str, std: float) -> None:
    """BERT's start for one parameter: N(0, std²), biases 0, norm weights 1, the padding row 0."""
    parameter = module.get_parameter(name)
    if parameter.is_meta:  # nothing to fill, and torch takes a millisecond to find out
        return
    with torch.no_grad():
        if name == "bias":
            parameter.zero_()
        elif isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, std)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                parameter[module.padding_idx].zero_()
