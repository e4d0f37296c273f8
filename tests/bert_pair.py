"""Our model and transformers', with the same weights, and what must be equal between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbert.config import BertConfig
from fastbert.model import BertModel

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
CLOSE = {"rtol": 0.0, "atol": 1e-10}


def pair(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(ours, transformers' with eager attention), in eval mode; every parameter is random.

    Biases and norm weights too: at their initial 0 and 1 a mistake in them would not show.
    """
    import transformers

    sizes = {**SIZES, **changes}
    torch.manual_seed(seed)
    theirs = transformers.BertModel(transformers.BertConfig(**sizes, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.1)
    ours = BertModel(BertConfig(**sizes))
    missing = ours.load_state_dict(theirs.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def random_ids(B: int, S: int, vocabulary: int = 60, seed: int = 0) -> Tensor:
    """(B, S) ids from 1 on."""
    return torch.randint(1, vocabulary, (B, S), generator=torch.Generator().manual_seed(seed))


def compare(ours: Any, theirs: Any, mask: Tensor, *, pooled_rows: Tensor | None = None) -> None:
    """Assert equality at real tokens, zeros and width elsewhere, and that all is finite.

    Args:
        ours, theirs: outputs in float64 with hidden states and attentions.
        mask: (B, S), non-zero where a token is real.
        pooled_rows: (B,) rows whose pooled vector must agree; rows whose first column is real if
            None. In the others transformers pools a padding token, and we the first real one.
    """
    real = mask != 0  # (B, S)
    B, S = real.shape
    assert ours.last_hidden_state.shape == theirs.last_hidden_state.shape
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    states = [(ours.last_hidden_state, theirs.last_hidden_state)]
    for a, b in [*states, *zip(ours.hidden_states, theirs.hidden_states, strict=True)]:
        assert a.isfinite().all()
        torch.testing.assert_close(a[real], b[real], **CLOSE)
        assert not a[~real].any()
    queries = real[:, None, :, None].expand(B, ours.attentions[0].shape[1], S, S)
    both = queries & real[:, None, None, :]
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        assert a.shape == b.shape
        assert a.isfinite().all()
        torch.testing.assert_close(a[queries], b[queries], **CLOSE)
        assert not a[~both].any()
    rows = real[:, 0] if pooled_rows is None else pooled_rows
    torch.testing.assert_close(ours.pooler_output[rows], theirs.pooler_output[rows], **CLOSE)
    assert ours.pooler_output.isfinite().all()
    assert not ours.pooler_output[~real.any(dim=1)].any()
