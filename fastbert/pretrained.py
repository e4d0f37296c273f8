"""What every model class shares: loading, saving, initial weights, resizing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from fastbert.checkpoint import (
    FLOATS,
    CheckpointError,
    StoredTensor,
    canonical_tensors,
    check_shapes,
    compare_names,
    qkv_parts,
    read_checkpoint,
    save_checkpoint,
    split_qkv,
    tied_sources,
)
from fastbert.config import FIELDS, BertConfig
from fastbert.hub import resolve_directory
from fastbert.layers import init_module, init_parameter
from fastbert.recompute import Recomputes

_FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype of that name.

    Raises:
        ValueError: if it is none of float32, float64, bfloat16, float16.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(_FLOATS)}, not {dtype!r}")
    return _FLOATS[name]


def check_device(device: torch.device | str) -> torch.device:
    """The device, if this torch and machine have it.

    Raises:
        ValueError: if they don't, or it is no device's name.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is no device's name ({error})") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else "a CUDA build without a GPU"
        raise ValueError(
            f"device is {str(wanted)!r}, but this torch ({build}) finds no CUDA device"
        )
    return wanted


class PreTrainedModel(Recomputes):
    """Base of the models: a config, and Hugging Face directories to load from and save to.

    Subclasses say in `checkpoint_prefix` what stands before their parameter names in a canonical
    checkpoint: ``bert.`` for the bare encoder, nothing for a model that holds it as ``bert``.
    """

    checkpoint_prefix = ""
    alike: ClassVar[tuple[str, ...]] = ()
    """Classes whose checkpoints hold tensors of the same names, but of another meaning."""

    def __init__(self, config: BertConfig) -> None:
        if not isinstance(config, BertConfig):
            raise TypeError(f"config must be a BertConfig, not {type(config).__name__}")
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    @property
    def base_model(self) -> nn.Module:
        """The encoder: `bert` of a model with a head, else the model itself."""
        inner = dict(self.named_children()).get("bert")
        return self if inner is None else inner

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers in the parameters, shared ones once.

        Args:
            only_trainable: leave out what takes no gradient.
            exclude_embeddings: leave out embedding tables.
        """
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(table) for table in tables} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(p.numel() for p in counted if id(p) not in left_out)

    def init_weights(self) -> None:
        """Give every parameter its initial value (Devlin et al. 2019's released code: σ 0.02)."""
        init_module(self, self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str] | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        allow_pickle: bool = False,
        revision: str | None = None,
        config: BertConfig | None = None,
        allow_missing: bool = True,
        ignore_mismatched_sizes: bool = False,
        **options: Any,
    ) -> Self:
        """Load a Hugging Face directory or hub id; the model comes in eval mode.

        Args:
            path_or_id: directory, hub id, or None for the default model.
            dtype: of all parameters; None keeps the file's (what its config says, else what the
                first floating-point tensor has), as transformers 5 does.
            device: where to; None is the CPU.
            allow_pickle: open ``pytorch_model.bin`` where there is no safetensors file.
            revision: branch, tag or commit of a hub id.
            config: instead of the directory's.
            allow_missing: let tensors that the checkpoint lacks, of a head say, start at random.
                False refuses that, and a head whose config says that it is another one.
            ignore_mismatched_sizes: count a tensor of another shape as missing.
            options: fields of the config, e.g. ``num_labels=3``; others go to the class, e.g.
                ``add_pooling_layer=False``.

        Raises:
            FileNotFoundError: if there is no such model, or no weights in it.
            ValueError: on a dtype or device that is not to be had.
            CheckpointError: if the weights are not what they claim, if a size disagrees with the
                config, or if no tensor of the model is among them.

        Warns:
            UserWarning: names tensors that are missing (they start at random) or unexpected.
        """
        place = check_device(device or "cpu")
        directory = resolve_directory(path_or_id, revision=revision, allow_pickle=allow_pickle)
        fields = {name: options.pop(name) for name in FIELDS if name in options}
        config = BertConfig.from_pretrained(directory) if config is None else config
        config = config.replace(**fields) if fields else config
        tensors = canonical_tensors(read_checkpoint(directory, allow_pickle=allow_pickle))
        config = cls._agreed(config, tensors, str(directory))
        wanted = _wanted_dtype(dtype, config, tensors)
        with torch.device("meta"):
            model = cls(config, **options)
        tensors = model._fitting(tensors, ignore_mismatched_sizes, str(directory))
        missing = model._load(tensors, wanted, str(directory), allow_missing)
        model._materialise(missing, wanted)
        return model.to(place).eval()

    @classmethod
    def _agreed(
        cls, config: BertConfig, tensors: dict[str, StoredTensor], source: str
    ) -> BertConfig:
        """The config, where a checkpoint's tensors can contradict it made to agree with them."""
        return config

    def _fitting(
        self, tensors: dict[str, StoredTensor], drop: bool, source: str
    ) -> dict[str, StoredTensor]:
        """What was stored, under every name that shares it, without shapes that don't fit.

        Raises:
            CheckpointError: if a shape does not fit, and is not to be dropped.
        """
        shapes = self._checkpoint_shapes()
        tied = tied_sources(tensors, tie_word_embeddings=self.config.tie_word_embeddings)
        tensors |= {absent: tensors[there] for absent, there in tied.items() if absent in shapes}
        if not drop:
            check_shapes(shapes, tensors)
        odd = {n for n, shape in shapes.items() if n in tensors and tensors[n].shape != shape}
        if odd:
            warnings.warn(
                f"{source}: of another shape, ignored: {', '.join(sorted(odd))}", stacklevel=3
            )
        return {name: tensor for name, tensor in tensors.items() if name not in odd}

    def _load(
        self, tensors: dict[str, StoredTensor], dtype: torch.dtype, source: str, allow_missing: bool
    ) -> tuple[str, ...]:
        """Take the tensors over and say, by warning, which did not match; return the missing."""
        shapes = self._checkpoint_shapes()
        names = [name for name in tensors if not self._left_out(name)]
        tied = self.config.tie_word_embeddings
        report = compare_names(shapes, names, tie_word_embeddings=tied)
        if len(report.missing) == len(shapes):
            raise CheckpointError(f"{source}: holds no tensor of a {type(self).__name__}. {report}")
        self._refuse_partial_qkv(tensors, source)
        if not allow_missing:
            self._refuse_another_head(report.missing, source)
        if not report.ok:
            chance = " What is missing starts at random." if report.missing else ""
            warnings.warn(f"{source}: {report}{chance}", stacklevel=3)
        whole = [name for name in shapes if name in tensors and tensors[name].dtype not in FLOATS]
        if whole:
            raise CheckpointError(
                f"{source}: {whole[0]} holds {tensors[whole[0]].dtype} numbers, expected floating"
                " point (quantised checkpoints are not supported)"
            )
        prefix = self.checkpoint_prefix
        state = {
            name.removeprefix(prefix): tensors[name].torch().to(dtype)
            for name in shapes
            if name in tensors
        }
        self.load_state_dict(state, strict=False, assign=True)
        return report.missing

    def _refuse_another_head(self, missing: tuple[str, ...], source: str) -> None:
        kind = type(self).__name__
        said = [name for name in self.config.architectures or () if name in self.alike]
        why = [f"it lacks {', '.join(missing)}"] if missing else []
        if said and kind not in said:
            why.append(f"its config says that it is one of a {' and '.join(said)}")
        if why:
            raise CheckpointError(f"{source}: is no checkpoint of a {kind}: {', and '.join(why)}")

    def _refuse_partial_qkv(self, tensors: Mapping[str, StoredTensor], source: str) -> None:
        """Query, key and value load together; of a part alone, nothing would be taken over."""
        for name in self.state_dict():
            parts = qkv_parts(self.checkpoint_prefix + name)
            absent = [part for part in parts if part not in tensors]
            if absent and len(absent) < len(parts):
                raise CheckpointError(f"{source}: no {' and no '.join(absent)} beside its siblings")

    def _left_out(self, name: str) -> bool:
        """Whether the caller asked for a model without the part that this tensor belongs to."""
        return False

    def _checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical, unfused names and shapes of every parameter."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, value in self.state_dict().items():
            name = self.checkpoint_prefix + name
            parts = qkv_parts(name)
            C = value.shape[0] // 3 if parts else value.shape[0]
            shapes.update(dict.fromkeys(parts or (name,), (C, *value.shape[1:])))
        return shapes

    def _materialise(self, missing: tuple[str, ...], dtype: torch.dtype) -> None:
        """Initial values for what the checkpoint lacked and the meta device still holds."""
        for module in self.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                if not value.is_meta:
                    continue
                fresh = torch.empty(value.shape, dtype=dtype)
                setattr(module, name, nn.Parameter(fresh, requires_grad=value.requires_grad))
                init_parameter(module, name, self.config.initializer_range)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` that transformers loads, each atomically.

        Raises:
            OSError: if a file can't be written; the old one is still there.
        """
        config = self.config.replace(architectures=[type(self).__name__])
        save_checkpoint(directory, self._saved(), config)

    def _saved(self) -> dict[str, torch.Tensor]:
        """The tensors under the names that checkpoints give them."""
        return split_qkv(self.state_dict())

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table, (V, C)."""
        raise TypeError(f"{type(self).__name__} has no input embeddings")

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding table."""
        raise TypeError(f"{type(self).__name__} has no input embeddings")

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> nn.Embedding:
        """Grow or shrink the vocabulary; rows that stay keep their values, new ones are initial.

        Args:
            new_num_tokens: V afterwards; None changes nothing.

        Returns:
            The word embedding table. `config.vocab_size` follows.

        Raises:
            ValueError: if it is not a positive integer, or would cut off the padding row.
        """
        old = self.get_input_embeddings()
        if new_num_tokens is None or new_num_tokens == old.num_embeddings:
            return old
        self.config = self.config.replace(vocab_size=new_num_tokens)  # checks the number
        with torch.device(old.weight.device):
            new = nn.Embedding(new_num_tokens, old.embedding_dim, padding_idx=old.padding_idx)
        new.to(old.weight.dtype)
        init_parameter(new, "weight", self.config.initializer_range)
        kept = min(new_num_tokens, old.num_embeddings)
        with torch.no_grad():
            new.weight[:kept] = old.weight[:kept]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.set_input_embeddings(new)
        return new


def _wanted_dtype(
    dtype: torch.dtype | str | None, config: BertConfig, tensors: Mapping[str, StoredTensor]
) -> torch.dtype:
    if dtype is not None:
        return float_dtype(dtype)
    if config.dtype is not None:
        return float_dtype(config.dtype)
    names = (FLOATS[t.dtype] for t in tensors.values() if t.dtype in FLOATS)
    return float_dtype(next(names, "float32"))
