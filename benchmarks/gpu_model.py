"""Whole encoders on a device: parity with float64, graphs against plain calls, and peers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import gpu_stage as stages
from benchmarks.harness import Candidate, Case, as_data, measure
from benchmarks.peers import PackedPeer, PaddedPeer, Peer, worst_row
from benchmarks.workload import BATCH_SIZE, Batch, Workload, mixed_lengths
from fastbert import BertConfig, BertModel, ops, pack
from fastbert.graphs import GraphRunner
from fastbert.ops.determinism import deterministic

BASELINE = "transformers sdpa"
_ALONE = "encoder, a text alone and in a batch, bit for bit"
BOUNDS = {"float32": 5e-5, "bfloat16": 1e-1, "float16": 2e-2}
"""Largest ‖h − h₆₄‖ / ‖h₆₄‖ of a token that counts as right."""

TINY: dict[str, Any] = {"vocab_size": 130, "hidden_size": 32, "num_hidden_layers": 1,
                        "num_attention_heads": 1, "intermediate_size": 64,
                        "max_position_embeddings": 64}  # fmt: skip
WORKLOADS: dict[str, list[int]] = {
    "1x32": [32],
    "32x128": [128] * 32,
    "8x512": [512] * 8,
    "mixed": mixed_lengths(128).tolist(),
}
DRY_WORKLOADS: dict[str, list[int]] = {"mixed": [9, 1, 4]}


def encoder_parity(stage: stages.Stage) -> list[stages.Row]:
    """Hidden states in each precision against float64, and graphs against plain calls."""
    rows = []
    for dtype in stage.dtypes:
        torch.manual_seed(0)
        config = BertConfig(**(TINY if stage.dry else {}), initializer_range=0.1)
        model = BertModel(config, add_pooling_layer=False).eval().to(stage.device, dtype)
        rows.append(stages.attempt("encoder", dtype, partial(_encoder, model, stage)))
        rows.append(stages.attempt(_ALONE, dtype, partial(_alone, model, stage)))
        rows.append(stages.attempt("graphs", dtype, partial(_graphs, model, stage)))
    return rows


def _encoder(model: BertModel, stage: stages.Stage) -> stages.Row:
    """Held to the reference in float64 and to the reference in the same dtype."""
    packed = pack(_ids([1, 5, 17] if stage.dry else [1, 17, 128, 257, 512], model.config))
    packed = packed.to(stage.device)
    with torch.no_grad():
        ours = model.encode(packed).double()
        with stages.uncounted(), ops.use("reference"):
            plain = model.encode(packed).double()
            before = model.dtype
            truth = model.double().encode(packed)
            model.to(before)
    error, allowed = float((ours - truth).abs().max()), float((plain - truth).abs().max())
    ulp = torch.finfo(before).eps * float(truth.abs().max())
    share = error / (2.0 * allowed + ulp)  # errors of many ops meet: the factor of gradients
    right = math.isfinite(error) and share <= 1
    return {"state": stages.PASSED if right else stages.FAILED, "of_allowed": share}


def _alone(model: BertModel, stage: stages.Stage) -> stages.Row:
    """Whether a text has the same bits alone as in a batch, under `deterministic`."""
    ids = _ids([3, 18, 1] if stage.dry else [64, 1, 128, 17, 300, 512, 40], model.config)
    with deterministic(), torch.no_grad():
        together = model.encode(pack(ids).to(stage.device))
        alone = [model.encode(pack([text]).to(stage.device)) for text in ids]
    pairs = zip(together.split([len(text) for text in ids]), alone, strict=True)
    differing = sum(not torch.equal(a, b) for a, b in pairs)
    detail = f"{differing} of {len(ids)} texts differ" if differing else ""
    return {"state": stages.FAILED if differing else stages.PASSED, "detail": detail}


def _graphs(model: BertModel, stage: stages.Stage) -> stages.Row:
    if stage.dry:
        reason = "needs CUDA: tests/test_graphs.py replays on the CPU, with a stand-in recorder"
        return {"state": stages.NOT_RUN, "detail": reason}
    runner, worst = GraphRunner(model), 0.0
    batches = [pack(_ids(n, model.config)) for n in ([1], [100, 28], [64] * 16, [512, 3, 300], [9])]
    kept = [(packed, runner(packed)) for packed in (*batches, *batches)]
    for packed, hidden in kept:  # after all others have run: nothing may have been overwritten
        with torch.no_grad():
            plain = model.encode(packed.to(stage.device)).double()
        distance = (hidden.double() - plain).norm(dim=-1) / plain.norm(dim=-1)
        worst = max(worst, float(distance.max()))
    bound = BOUNDS[str(model.dtype).removeprefix("torch.")]
    state = stages.PASSED if worst <= bound and len(runner) else stages.FAILED
    return {"state": state, "of_allowed": worst / bound, "detail": f"{len(runner)} graphs"}


def beside_peers(stage: stages.Stage, seconds: float) -> list[stages.Row]:
    """tokens/s of every candidate in every workload and precision, verified first."""
    rows: list[stages.Row] = []
    workloads = DRY_WORKLOADS if stage.dry else WORKLOADS
    with _directory(stage) as directory:
        config = BertConfig.from_pretrained(directory)
        truth_model = _peer(directory, stage, torch.float64, "eager")
        for dtype in stage.dtypes:
            name = str(dtype).removeprefix("torch.")
            peers, absent = _peers(directory, stage, dtype)
            rows += [
                {"what": peer, "dtype": name, "state": stages.NOT_RUN, "detail": reason}
                for peer, reason in absent.items()
            ]
            for label, lengths in workloads.items():
                ids = _ids(lengths, config)
                starts = range(0, len(ids), BATCH_SIZE)
                work = Workload(label, tuple(ids[i : i + BATCH_SIZE] for i in starts))
                rows += _case(work, peers, truth_model, config, stage, name, seconds)
    return rows


def _case(
    work: Workload,
    peers: dict[str, Peer],
    truth_model: Any,
    config: BertConfig,
    stage: stages.Stage,
    dtype: str,
    seconds: float,
) -> list[stages.Row]:
    """A row a candidate; what can't run at all is left out of the rounds."""
    truth = _truth(truth_model, work, stage)
    found, rows = [], []
    for peer_name, peer in peers.items():
        one = _candidate(peer_name, peer, work, truth, BOUNDS[dtype], stage)
        row = stages.attempt(peer_name, None, partial(_once, one), _is_ours(peer_name))
        if row["state"] == stages.PASSED:
            found.append(one)
        else:
            rows.append({**row, "dtype": dtype, "workload": work.name})
    case = Case(work.name, tuple(found), BASELINE, work.work(config))
    with ops.use("triton") if any(_is_ours(c.name) for c in found) else nullcontext():
        rounds = 2 if stage.dry else 7
        result = measure(case, seconds=0 if stage.dry else 10 * seconds, min_rounds=rounds)
    for data in as_data(result)["candidates"]:
        detail = "" if data["right"] else f"error {data['error']}, allowed {data['bound']}"
        rows.append({"what": data["name"], "dtype": dtype, "workload": work.name, "detail": detail,
                     "state": stages.PASSED if data["right"] else stages.FAILED,
                     "work": result.work, **data})  # fmt: skip
    return rows


