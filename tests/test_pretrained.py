"""Loading, saving and resizing: what a directory says is what the model holds."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
import transformers
from bert_pair import pair, random_ids
from safetensors.torch import load_file, save_file

from fastbert.checkpoint import CheckpointError
from fastbert.config import BertConfig
from fastbert.model import BertModel
from fastbert.pretrained import float_dtype

IDS = random_ids(3, 7)
QKV = "encoder.layer.0.attention.self."


@pytest.fixture
def saved(tmp_path):
    """(directory that transformers wrote, its model)."""
    theirs = pair(torch.float32, num_hidden_layers=2)[1]
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", theirs


@pytest.fixture(autouse=True)
def no_surprise():
    """A warning that no test expects is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def rewrite(directory, change):
    """Write the directory's tensors again after `change`, which returns them."""
    file = directory / "model.safetensors"
    tensors = change({name: tensor.clone() for name, tensor in load_file(file).items()})
    save_file(tensors, file, {"format": "pt"})


def rewrite_config(directory, **changes):
    file = directory / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def assert_same(ours, theirs):
    with torch.no_grad():
        a, b = ours(IDS), theirs(IDS)
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state)
    torch.testing.assert_close(a.pooler_output, b.pooler_output)


def assert_identical(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def test_a_directory_of_transformers(saved):
    directory, theirs = saved
    model = BertModel.from_pretrained(directory)
    assert not model.training
    assert_same(model, theirs)
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    model.train()(IDS).last_hidden_state.sum().backward()


def test_transformers_loads_what_we_save(saved, tmp_path):
    directory, theirs = saved
    BertModel.from_pretrained(directory).save_pretrained(tmp_path / "ours")
    back, info = transformers.BertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_identical(back, theirs)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["model_type"] == "bert"
    assert_identical(
        BertModel.from_pretrained(tmp_path / "ours"), BertModel.from_pretrained(directory)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precisions_survive_the_round_trip(saved, tmp_path, dtype):
    model = BertModel.from_pretrained(saved[0], dtype=dtype)
    model.save_pretrained(tmp_path / "ours")
    again = BertModel.from_pretrained(tmp_path / "ours")
    assert again.dtype == dtype
    assert_identical(again, model)
    theirs = transformers.BertModel.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == dtype
    assert torch.equal(
        theirs.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight
    )


def test_saving_onto_its_own_source(saved):
    directory, theirs = saved
    model = BertModel.from_pretrained(directory)
    model.save_pretrained(directory)
    assert_same(BertModel.from_pretrained(directory), theirs)


def test_saving_changes_no_config(saved, tmp_path):
    model = BertModel.from_pretrained(saved[0])
    before = model.config
    model.save_pretrained(tmp_path / "ours")
    assert model.config is before
    loaded = BertConfig.from_pretrained(tmp_path / "ours")
    assert loaded.replace(architectures=before.architectures, dtype=before.dtype) == before


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_no_dtype_keeps_the_files(saved, dtype):
    directory, _ = saved
    wanted = getattr(torch, dtype)
    rewrite(directory, lambda tensors: {name: t.to(wanted) for name, t in tensors.items()})
    rewrite_config(directory, dtype=dtype)
    assert BertModel.from_pretrained(directory).dtype == wanted
    rewrite_config(directory, dtype="float64")  # the config's word counts, as in transformers
    assert BertModel.from_pretrained(directory).dtype == torch.float64
    assert transformers.BertModel.from_pretrained(directory).dtype == torch.float64
    rewrite_config(directory, dtype=None)  # without a word in the config, the tensors tell
    assert BertModel.from_pretrained(directory).dtype == wanted
    rewrite_config(directory, torch_dtype=dtype)  # as transformers 4 wrote it
    assert BertModel.from_pretrained(directory).dtype == wanted
    assert BertModel.from_pretrained(directory, dtype="float32").dtype == torch.float32
    assert BertModel.from_pretrained(directory, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", ["int8", torch.int64, "auto", "torch.float31", 32])
def test_other_dtypes_are_refused(bad):
    with pytest.raises(ValueError, match="float32, float64, bfloat16, float16, not"):
        float_dtype(bad)


def test_prefixes_and_old_names(saved):
    directory, theirs = saved

    def change(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
            renamed[f"module.bert.{name}"] = tensor
        renamed["module.bert.embeddings.position_ids"] = torch.arange(40)[None]
        return renamed

    rewrite(directory, change)
    assert_same(BertModel.from_pretrained(directory), theirs)


def test_what_is_missing_is_named_and_starts_at_its_initial_value(saved):
    directory, theirs = saved
    gone = ["encoder.layer.1.output.dense.weight", "encoder.layer.1.output.LayerNorm.weight"]
    rewrite(directory, lambda tensors: {n: t for n, t in tensors.items() if n not in gone})
    with pytest.warns(UserWarning, match="not in the checkpoint") as caught:
        model = BertModel.from_pretrained(directory)
    (warning,) = caught
    assert all(f"bert.{name}" in str(warning.message) for name in gone)
    assert "2 tensors of the model" in str(warning.message)
    assert warning.filename == __file__
    assert (model.get_parameter(gone[1]) == 1).all()
    assert 0.01 < model.get_parameter(gone[0]).std() < 0.03
    assert not any(p.is_meta for p in model.parameters())
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.get_parameter(name), theirs.get_parameter(name))


def test_a_whole_attention_may_be_missing(saved):
    directory, _ = saved
    rewrite(directory, lambda t: {n: v for n, v in t.items() if not n.startswith(QKV)})
    with pytest.warns(UserWarning, match=r"layer\.0\.attention\.self\.key\.bias"):
        model = BertModel.from_pretrained(directory)
    assert not model.get_parameter(f"{QKV}qkv.bias").any()
    assert model(IDS).last_hidden_state.isfinite().all()


def test_a_part_of_query_key_value_is_an_error(saved):
    directory, _ = saved
    gone = f"{QKV}key.weight"
    rewrite(directory, lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    with pytest.raises(CheckpointError, match=rf"no bert\.{gone}"):
        BertModel.from_pretrained(directory)


def test_what_is_unexpected_is_named(saved):
    directory, theirs = saved
    rewrite(directory, lambda tensors: {**tensors, "extra.weight": torch.ones(2)})
    with pytest.warns(UserWarning, match=r"not in the model: extra\.weight"):
        model = BertModel.from_pretrained(directory)
    assert_same(model, theirs)


def test_without_a_pooler(saved):
    directory, theirs = saved
    model = BertModel.from_pretrained(directory, add_pooling_layer=False)  # asked for: no warning
    assert model(IDS).pooler_output is None
    torch.testing.assert_close(model(IDS).last_hidden_state, theirs(IDS).last_hidden_state)


def test_nothing_that_matches_is_an_error(saved):
    directory, _ = saved
    rewrite(directory, lambda tensors: {f"roberta.{name}": t for name, t in tensors.items()})
    with pytest.raises(CheckpointError, match="holds no tensor of a BertModel"):
        BertModel.from_pretrained(directory)


def test_a_size_that_disagrees_is_an_error(saved):
    directory, _ = saved
    rewrite_config(directory, vocab_size=61)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight.*\[60, 32\].*\[61, 32\]"):
        BertModel.from_pretrained(directory)
    rewrite_config(directory, vocab_size=60, type_vocab_size=3)
    with pytest.raises(CheckpointError, match="token_type_embeddings"):
        BertModel.from_pretrained(directory)


def test_another_config_and_device(saved):
    directory, theirs = saved
    config = BertConfig.from_pretrained(directory, layer_norm_eps=0.5)
    model = BertModel.from_pretrained(directory, config=config, device="cpu")
    assert model.config.layer_norm_eps == 0.5
    assert not torch.allclose(model(IDS).last_hidden_state, theirs(IDS).last_hidden_state)
    assert BertModel.from_pretrained(directory, device="meta").device.type == "meta"


def test_what_is_not_there(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BertModel.from_pretrained(tmp_path / "nowhere")
    (saved[0] / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        BertModel.from_pretrained(saved[0])
    (saved[0] / "config.json").unlink()
    with pytest.raises(FileNotFoundError):
        BertModel.from_pretrained(saved[0])


def test_a_pickle_needs_a_flag(saved):
    directory, theirs = saved
    torch.save(theirs.state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        BertModel.from_pretrained(directory)
    assert_same(BertModel.from_pretrained(directory, allow_pickle=True), theirs)


def test_the_default_model_needs_no_name(minilm_dir, tmp_path):
    model = BertModel.from_pretrained()
    assert (model.config.hidden_size, model.dtype) == (384, torch.float32)
    model.save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(
        minilm_dir / "model.safetensors"
    )  # fmt: skip
    shared = {
        name.removeprefix("bert."): t for name, t in theirs.items() if "position_ids" not in name
    }
    assert ours.keys() == shared.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in shared.items())
    shutil.copy(minilm_dir / "tokenizer.json", tmp_path)  # the file is a whole model's
    _, info = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_an_unwritable_directory_says_so(saved, tmp_path):
    model = BertModel.from_pretrained(saved[0])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"
