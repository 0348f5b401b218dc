"""Benchmarks of Mamba as a model: a training step against a Transformer and against transformers' Mamba."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, seconds
from lengthwise.models.language_model import LanguageModel

DIM, BATCH, VOCABULARY = 256, 2, 256


def mamba() -> Iterator[Row]:
    """The model's training step at two lengths, and the step of transformers' model."""
    for length in (1024, 4096):
        yield against_a_transformer(length)
    if importlib.util.find_spec("transformers") is not None:
        yield against_transformers(512)


def against_a_transformer(length: int, layers: int = 4) -> Row:
    """A training step of Mamba and of a Transformer with as many parameters."""
    torch.manual_seed(0)
    ours = LanguageModel(VOCABULARY, DIM, f"{layers}*mamba", position="none")
    # Half as many layers, whose MLP is a little wider than usual to make up for the rest of Mamba's parameters.
    theirs = LanguageModel(VOCABULARY, DIM, f"{layers // 2}*(attention + mlp(hidden={hidden(ours, layers // 2)}))")
    steps = {"mamba": training_step(ours, length), "transformer": training_step(theirs, length)}
    times = interleaved(steps, repeats=5)
    sizes = " and ".join(f"{parameters(m) / 1e6:.2f}M" for m in (ours, theirs))
    return Row(
        f"Mamba training step, {layers} layers of {DIM}, batch {BATCH}, L {length}",
        times["mamba"],
        {"a Transformer of equal parameters": times["transformer"] / times["mamba"]},
        note=f"parameters: {sizes}",
    )


def hidden(model: nn.Module, layers: int) -> int:
    """The MLP's width at which a Transformer of so many layers has as many parameters as `model`."""
    narrow, wide = (
        parameters(LanguageModel(VOCABULARY, DIM, f"{layers}*(attention + mlp(hidden={size}))"))
        for size in (DIM, 2 * DIM)
    )
    return round(DIM + (parameters(model) - narrow) * DIM / (wide - narrow))


def against_transformers(length: int, layers: int = 2, dim: int = DIM) -> Row:
    """A training step of ours and of `MambaForCausalLM`, whose backward grows with the square of the length on the
    processor; it therefore runs once."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    ours = training_step(LanguageModel(VOCABULARY, dim, f"{layers}*mamba", position="none", tie=True), length)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=dim, num_hidden_layers=layers, use_cache=False)
    theirs = training_step(MambaForCausalLM(config), length)
    own = interleaved({"ours": ours}, repeats=5)["ours"]
    return Row(
        f"Mamba training step, {layers} layers of {dim}, batch {BATCH}, L {length}",
        own,
        {"transformers": seconds(theirs) / own},
        note="transformers' model ran once",
    )


def training_step(model: nn.Module, length: int) -> Callable[[], None]:
    """A function that computes the gradient of the next-token loss on the same random tokens."""
    tokens = torch.randint(VOCABULARY, (BATCH, length + 1))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model(tokens[:, :-1])
        logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return step


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
