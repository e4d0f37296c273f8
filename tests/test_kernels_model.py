"""Whole models on the Triton path, interpreted: values, gradients, and launches per layer."""

from __future__ import annotations

import copy

import interpreted
import pytest
import torch
from parity import FORWARD, GRADIENT, assert_within
from torch.utils._python_dispatch import TorchDispatchMode

from fastbert import BertConfig, ops, pack
from fastbert.heads import BertForPreTraining
from fastbert.model import BertModel
from fastbert.ops import registry

SIZES = {
    "vocab_size": 67,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 160,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (5, 1, 17, 33)
# What computes; making, viewing and reading tensors launches nothing on a device.
COMPUTES = ("addmm", "mm", "bmm", "add", "mul", "div", "gelu", "native_layer_norm", "sum", "exp")


def batch(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, 67, (n,), generator=generator).tolist() for n in lengths]
    types = [[int(place > n // 2) for place in range(n)] for n in lengths]
    return pack(ids, types).to("cpu")


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if name.endswith("LayerNorm.weight"):
                parameter.add_(1.0)
    return model


class Launches(TorchDispatchMode):
    """Counts torch ops that compute, and Triton launches; what runs inside a launch is neither."""

    def __init__(self, monkeypatch):
        from triton.runtime.interpreter import InterpretedFunction

        super().__init__()
        self.names, self.inside = [], False
        run = InterpretedFunction.run

        def counted(function, *args, **kwargs):
            self.names.append(f"triton:{function.fn.__name__}")
            self.inside = True
            try:
                return run(function, *args, **kwargs)
            finally:
                self.inside = False

        monkeypatch.setattr(InterpretedFunction, "run", counted)
        choose = registry._choose

        def seen_inside(name, device):  # a mode is off inside an op that it sees
            function = choose(name, device)

            def call(*args):
                with self:
                    return function(*args)

            return call

        monkeypatch.setattr(registry, "_choose", seen_inside)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, name = str(function).split(".")[:2]
        if not self.inside and space == "aten" and name in COMPUTES:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


if interpreted.INTERPRETING:

    def losses_and_gradients(model, implementation):
        packed = batch()
        labels = torch.where(torch.arange(packed.total) % 4 == 1, packed.input_ids, -100)
        follows = torch.tensor([0, 1, 1, 0])
        model.zero_grad()
        with ops.use(implementation):
            loss = model(packed, labels=labels, next_sentence_label=follows).loss
            loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    def test_pretraining_loss_and_every_gradient():
        model = randomised(BertForPreTraining(BertConfig(**SIZES))).train()
        loss, grads = losses_and_gradients(model, "triton")
        plain_loss, plain = losses_and_gradients(model, "reference")
        exact_loss, exact = losses_and_gradients(copy.deepcopy(model).double(), "reference")
        assert_within(loss, plain_loss, exact_loss, FORWARD, "loss")
        for name, grad in grads.items():
            assert_within(grad, plain[name], exact[name], GRADIENT, name)

    def test_a_two_layer_encoder_forward_and_backward():
        model = randomised(BertModel(BertConfig(**SIZES))).train()
        packed = batch((3, 64, 0, 31))

        def run(model, implementation):
            model.zero_grad()
            with ops.use(implementation):
                hidden = model.encode(packed)
                cotangent = torch.randn(
                    hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
                )
                hidden.backward(cotangent.to(hidden.dtype))
            used = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            return hidden.detach(), used

        (a, grads), (p, plain) = run(model, "triton"), run(model, "reference")
        t, exact = run(copy.deepcopy(model).double(), "reference")
        assert_within(a, p, t, FORWARD, "hidden")
        for name, grad in grads.items():
            assert_within(grad, plain[name], exact[name], GRADIENT, name)

    def test_a_layer_is_seven_launches(monkeypatch):
        model = randomised(BertModel(BertConfig(**SIZES))).eval()
        packed = batch()
        counts = []
        for layers in (1, 2):
            with torch.no_grad(), ops.use("triton"), Launches(monkeypatch) as seen:
                hidden = model.embeddings(
                    packed.input_ids, packed.token_type_ids, packed.position_ids
                )
                for layer in model.encoder.layer[:layers]:
                    hidden = layer(hidden, packed)
            counts.append(len(seen.names))
            monkeypatch.undo()
        assert counts[1] - counts[0] == 7, seen.names

else:

    @pytest.mark.slow
    def test_cases_under_the_interpreter():
        interpreted.check(__file__, "not slow")

    def test_unknown_implementations_are_named():
        with pytest.raises(ValueError, match="triton"), ops.use("tritan"):
            pass
