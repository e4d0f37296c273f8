from __future__ import annotations

import pytest
import torch
from parity import randn

from fastbert import ops
from fastbert.ops import registry


@pytest.fixture
def twice(monkeypatch):
    """An implementation of `linear` alone, which doubles."""
    tables = {"reference": dict(registry._IMPLEMENTATIONS["reference"])}
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", tables)
    monkeypatch.setattr(registry, "_SERVED_BY", {})
    monkeypatch.setattr(registry, "_LOADERS", {})
    monkeypatch.setattr(registry, "_ON_DEVICE", {})
    monkeypatch.setattr(registry, "_LOADABLE", set())
    calls = []

    def linear(x, weight, bias, activation, save):
        calls.append(activation)
        out, pre = tables["reference"]["linear"](x, weight, bias, activation, save)
        return out * 2, pre

    ops.register("twice", "linear", "cpu", linear)
    return calls


X, WEIGHT = randn(5, 4), randn(6, 4, seed=1)


def test_an_implementation_serves_its_device(twice):
    assert ops.implementations() == ("reference", "twice")
    torch.testing.assert_close(ops.linear(X, WEIGHT, None), 2 * X @ WEIGHT.t())
    assert registry._choose("linear", "cuda") is registry._IMPLEMENTATIONS["reference"]["linear"]


def test_use_forces_one_and_gives_back(twice):
    with ops.use("reference"):
        torch.testing.assert_close(ops.linear(X, WEIGHT, None), X @ WEIGHT.t())
        with ops.use("twice"):
            torch.testing.assert_close(ops.linear(X, WEIGHT, None), 2 * X @ WEIGHT.t())
            with ops.use(None):
                assert ops.linear(X, WEIGHT, None).shape == (5, 6)
        torch.testing.assert_close(ops.linear(X, WEIGHT, None), X @ WEIGHT.t())
    assert len(twice) == 2


def test_use_gives_back_after_an_error(twice):
    with pytest.raises(KeyError), ops.use("reference"):
        raise KeyError
    ops.linear(X, WEIGHT, None)
    assert len(twice) == 1


def test_a_forced_implementation_leaves_the_rest_to_the_reference(twice):
    with ops.use("twice"):
        out = ops.bias_gelu(X, X[0])
    torch.testing.assert_close(out, torch.nn.functional.gelu(X + X[0]))


def test_a_forced_implementation_runs_under_autograd(twice):
    weight = WEIGHT.clone().requires_grad_()
    ops.linear(X, weight, None).sum().backward()
    assert len(twice) == 1
    assert weight.grad is not None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no implementation is named 'triton-9'; there are: "):
        ops.use("triton-9").__enter__()
    with pytest.raises(ValueError, match="no op is named 'lineal'"):
        ops.register("mine", "lineal", "cpu", print)
    assert "mine" not in ops.implementations()


def test_every_op_has_a_schema_and_a_backward():
    names = set(registry._IMPLEMENTATIONS["reference"])
    six = {
        "embed_layer_norm", "linear", "bias_gelu", "varlen_attention", "residual_layer_norm",
        "linear_cross_entropy",
    }  # fmt: skip
    assert names == six | {f"{name}_backward" for name in six} | {"pack", "unpack", "pool"}
    schema = str(torch.ops.fastbert.varlen_attention.default._schema)
    assert "SymInt max_seqlen" in schema  # as int, every batch would recompile
    assert "Tensor seed" in schema


def test_seeds():
    device = torch.device("cpu")
    assert ops.draw_seed(0.0, device).shape == (0,)
    torch.manual_seed(1)
    first, second = ops.draw_seed(0.1, device), ops.draw_seed(0.1, device)
    torch.manual_seed(1)
    assert torch.equal(ops.draw_seed(0.1, device), first)
    assert first.dtype == torch.int64
    assert first.shape == (1,)
    assert first != second


def test_autocast_ends_at_the_op():
    """The public function casts; an op computes in what it is given."""
    x, weight = X.float(), WEIGHT.float()
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = torch.ops.fastbert.linear.default(x, weight, None, "none", False)
        assert torch.is_autocast_enabled("cpu")
        assert (x @ weight.t()).dtype == torch.bfloat16
    assert out.dtype == torch.float32


def test_inference_mode():
    with torch.inference_mode():
        out = ops.linear(randn(5, 4), randn(6, 4), None, "gelu")
    assert out.is_inference()


def test_an_implementation_loads_when_it_is_asked_for_or_its_device_met(twice, monkeypatch):
    loaded = []

    def load():
        loaded.append(1)
        ops.register("late", "linear", "strange", lambda *args: ("late", args))

    ops.register_loader("late", "strange", load, lambda: True)
    ops.register_loader("absent", "other", load, lambda: False)
    assert ops.implementations() == ("late", "reference", "twice")
    assert registry._choose("linear", "cpu") is registry._IMPLEMENTATIONS["twice"]["linear"]
    assert registry._choose("linear", "other") is registry.reference_of("linear")
    assert not loaded
    assert registry._choose("linear", "strange")(1) == ("late", (1,))
    assert registry._choose("linear", "strange")(2) == ("late", (2,))
    assert loaded == [1]
    with ops.use("late"):
        assert registry._choose("linear", "cpu")(3) == ("late", (3,))
    assert loaded == [1, 1]
