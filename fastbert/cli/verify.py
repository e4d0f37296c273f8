"""``fastbert verify``: this machine's results against float64, layer by layer."""

from __future__ import annotations

import argparse
import json
import warnings
from typing import TYPE_CHECKING, Any

from fastbert.cli.common import (
    add_common_options,
    add_model_options,
    load_encoder,
    signals_deferred,
)
from fastbert.cli.outputs import stdout_bytes, to_bytes

if TYPE_CHECKING:
    from fastbert.cli.parity import Bar, Difference, LayerParity
    from fastbert.sentence_encoder import SentenceEncoder

EPILOG = """\
The texts are this package's own documentation. Every layer's states are compared with those of
the same checkpoint in float64 on the plain-torch reference; where transformers is installed, that
reference is compared with transformers' own float64, and the tokens with its tokenizer's. Only the
sentence vectors (of length 1), the reference and the tokens are judged:
  float32            cosine >= 0.999999 and max abs <= 1e-05
  bfloat16, float16  cosine mean >= 0.9999, min >= 0.9995
  reference          max abs <= 1e-10 from transformers at every layer
  tokens             identical
Exit code 1 if one of them is missed.
"""

Report = dict[str, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "verify",
        help="check this machine's results against float64, layer by layer",
        description="Check this machine's results against float64, layer by layer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_model_options(parser, positional=True)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 if every bar is met, else 1."""
    report = measure(args)
    out = stdout_bytes()
    text = json.dumps(report, indent=2, ensure_ascii=False) if args.json else render(report)
    out.write(to_bytes(text + "\n"))
    return 0 if report["passed"] else 1


def measure(args: argparse.Namespace) -> Report:
    """Return every figure of the comparison under its name, and whether all bars are met."""
    from fastbert.cli.corpus import sample_texts

    with signals_deferred():
        from fastbert.cli.parity import BARS, REFERENCE_BAR, transformers_installed
    encoder = load_encoder(args)
    exact = load_exact(args)
    texts = sample_texts()
    ids = exact.tokenizer.encode_ids(texts, max_length=exact.max_length).ids
    theirs = _transformers(exact, texts, ids) if transformers_installed() else None
    layers = _layers(args, encoder, exact, ids, None if theirs is None else theirs[0])
    vectors = vector_difference(encoder, exact, texts)
    dtype = str(encoder.model.dtype).removeprefix("torch.")
    bar = BARS[dtype]
    passed = {"vectors": vectors.within(bar)}
    if theirs is not None:
        passed["reference"] = layers.reference.max_abs <= REFERENCE_BAR
        passed["tokens"] = theirs[1] == len(ids)
    return {
        "model": str(encoder.settings.transformer_directory),
        "dtype": dtype,
        "device": str(encoder.device),
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "shortest": min(map(len, ids)),
        "longest": max(map(len, ids)),
        "layers": [difference.as_dict() for difference in layers.layers],
        "engine": layers.engine.as_dict() if layers.engine.rows else None,
        "vectors": vectors.as_dict(),
        "bar": _bar(bar),
        "transformers": None
        if theirs is None
        else {
            "reference_max_abs": layers.reference.max_abs,
            "reference_bar": REFERENCE_BAR,
            "texts_tokenised_alike": theirs[1],
        },
        "checks": passed,
        "passed": all(passed.values()),
    }


def load_exact(args: argparse.Namespace) -> SentenceEncoder:
    """Return the encoder that the options ask for, in float64 on the CPU."""
    exact = argparse.Namespace(**{**vars(args), "dtype": "float64", "device": "cpu"})
    return load_encoder(exact)


def vector_difference(
    encoder: SentenceEncoder, exact: SentenceEncoder, texts: list[str]
) -> Difference:
    """Return how far the normalised vectors of ``texts`` are from those in float64."""
    from fastbert import ops
    from fastbert.cli.parity import Difference

    difference = Difference()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the longest texts are cut on purpose
        got = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        with ops.use("reference"):
            want = exact.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    difference.add(got, want)
    return difference


def _layers(
    args: argparse.Namespace,
    encoder: SentenceEncoder,
    exact: SentenceEncoder,
    ids: list[list[int]],
    theirs: Any | None,
) -> LayerParity:
    from fastbert.cli.parity import layer_parity
    from fastbert.engine import Engine

    on_cpu = encoder.device.type == "cpu"  # where the engine serves
    engine = Engine(encoder.model, threads=args.threads) if on_cpu else None
    return layer_parity(ids, encoder.model, exact.model, engine, theirs)


def _transformers(
    exact: SentenceEncoder, texts: list[str], ids: list[list[int]]
) -> tuple[Any, int]:
    """Return transformers' float64 model, and how many texts its tokenizer reads as ours does."""
    import torch

    from fastbert.cli.parity import load_transformers, transformers_ids

    directory = exact.settings.transformer_directory
    model = load_transformers(directory, torch.float64)
    other = transformers_ids(directory, texts, exact.max_length)
    return model, sum(a == b for a, b in zip(ids, other, strict=True))


def _bar(bar: Bar) -> dict[str, float | None]:
    return {
        "cosine_mean": bar.cosine_mean,
        "cosine_min": bar.cosine_min,
        "max_abs": bar.max_abs,
    }


def render(report: Report) -> str:
    """Return the report as text: what was compared, a line a layer, the verdict."""
    lines = [
        f"model    {report['model']}",
        f"path     {report['dtype']} on {report['device']}",
        f"texts    {report['texts']}, {report['tokens']} tokens, "
        f"{report['shortest']} to {report['longest']} each",
        "",
        f"{'against float64':<18}{'max abs':>10}{'1 - cos mean':>15}{'1 - cos max':>15}",
    ]
    names = ["embeddings", *(f"layer {i}" for i in range(1, len(report["layers"])))]
    rows = list(zip(names, report["layers"], strict=True))
    if report["engine"] is not None:
        rows.append(("engine", report["engine"]))
    rows.append(("sentence vectors", report["vectors"]))
    lines += [
        f"{name:<18}{row['max_abs']:>10.1e}"
        f"{1 - row['cosine_mean']:>15.1e}{1 - row['cosine_min']:>15.1e}"
        for name, row in rows
    ]
    return "\n".join([*lines, "", *_verdicts(report)])


def _verdicts(report: Report) -> list[str]:
    bar, checks = report["bar"], report["checks"]
    limit = "" if bar["max_abs"] is None else f", max abs <= {bar['max_abs']:g}"
    told = {
        "vectors": f"sentence vectors: cosine mean >= {bar['cosine_mean']}, "
        f"min >= {bar['cosine_min']}{limit}"
    }
    theirs = report["transformers"]
    if theirs is not None:
        told["reference"] = (
            f"float64 reference from transformers: max abs {theirs['reference_max_abs']:.1e} "
            f"<= {theirs['reference_bar']:g}"
        )
        told["tokens"] = (
            f"tokens as transformers': {theirs['texts_tokenised_alike']} of {report['texts']} texts"
        )
    lines = [f"{'passed' if checks[name] else 'FAILED'}   {text}" for name, text in told.items()]
    if theirs is None:
        lines.append("absent   transformers: the reference was not compared with it")
    return lines
