"""What the heads share: a `BertModel` called `bert`, and tokens on their way in."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fastbert.config import BertConfig
from fastbert.inputs import Inputs, squeeze_rows
from fastbert.layers import init_module
from fastbert.model import BertModel
from fastbert.outputs import BertModelOutput, ModelOutput
from fastbert.packing import Packed
from fastbert.pretrained import PreTrainedModel

Output = TypeVar("Output", bound=ModelOutput)
Ids = Tensor | Packed | None


class BertHead(PreTrainedModel):
    """Base of the heads. Each takes what `BertModel.forward` takes, and labels.

    Ids, mask, types and positions of shape (B, 1, S) count as (B, S): a `DataLoader` makes such
    batches of texts that were tokenised one by one with ``return_tensors="pt"``.
    """

    pools: ClassVar[bool] = True
    """Whether the head reads the pooled vector; without, there is no pooler, as in transformers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=self.pools)

    def init_head(self) -> None:
        """Give the parameters beside `bert` their initial values."""
        for module in self.children():
            if module is not self.bert:
                init_module(module, self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table, (V, C)."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding table."""
        self.bert.set_input_embeddings(value)
        self.config = self.config.replace(vocab_size=value.num_embeddings)

    def _inputs(self, input_ids: Ids, *rest: Tensor | None) -> Inputs:
        """Packed tokens of a call; `rest`: mask, types, positions and embeddings."""
        mask, types, positions, embeds = rest
        if not isinstance(input_ids, Packed):
            input_ids, mask, types, positions = map(
                squeeze_rows, (input_ids, mask, types, positions)
            )
        return self.bert.inputs(input_ids, mask, types, positions, embeds)

    def _encode(self, inputs: Inputs, attentions: bool | None, states: bool | None) -> Any:
        """`BertModel`'s output, its hidden states packed."""
        output = self.bert(
            inputs, output_attentions=attentions, output_hidden_states=states, return_dict=True
        )
        assert isinstance(output, BertModelOutput)  # for the type checker: it was asked for
        return output

    def _returned(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _left_out(self, name: str) -> bool:
        return not self.pools and name.startswith("bert.pooler.")


def classifier_dropout(config: BertConfig) -> nn.Dropout:
    """Dropout before a classifier: its own rate, or that of the hidden states."""
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)
