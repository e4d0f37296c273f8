"""Padding rows that are tokenised already: what a data collator asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastbert.tokenization.batch_encoding import BatchEncoding
from fastbert.tokenization.options import as_count

_FILL = {"token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}


def pad_rows(
    given: Any,
    *,
    length: int | None,
    multiple: int | None,
    side: str,
    pad_id: int | None,
    attention_mask: bool | None,
    return_tensors: str | None,
) -> BatchEncoding:
    """Pad rows that were tokenised one by one to one length.

    Args:
        given: B mappings from names to lists, arrays or tensors of one row each; or one mapping of
            one row, or of B rows.
        length: tokens to pad to; None for the longest row's.
        multiple: round that up to a multiple.
        side: "right" or "left".
        pad_id: the padding token; None for no padding at all.
        attention_mask: whether to give one; None if the rows do, or if anything is padded.
        return_tensors: "np", "pt", or None for lists.

    Returns:
        Ids, types and masks padded; every other name (labels, say) as it came, row by row. One row
        alone has no batch axis.

    Raises:
        TypeError: if it is no mapping, and no list of mappings.
        ValueError: if the rows name no `input_ids`, or not all the same, or lengths disagree.
    """
    rows, single = _rows(given)
    width = max((len(row["input_ids"]) for row in rows), default=0)
    width = width if length is None else length
    width += -width % as_count("pad_to_multiple_of", multiple or 1, least=1)
    short = pad_id is not None and any(len(row["input_ids"]) < width for row in rows)
    names = list(rows[0]) if rows else ["input_ids"]
    wanted = attention_mask if attention_mask is not None else short or "attention_mask" in names
    padded = [_pad(row, width, side, pad_id, wanted) for row in rows]
    if wanted and "attention_mask" not in names:
        names.append("attention_mask")
    if not wanted:
        names = [name for name in names if name != "attention_mask"]
    values: dict[str, Any] = {name: [row[name] for row in padded] for name in names}
    if single and rows:
        values = {name: value[0] for name, value in values.items()}
    return _encoding(values, return_tensors)


def _encoding(values: dict[str, Any], return_tensors: str | None) -> BatchEncoding:
    """Arrays or tensors of every value, whole numbers as int64, others as they are."""
    made = BatchEncoding({}, None, return_tensors)
    for name, value in values.items():
        widths = {len(row) for row in _listed(value) if isinstance(row, list)}
        if return_tensors is not None and len(widths) > 1:
            raise ValueError(
                f"{name}: rows of {min(widths)} to {max(widths)} tokens make no array; pad them"
                " (a collator has to pad what the tokenizer does not know)"
            )
        whole = name == "input_ids" or name in _FILL  # what an empty list does not show
        kind = np.int64 if whole else None
        made[name] = value if return_tensors is None else np.asarray(value, kind)
        if return_tensors == "pt":
            import torch

            made[name] = torch.as_tensor(value, dtype=torch.int64 if whole else None)
    return made


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _rows(given: Any) -> tuple[list[dict[str, Any]], bool]:
    """One dictionary of plain lists a row, and whether the caller gave one row alone."""
    if isinstance(given, Mapping):
        _check_names(given)
        columns = {name: plain(value) for name, value in given.items()}
        ids = columns["input_ids"]
        if not ids or not isinstance(ids[0], list):
            return [columns] if ids else [], True
        odd = [name for name, value in columns.items() if len(value) != len(ids)]
        if odd:
            raise ValueError(f"{odd[0]} holds {len(columns[odd[0]])} rows, input_ids {len(ids)}")
        return [{name: value[i] for name, value in columns.items()} for i in range(len(ids))], False
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"expected tokenised rows (a list of dictionaries), not {type(given).__name__}"
        )
    rows = []
    for index, row in enumerate(given):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {index} is a {type(row).__name__}, expected a dictionary")
        _check_names(row)
        if set(row) != set(given[0]):
            raise ValueError(f"row {index} holds {sorted(row)}, row 0 {sorted(given[0])}")
        rows.append({name: plain(value) for name, value in row.items()})
    return rows, False


def plain(value: Any) -> Any:
    """Lists and numbers out of arrays and tensors."""
    return value.tolist() if hasattr(value, "tolist") else value


def _check_names(row: Mapping[str, Any]) -> None:
    if "input_ids" not in row:
        raise ValueError(f"a row holds {sorted(map(str, row))}, expected input_ids among them")


def _pad(
    row: dict[str, Any], width: int, side: str, pad_id: int | None, mask: bool | None
) -> dict[str, Any]:
    count = len(row["input_ids"])
    full = dict(row)
    if mask and "attention_mask" not in full:
        full["attention_mask"] = [1] * count
    fills = {"input_ids": pad_id, **_FILL}
    if pad_id is None or count >= width:
        return full
    for name, fill in fills.items():
        if name not in full:
            continue
        if len(full[name]) != count:
            raise ValueError(f"{name} holds {len(full[name])} tokens, input_ids {count}")
        filler = [fill] * (width - count)
        full[name] = filler + full[name] if side == "left" else full[name] + filler
    return full
