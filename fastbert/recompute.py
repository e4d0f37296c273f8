"""Activation (gradient) checkpointing: memory for time, under both names that trainers use."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastbert.checks import check_int
from fastbert.encoder import BertEncoder


class Recomputes(nn.Module):
    """A model whose encoder can keep its layers' inputs alone and compute the rest again backwards.

    Source: Chen et al. 2016, section 4.
    """

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed once more in the backward pass."""
        return any(encoder.checkpointing is not None for encoder in self._encoders())

    @property
    def is_activation_checkpointing(self) -> bool:
        """The same, under transformers' newer name."""
        return self.is_gradient_checkpointing

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """While training, keep a layer's input alone and compute the layer again backwards.

        Args:
            gradient_checkpointing_kwargs: options of `torch.utils.checkpoint.checkpoint`;
                ``use_reentrant`` is False unless they say otherwise.
            every_n_layers: do so with each n-th layer only.
            offload: must be False: inputs stay on their device.

        Raises:
            ValueError: if `offload` is set, or `every_n_layers` is below 1.
        """
        check_int("every_n_layers", every_n_layers, 1, 2**31 - 1)
        if offload:
            raise ValueError("offload=True is not supported: a layer's input stays on its device")
        for encoder in self._encoders():
            encoder.every_n_layers = every_n_layers
            encoder.checkpointing = {
                "use_reentrant": False,
                **(gradient_checkpointing_kwargs or {}),
            }

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable` under transformers' newer name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Keep what every layer computed."""
        for encoder in self._encoders():
            encoder.checkpointing = None

    def activation_checkpointing_disable(self) -> None:
        """The same, under transformers' newer name."""
        self.gradient_checkpointing_disable()

    def _encoders(self) -> list[BertEncoder]:
        return [module for module in self.modules() if isinstance(module, BertEncoder)]
