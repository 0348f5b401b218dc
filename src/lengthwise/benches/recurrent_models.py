"""Benchmarks of recurrent models as a whole: training steps against a Transformer, against transformers' models, and in
half precision."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lengthwise.benches.row import Row
from lengthwise.measure import interleaved, seconds
from lengthwise.mixers.mamba2 import Mamba2
from lengthwise.models.language_model import LanguageModel

DIM, BATCH, VOCABULARY = 256, 2, 256


def mamba() -> Iterator[Row]:
    """The model's training step at two lengths, and the step of transformers' model."""
    for length in (1024, 4096):
        yield against_a_transformer(length)
    yield from against_transformers("mamba", 512)


def mamba2() -> Iterator[Row]:
    """The model's training step in half precision, and the step of transformers' model."""
    yield in_half_precision("mamba2", 512)
    yield from against_transformers("mamba2", 512)


def rwkv() -> Iterator[Row]:
    """RWKV-4's training step in half precision, and the step of transformers' model."""
    yield in_half_precision("rwkv", 512)
    yield from against_transformers("rwkv", 512)


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


@dataclass(frozen=True)
class Peer:
    """A model that transformers has too: what it builds, from the number of layers and the width, and our layers."""

    build: Callable[[int, int], Any]
    layers: str
    norm: str = "rmsnorm"

    def ours(self, count: int, dim: int, tie: bool = False) -> LanguageModel:
        """Our model of so many layers."""
        layers = self.layers.format(count=count)
        return LanguageModel(VOCABULARY, dim, layers, position="none", norm=self.norm, tie=tie)


def against_transformers(name: str, length: int, layers: int = 2, dim: int = DIM) -> Iterator[Row]:
    """A training step of ours and of transformers' model of the same sizes, where it is installed. Its backward grows
    with the square of the length on the processor, so it runs once."""
    if importlib.util.find_spec("transformers") is None:
        return
    torch.manual_seed(0)
    peer = PEERS[name].build(layers, dim)
    model = PEERS[name].ours(layers, dim, peer.config.tie_word_embeddings)
    ours, theirs = training_step(model, length), training_step(peer, length)
    own = interleaved({"ours": ours}, repeats=5)["ours"]
    yield Row(
        f"{name} training step, {layers} layers of {dim}, batch {BATCH}, L {length}",
        own,
        {"transformers": seconds(theirs) / own},
        note="transformers' model ran once",
    )


def transformers_mamba(layers: int, dim: int) -> Any:
    """`MambaForCausalLM` with random weights."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=dim, num_hidden_layers=layers, use_cache=False)
    )


def transformers_mamba2(layers: int, dim: int) -> Any:
    """`Mamba2ForCausalLM` with random weights and the sizes that ours has by default."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    mixer = Mamba2(dim)
    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_heads=mixer.heads,
        head_dim=mixer.head_dim,
        state_size=mixer.state_dim,
        n_groups=mixer.groups,
        use_cache=False,
    )
    return Mamba2ForCausalLM(config)


def transformers_rwkv(layers: int, dim: int) -> Any:
    """`RwkvForCausalLM` with random weights. It takes two layers at least, and no gradient where it keeps a state."""
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=dim, num_hidden_layers=layers, rescale_every=0, use_cache=False
    )
    return RwkvForCausalLM(config)


PEERS = {
    "mamba": Peer(transformers_mamba, "{count}*mamba"),
    "mamba2": Peer(transformers_mamba2, "{count}*mamba2"),
    "rwkv": Peer(transformers_rwkv, "layernorm + {count}*(rwkv + rwkv_channels)", "layernorm"),
}
"""What is measured against transformers."""


def in_half_precision(name: str, length: int, layers: int = 2, dim: int = 512) -> Row:
    """A training step under bfloat16 autocast and one in float32."""
    torch.manual_seed(0)
    step = training_step(PEERS[name].ours(layers, dim), length)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    times = interleaved({"bfloat16": half, "float32": step}, repeats=7)
    return Row(
        f"{name} training step in bfloat16, {layers} layers of {dim}, batch {BATCH}, L {length}",
        times["bfloat16"],
        {"float32": times["float32"] / times["bfloat16"]},
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
