from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from stored_tensors import DTYPES, same_bits

from fastbert.checkpoint import (
    canonical_names,
    canonical_tensors,
    compare_names,
    read_checkpoint,
    save_checkpoint,
    tied_sources,
)
from fastbert.config import BertConfig

FLOATS = ("F64", "F32", "F16", "BF16")
TINY = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}
DECODER = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias")


def new_norms(name: str) -> str:
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return old.replace("LayerNorm.bias", "LayerNorm.beta")


Tensors = dict[str, torch.Tensor]
VARIANTS: dict[str, Callable[[Tensors], Tensors]] = {
    "as transformers": lambda t: t,
    "with bert.": lambda t: {
        name if name.startswith(("bert.", "cls.")) else f"bert.{name}": x for name, x in t.items()
    },
    "no prefix": lambda t: {name.removeprefix("bert."): x for name, x in t.items()},
    "module.": lambda t: {f"module.{name}": x for name, x in t.items()},
    "gamma and beta": lambda t: {new_norms(name): x for name, x in t.items()},
    "stray buffers": lambda t: {
        **t,
        "embeddings.position_ids": torch.arange(10)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, 10, dtype=torch.int64),
    },
    "all of it": lambda t: {
        f"module.{new_norms(name).removeprefix('bert.')}": x
        for name, x in {**t, "embeddings.position_ids": torch.arange(10)[None]}.items()
    },
    "no decoder": lambda t: {n: x for n, x in t.items() if n not in DECODER[:2]},
    "no predictions bias": lambda t: {n: x for n, x in t.items() if n not in DECODER[::2]},
    "decoder weight alone": lambda t: {n: x for n, x in t.items() if n != DECODER[1]},
}
CLASSES = {"BertModel": transformers.BertModel, "BertForMaskedLM": transformers.BertForMaskedLM}


def random_model(class_name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = CLASSES[class_name](transformers.BertConfig(**{**TINY, **changes}))
    for parameter in model.parameters():  # biases too, which start as zeros
        torch.nn.init.normal_(parameter)
    return model.eval()


def write_model(directory: Path, model: Any, tensors: Tensors) -> None:
    directory.mkdir()
    model.config.save_pretrained(directory)
    save_file({name: x.clone() for name, x in tensors.items()}, directory / "model.safetensors")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_load_save_load(tmp_path: Path, class_name: str, variant: str, dtype: str) -> None:
    model = random_model(class_name).to(DTYPES[dtype])
    truth: Tensors = model.state_dict()
    write_model(tmp_path / "in", model, VARIANTS[variant](truth))
    config = BertConfig.from_pretrained(tmp_path / "in")
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    report = compare_names(canonical_names(truth).values(), tensors)
    assert report.ok, report
    save_checkpoint(tmp_path / "out", tensors, config)

    loaded, info = CLASSES[class_name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    found = loaded.state_dict()
    assert set(found) == set(truth)
    assert all(same_bits(found[name], tensor) for name, tensor in truth.items())
    assert BertConfig.from_pretrained(tmp_path / "out").dtype == str(DTYPES[dtype])[6:]

    # And the way back: what transformers writes is what we read.
    loaded.save_pretrained(tmp_path / "theirs")
    back = canonical_tensors(read_checkpoint(tmp_path / "theirs"))
    tied = tied_sources(back)
    for raw, name in canonical_names(truth).items():
        assert same_bits(back[tied.get(name, name)].torch(), truth[raw])


@pytest.mark.parametrize("class_name", CLASSES)
def test_mixed_files_lose_nothing(tmp_path: Path, class_name: str) -> None:
    model = random_model(class_name).double()
    truth: Tensors = {}
    for i, (name, x) in enumerate(model.state_dict().items()):
        x = x + 1e-10 * torch.rand_like(x)  # values that float32 can't hold
        truth[name] = x.to(DTYPES[FLOATS[i % 4]]) if name not in DECODER else x
    write_model(tmp_path / "in", model, {n: x for n, x in truth.items() if n not in DECODER[:2]})
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    save_checkpoint(tmp_path / "out", tensors, BertConfig.from_pretrained(tmp_path / "in"))
    again = read_checkpoint(tmp_path / "out")
    assert all(same_bits(again[name].torch(), tensors[name].torch()) for name in tensors)
    loaded, info = CLASSES[class_name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in loaded.state_dict().items():
        if name not in DECODER[:2]:
            assert same_bits(tensor, truth[name].to(torch.float64))


def test_an_untied_decoder_keeps_its_own_weight(tmp_path: Path) -> None:
    model = random_model("BertForMaskedLM", tie_word_embeddings=False)
    truth: Tensors = model.state_dict()
    write_model(tmp_path / "in", model, truth)
    config = BertConfig.from_pretrained(tmp_path / "in")
    tensors = canonical_tensors(read_checkpoint(tmp_path / "in"))
    assert compare_names(truth, tensors, tie_word_embeddings=config.tie_word_embeddings).ok
    save_checkpoint(tmp_path / "out", tensors, config)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert same_bits(loaded.state_dict()[DECODER[0]], truth[DECODER[0]])
    assert not torch.equal(truth[DECODER[0]], truth["bert.embeddings.word_embeddings.weight"])
