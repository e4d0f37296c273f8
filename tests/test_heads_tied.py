"""Tied and untied decoders under every name that files have for them, and copies of heads."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from heads_files import (
    BIAS,
    DECODER,
    DECODER_BIAS,
    KINDS,
    WORDS,
    assert_same,
    load_theirs,
    rewrite,
    save_theirs,
)
from heads_pair import NAMES, PREDICTING, V, head_pair, make_batch
from safetensors.torch import load_file, save_file

from fastbert import heads
from fastbert.checkpoint import CheckpointError
from fastbert.heads import BertForMaskedLM

pytestmark = pytest.mark.filterwarnings("error::UserWarning")  # what no test expects


@pytest.mark.parametrize("name", PREDICTING)
@pytest.mark.parametrize(
    ("gone", "kept"),
    [
        ((), (WORDS, BIAS, DECODER, DECODER_BIAS)),
        ((WORDS,), (DECODER, BIAS)),
        ((BIAS,), (WORDS, DECODER_BIAS)),
        ((WORDS, BIAS), (DECODER, DECODER_BIAS)),
        ((DECODER,), (WORDS, BIAS, DECODER_BIAS)),
        ((DECODER, DECODER_BIAS), (WORDS, BIAS)),
    ],
)
def test_a_tied_decoder_under_any_of_its_names(tmp_path, name, gone, kept):
    directory, theirs, _ = save_theirs(tmp_path, name)

    def change(tensors):
        everything = {**tensors, DECODER: tensors[WORDS], DECODER_BIAS: tensors[BIAS]}
        names = set(everything) - {WORDS, BIAS, DECODER, DECODER_BIAS} | set(kept)
        assert not names & set(gone)
        return {part: everything[part] for part in names}

    rewrite(directory, change)
    model = getattr(heads, name).from_pretrained(directory, allow_missing=False)
    assert_same(model, theirs, name)
    assert DECODER not in model.state_dict()
    state = load_file(directory / "model.safetensors")
    other, _ = head_pair(name, seed=5)
    parts = dict(state)
    report = other.load_state_dict(parts)
    assert not report.missing_keys
    assert parts.keys() == state.keys()  # the caller's is left alone
    assert_same(other, theirs, name)


@pytest.mark.parametrize("name", PREDICTING)
def test_a_decoder_that_differs_from_the_table_it_is_said_to_be_tied_to(tmp_path, name):
    """As transformers 5: what the file holds is in force, with a warning."""
    directory, _, _ = save_theirs(tmp_path, name)
    g = torch.Generator().manual_seed(8)
    table = torch.randn(V, 32, dtype=torch.float64, generator=g)
    bias = torch.randn(V, dtype=torch.float64, generator=g)
    rewrite(directory, lambda tensors: {**tensors, DECODER: table, DECODER_BIAS: bias})
    theirs = load_theirs(name, directory)
    with pytest.warns(UserWarning, match="tie_word_embeddings") as caught:
        ours = getattr(heads, name).from_pretrained(directory)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not ours.config.tie_word_embeddings
    assert_same(ours, theirs, name)
    state = ours.state_dict()
    tied, _ = head_pair(name)
    with pytest.raises(RuntimeError, match=r"decoder\.weight is not bert\..*tie_word_embeddings"):
        tied.load_state_dict(state)
    untied, _ = head_pair(name, tie_word_embeddings=False)
    untied.load_state_dict(state)
    assert_same(untied, theirs, name)


def test_a_bias_that_differs_from_its_copy(tmp_path):
    """transformers adds `decoder.bias`, whatever `bias` says."""
    name = "BertForMaskedLM"
    directory, _, _ = save_theirs(tmp_path, name)
    bias = torch.linspace(-1, 1, V, dtype=torch.float64)
    rewrite(directory, lambda tensors: {**tensors, DECODER_BIAS: bias})
    ours = BertForMaskedLM.from_pretrained(directory)
    assert_same(ours, load_theirs(name, directory), name)
    again, _ = head_pair(name)
    again.load_state_dict(load_file(directory / "model.safetensors"))
    assert_same(again, ours, name, exact=True)


@pytest.mark.parametrize("name", PREDICTING)
def test_an_untied_decoder(tmp_path, name):
    directory, theirs, _ = save_theirs(tmp_path, name, tie_word_embeddings=False)
    stored = load_file(directory / "model.safetensors")
    assert not torch.equal(stored[BIAS], stored[DECODER_BIAS])
    ours = getattr(heads, name).from_pretrained(directory)
    assert_same(ours, theirs, name)
    decoder = ours.cls.predictions.decoder
    assert torch.equal(decoder.bias, stored[DECODER_BIAS])
    assert decoder.weight is not ours.get_input_embeddings().weight
    assert BIAS not in ours.state_dict()
    only_bias = {n: t for n, t in stored.items() if n != DECODER_BIAS}
    rewrite(directory, lambda tensors: only_bias)
    model = getattr(heads, name).from_pretrained(directory, allow_missing=False)
    assert torch.equal(model.cls.predictions.decoder.bias, stored[BIAS])
    rewrite(directory, lambda tensors: {n: t for n, t in stored.items() if n != DECODER})
    with pytest.warns(UserWarning, match=f"not in the checkpoint: {DECODER}"):
        getattr(heads, name).from_pretrained(directory)
    with pytest.raises(CheckpointError, match=DECODER):
        getattr(heads, name).from_pretrained(directory, allow_missing=False)


@pytest.mark.parametrize("name", NAMES)
def test_files_share_no_tensor(tmp_path, name):
    ours, _ = head_pair(name)
    state = ours.state_dict()
    save_file(state, tmp_path / "state.safetensors")  # refuses shared memory
    assert not {DECODER, DECODER_BIAS} & set(state)
    fresh, _ = head_pair(name, seed=1)
    fresh.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert_same(fresh, ours, name, exact=True)


@pytest.mark.parametrize(("name", "tied"), KINDS)
def test_copies_keep_outputs_and_tie(tmp_path, name, tied):
    ours, _ = head_pair(name, tie_word_embeddings=tied)
    torch.save(ours, tmp_path / "module.pt")
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other, _ = head_pair(name, seed=3, tie_word_embeddings=tied)
    other.load_state_dict(state)
    copies = [
        other,
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(tmp_path / "module.pt", weights_only=False),
    ]
    batch = make_batch(name)
    before = {n: p.detach().clone() for n, p in ours.named_parameters()}
    for model in copies:
        assert_same(model, ours, name, exact=True)
        assert model.state_dict().keys() == ours.state_dict().keys()
        model.load_state_dict(state)  # its hooks are its own
        model.train()(**batch.inputs(), **batch.labels).loss.backward()
        if name in PREDICTING:
            decoder, words = model.get_output_embeddings(), model.get_input_embeddings()
            assert (decoder.weight is words.weight) == tied
            unseen = torch.ones(V, dtype=torch.bool)
            unseen[batch.ids.unique()] = False
            unseen[0] = False
            assert words.weight.grad[unseen].any() == tied
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
    for part, parameter in ours.named_parameters():
        assert torch.equal(parameter, before[part]), part


def test_a_wrapped_head_loads_its_state():
    """Under a prefix, as in any module that holds a head."""
    ours, theirs = head_pair("BertForMaskedLM")
    wrapped = torch.nn.ModuleDict({"inner": copy.deepcopy(ours)})
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    wrapped.load_state_dict({f"inner.{n}": t for n, t in theirs.state_dict().items()})
    assert_same(wrapped["inner"], ours, "BertForMaskedLM", exact=True)
    state = {f"inner.{n}": t for n, t in theirs.state_dict().items() if n not in (WORDS, BIAS)}
    wrapped.load_state_dict(state)
    assert_same(wrapped["inner"], ours, "BertForMaskedLM", exact=True)