def _is_ours(name: str) -> bool:
    return name.startswith("fastbert")


def _once(candidate: Candidate) -> stages.Row:
    candidate.run()
    return {"state": stages.PASSED}


def _candidate(
    name: str, peer: Peer, work: Workload, truth: Any, bound: float, stage: stages.Stage
) -> Candidate:
    prepared = [_on_device(peer.prepare(batch), stage.device) for batch in work.batches]

    def run() -> list[Tensor]:
        with torch.inference_mode():
            hidden = [peer.run(batch) for batch in prepared]
            stage.wait()
            return hidden

    def error(hidden: list[Tensor]) -> float:
        pairs = zip(prepared, hidden, strict=True)
        rows = torch.cat([peer.rows(batch, states) for batch, states in pairs])
        return worst_row(rows.double().cpu().numpy(), truth)

    return Candidate(name, run, error, bound)


def _on_device(prepared: Any, device: torch.device) -> Any:
    if isinstance(prepared, dict):
        return {name: value.to(device) for name, value in prepared.items()}
    return prepared.to(device)


def _peers(
    directory: Path, stage: stages.Stage, dtype: torch.dtype
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Candidates, and why others are none."""
    absent: dict[str, str] = {}
    peers: dict[str, Peer] = {"fastbert": PackedPeer(_fastbert(directory, stage, dtype))}
    if stage.dry:
        absent["fastbert graphs"] = "needs CUDA"
    else:
        model = _fastbert(directory, stage, dtype)
        model.runner = GraphRunner(model)
        peers["fastbert graphs"] = PackedPeer(model)
    sdpa = _peer(directory, stage, dtype, "sdpa")
    peers[BASELINE] = PaddedPeer(sdpa)
    # Without a C++ or Triton build of every shape, the dry mode traces alone.
    compiled: Callable[..., Any] = torch.compile(
        _peer(directory, stage, dtype, "sdpa"), backend="eager" if stage.dry else "inductor"
    )
    peers["transformers sdpa, torch.compile"] = PaddedPeer(compiled)
    flash = "transformers flash"
    if find_spec("flash_attn") is None:
        absent[flash] = "flash_attn is not installed"
    elif dtype == torch.float32 or stage.dry:
        absent[flash] = "takes 16-bit tensors on a GPU"
    else:
        peers[flash] = PaddedPeer(_peer(directory, stage, dtype, "flash_attention_2"))
    return peers, absent


def _fastbert(directory: Path, stage: stages.Stage, dtype: torch.dtype) -> BertModel:
    model = BertModel.from_pretrained(directory, dtype=dtype, add_pooling_layer=False)
    return model.to(stage.device).eval()


def _peer(directory: Path, stage: stages.Stage, dtype: torch.dtype, attention: str) -> Any:
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(str(directory), dtype=dtype, attn_implementation=attention)
    return model.to(stage.device).eval()


def _truth(model: Any, work: Workload, stage: stages.Stage) -> Any:
    """(T, C) float64 hidden states, text by text: no padding."""
    with torch.inference_mode():
        texts = [torch.tensor([text], device=stage.device) for b in work.batches for text in b]
        rows = [model(input_ids=text).last_hidden_state[0] for text in texts]
    return torch.cat(rows).cpu().numpy()


def _ids(lengths: list[int], config: BertConfig) -> Batch:
    rng = np.random.default_rng(23)
    return [rng.integers(1, config.vocab_size, n).tolist() for n in lengths]


@contextmanager
def _directory(stage: stages.Stage) -> Iterator[Path]:
    """A model of BERT-base's shape, or a tiny one, with random weights."""
    from transformers import BertConfig as PeerConfig
    from transformers import BertModel as PeerModel

    with tempfile.TemporaryDirectory() as name:
        torch.manual_seed(0)
        PeerModel(PeerConfig(**(TINY if stage.dry else {}))).save_pretrained(name)
        yield Path(name)
