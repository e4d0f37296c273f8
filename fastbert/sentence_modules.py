"""The modules of a sentence-transformers directory that turn token vectors into one vector a text.

Each is read from and written to its own folder. What would change a result and isn't known here is
an error that names it: a module that is skipped in silence gives plausible, wrong vectors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.checkpoint import check_shapes, read_checkpoint
from fastbert.checks import check_choice, check_int, short
from fastbert.json_file import read_json_object, write_json
from fastbert.safetensors_file import StoredTensor, write_safetensors

MODULE_CONFIG = "config.json"
MAX_DIMENSION = 2**24
_WEIGHTS = "model.safetensors"

# The old style's flag -> the new style's name, in the order of the concatenation.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(mode for mode in _POOLING_FLAGS.values() if mode != "weightedmean")
_POOLING_KEYS = {
    *_POOLING_FLAGS,
    "pooling_mode",
    "embedding_dimension",
    "word_embedding_dimension",
    "include_prompt",
}

# The waist's name -> the class that sentence-transformers writes.
_ACTIVATIONS = {
    "none": "torch.nn.modules.linear.Identity",
    "gelu": "torch.nn.modules.activation.GELU",
    "relu": "torch.nn.modules.activation.ReLU",
    "silu": "torch.nn.modules.activation.SiLU",
    "tanh": "torch.nn.modules.activation.Tanh",
}
_BY_CLASS = {path.rpartition(".")[2]: name for name, path in _ACTIVATIONS.items()}
_DENSE_KEYS = {
    "in_features",
    "out_features",
    "bias",
    "activation_function",
    "module_input_name",
    "module_output_name",
    "use_residual",
}


@dataclass(frozen=True)
class Pooling:
    """How a text's token vectors (S, C) become one vector (dimension,).

    Attributes:
        in_dimension: C, the width of a token vector.
        modes: Of `POOLING_MODES`; several are concatenated in this order.
        include_prompt: Whether a prompt's tokens take part.
    """

    in_dimension: int
    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    @property
    def dimension(self) -> int:
        """The width of what comes out."""
        return self.in_dimension * len(self.modes)

    @classmethod
    def read(cls, folder: Path, in_dimension: int) -> Pooling:
        """Read a pooling module, old style (flags) or new (`pooling_mode`), or raise ValueError."""
        file = folder / MODULE_CONFIG
        values = read_json_object(file)
        _refuse_unknown(file, values, _POOLING_KEYS)
        width = values.get("embedding_dimension", values.get("word_embedding_dimension"))
        if width is not None and width != in_dimension:
            raise ValueError(
                f"{file}: pools vectors of {short(width)}, the model's have {in_dimension}"
            )
        include_prompt = values.get("include_prompt", True)
        if not isinstance(include_prompt, bool):
            raise ValueError(f"{file}: include_prompt is {short(include_prompt)}, expected a bool")
        modes = values.get("pooling_mode")
        if modes is None:
            # A file without any flag set means the mean.
            modes = [mode for flag, mode in _POOLING_FLAGS.items() if values.get(flag)] or ["mean"]
        elif isinstance(modes, str):
            modes = [modes]
        if not isinstance(modes, list) or not modes:
            raise ValueError(f"{file}: pooling_mode is {short(modes)}, expected names")
        names = [check_choice(f"{file}: pooling_mode", mode, POOLING_MODES) for mode in modes]
        return cls(in_dimension, tuple(names), include_prompt)

    def write(self, folder: Path) -> None:
        """Write the module so that sentence-transformers 5 and 6 both read it.

        Version 5 passes every key to its constructor, which knows `word_embedding_dimension` and
        not `embedding_dimension`; version 6 takes the old key for the new one.
        """
        if sorted(set(self.modes), key=POOLING_MODES.index) != list(self.modes):
            # Flags can say neither another order nor a mode twice: the new style alone can.
            values: dict[str, Any] = {
                "embedding_dimension": self.in_dimension,
                "pooling_mode": list(self.modes),
            }
        else:
            values = {"word_embedding_dimension": self.in_dimension}
            if len(self.modes) == 1:
                values["pooling_mode"] = self.modes[0]
            values.update((flag, mode in self.modes) for flag, mode in _POOLING_FLAGS.items())
        write_json(folder / MODULE_CONFIG, {**values, "include_prompt": self.include_prompt})


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling: y = activation(x Wᵀ + b), plus x (or x Rᵀ) where residual.

    Attributes:
        in_features: K, the width of x.
        out_features: N, the width of y.
        activation: The waist's name: none, gelu (erf), relu, silu or tanh.
        weight: W, (N, K), in the file's dtype.
        bias: b, (N,), or None.
        use_residual: Whether x is added; through `residual` where K and N differ.
        residual: R, (N, K), or None.
    """

    in_features: int
    out_features: int
    activation: str
    weight: StoredTensor
    bias: StoredTensor | None = None
    use_residual: bool = False
    residual: StoredTensor | None = None

    @property
    def dimension(self) -> int:
        """The width of what comes out."""
        return self.out_features

    @classmethod
    def read(cls, folder: Path, in_dimension: int, *, allow_pickle: bool = False) -> Dense:
        """Read a dense module and its weights, or raise ValueError / FileNotFoundError."""
        file = folder / MODULE_CONFIG
        values = read_json_object(file)
        _refuse_unknown(file, values, _DENSE_KEYS)
        _check_feature_names(file, values)
        K = check_int(f"{file}: in_features", values.get("in_features"), 1, MAX_DIMENSION)
        N = check_int(f"{file}: out_features", values.get("out_features"), 1, MAX_DIMENSION)
        if in_dimension != K:
            raise ValueError(
                f"{file}: takes vectors of {K}, the module before gives {in_dimension}"
            )
        flags = values.get("bias", True), values.get("use_residual", False)
        if not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(f"{file}: bias and use_residual are {short(flags)}, expected bools")
        has_bias, use_residual = flags
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (N, K)}
        if has_bias:
            shapes["linear.bias"] = (N,)
        if use_residual and K != N:
            shapes["residual.weight"] = (N, K)
        tensors = read_checkpoint(folder, allow_pickle=allow_pickle)
        if set(tensors) != set(shapes):
            raise ValueError(
                f"{folder}: holds the tensors {sorted(tensors)}, expected {sorted(shapes)}"
            )
        check_shapes(shapes, tensors)
        return cls(
            K,
            N,
            _activation(file, values.get("activation_function", _ACTIVATIONS["tanh"])),
            tensors["linear.weight"],
            tensors.get("linear.bias"),
            use_residual,
            tensors.get("residual.weight"),
        )

    def write(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` of the module."""
        values: dict[str, Any] = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "activation_function": _ACTIVATIONS[self.activation],
        }
        if self.use_residual:  # releases before it existed can't read the key
            values["use_residual"] = True
        named = {
            "linear.weight": self.weight,
            "linear.bias": self.bias,
            "residual.weight": self.residual,
        }
        stored = [StoredTensor.of(name, t) for name, t in named.items() if t is not None]
        write_safetensors(folder / _WEIGHTS, stored, {"format": "pt"})
        write_json(folder / MODULE_CONFIG, values)


@dataclass(frozen=True)
class Normalize:
    """Division by the Euclidean norm (at least 1e-12): y = x / max(‖x‖, 1e-12)."""

    dimension: int

    @classmethod
    def read(cls, folder: Path, in_dimension: int) -> Normalize:
        """Read a normalise module; a folder or a config in it need not exist."""
        file = folder / MODULE_CONFIG
        if file.is_file():
            values = read_json_object(file)
            _refuse_unknown(file, values, {"module_input_name", "module_output_name"})
            _check_feature_names(file, values)
        return cls(in_dimension)


def module_folder(root: Path, path: object) -> Path:
    """Return a module's folder inside `root`, or raise ValueError for a path that leads out."""
    if not isinstance(path, str) or "\\" in path or "\0" in path:
        raise ValueError(f"module path {short(path)}, expected a folder's name")
    if Path(path).is_absolute() or os.pardir in Path(path).parts:
        raise ValueError(f"module path {short(path)} leads out of {root}")
    return root / path


def _refuse_unknown(file: Path, values: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{file}: unknown settings {unknown}, known: {sorted(known)}")


def _check_feature_names(file: Path, values: Mapping[str, Any]) -> None:
    """Raise unless the module reads and writes the pooled vector."""
    for key in ("module_input_name", "module_output_name"):
        name = values.get(key)
        if name not in (None, "sentence_embedding"):
            raise ValueError(f"{file}: {key} is {short(name)}, supported: 'sentence_embedding'")


def _activation(file: Path, path: object) -> str:
    """Return the waist's name of a `torch.nn` class, or raise ValueError that names the known."""
    known = path.rpartition(".")[2] if isinstance(path, str) else None
    if isinstance(path, str) and path.startswith("torch.nn.") and known in _BY_CLASS:
        return _BY_CLASS[known]
    raise ValueError(
        f"{file}: activation_function is {short(path)}, supported: torch.nn's {sorted(_BY_CLASS)}"
    )
