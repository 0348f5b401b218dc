"""Routing Transformer: heads that choose by content whom to attend to find what heads with a fixed choice can't."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lengthwise.contract import SequenceModule
from lengthwise.mixers.routing_attention import RoutingAttention, normed
from lengthwise.models.language_model import LanguageModel
from lengthwise.systems.experiments import OnStep, initialise_by_width, progress
from lengthwise.systems.system import Figure, Run, System, at_least, at_most, of_seeds, reported
from lengthwise.tasks.slots import SlotRecall
from lengthwise.tasks.task import Example
from lengthwise.training.fit import fit

SYSTEM = System(
    key="routing-transformer",
    title="Efficient Content-Based Sparse Attention with Routing Transformers",
    arxiv="2003.05997",
    parts=["mixers.routing_attention", "caches.routed", "ops.clustering", "ops.gathered_attention"],
    claim="heads that attend inside clusters learned by k-means use far context at a cost of L^1.5, and do better than"
    " local heads and than clusters that aren't of content",
    expression="22*(attention(heads=8, window=512) + swiglu)"
    " + routing_attention(heads=8, routing_heads=2, clusters=16, members=512, window=512) + swiglu",
)

TASK = SlotRecall()
DIM, BATCH, STEPS = 64, 16, 1500
EMBEDDING = 2.0
"""Embeddings begin as N(0, 2²): what a token is then stays louder in layer 2 than what layer 1 adds to it."""

SIZES = "heads=4, routing_heads=2, clusters=16, members=32, window=32, decay=0.99"
LOCAL = "attention(heads=4, window=32)"
ARMS = {
    "routing": f"{LOCAL} + mlp + routing({SIZES}, commitment=1e-3) + mlp",
    "local": f"2*({LOCAL} + mlp)",
    "hashed": f"{LOCAL} + mlp + hashed({SIZES}, commitment=0.0) + mlp",
}
"""The second layer alone differs. Two local layers reach 62 tokens back, and every slot lies at least 97 back."""


class HashedAttention(RoutingAttention):
    """The same heads with clusters that are a fixed random hash of the position."""

    hashes: Tensor

    def begin_centroids(self) -> None:
        """Hashes beside the centroids, which go unused."""
        super().begin_centroids()
        self.register_buffer("hashes", torch.randint(self.clusters, (TASK.length, self.heads)))

    def assign(self, z: Float[Tensor, "batch length heads head_dim"]) -> Int[Tensor, "batch length heads"]:
        """The hash of each place of the call, which has to be a whole sequence."""
        return self.hashes[: z.shape[1]].expand(z.shape[0], -1, -1)


PARTS: dict[str, type[SequenceModule]] = {"routing": RoutingAttention, "hashed": HashedAttention}


@dataclass(frozen=True)
class Found:
    """What one trained model does on fresh examples.

    accuracy: at the prompts. together: share of the prompts whose slot some routing head sees, because it is one of the
    last members of the prompt's cluster; entries: logits of a routing head over those of a dense causal one. None for a
    model without routing heads.
    """

    accuracy: float
    together: float | None = None
    entries: float | None = None


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Recall by content from at least 97 tokens back: routing heads, local heads, and clusters hashed by position.

    As published in all but size, with clusters of the nearest centroid, which are exactly causal, in place of the
    length-wide choice. λ is 0.99 because the run is short. Both baselines are trained with the first seed only, to
    finish in minutes. All linear maps begin as N(0, 1 / inputs), embeddings as N(0, 4). The check on a trained sentence
    model's embeddings is left out: its weights can't be had everywhere.
    """
    jobs = [(name, seed) for seed in run.seeds for name in ARMS if name == "routing" or seed == run.seeds[0]]
    on_step = progress(run, len(jobs) * STEPS)
    found: dict[str, list[Found]] = {name: [] for name in ARMS}
    for name, seed in jobs:
        found[name].append(measure(train(name, seed, on_step(f"{name}, seed {seed}"))))
    accuracy = {name: statistics.median(one.accuracy for one in many) for name, many in found.items()}
    over = of_seeds(run.seeds)
    ours, best = accuracy["routing"], max(accuracy["local"], accuracy["hashed"])
    note = f"local heads {accuracy['local']:.3f}, hashed positions {accuracy['hashed']:.3f}"
    yield at_least(f"recall accuracy with routing heads ({over})", ours, 0.5, note=f"guessing: {TASK.chance:g}")
    claimed = "perplexity 15.8 with routing, 18.3 local (WikiText-103)"
    yield at_least(f"that over the best without ({over})", ours / best, 2.0, claimed, note)
    middle = {
        name: [statistics.median(getattr(one, field) for one in found[name]) for field in ("together", "entries")]
        for name in ("routing", "hashed")
    }
    yield at_most(
        f"logits of a routing head over those of a dense head, {TASK.length} tokens", middle["routing"][1], 0.3, "L^1.5"
    )
    for name, title in {"routing": "routing", "hashed": "hashed positions"}.items():
        yield reported(f"share of prompts that see their slot, {title} ({over})", middle[name][0])


def train(name: str, seed: int, on_step: OnStep | None = None) -> LanguageModel:
    """One of `ARMS`, trained."""
    torch.manual_seed(seed)
    position = f"learned(length={TASK.length})"
    model = LanguageModel(TASK.vocab_size, DIM, ARMS[name], position=position, norm="layernorm", parts=PARTS)
    initialise_by_width(model)
    nn.init.normal_(model.embedding.weight, std=EMBEDDING)
    fit(
        model,
        TASK.batches(BATCH, seed=seed),
        steps=STEPS,
        learning_rate=1e-3,
        warmup=min(50, STEPS),
        loss=TASK.objective,
        on_step=on_step,
    )
    return model.eval()


@torch.no_grad()
def measure(model: LanguageModel, examples: int = 128) -> Found:
    """Accuracy, and what the routing heads of a model see."""
    example = TASK.batch(examples, seed=1_000_003)
    inputs: list[Tensor] = []
    parts = [part for part in model.modules() if isinstance(part, RoutingAttention)]
    hooks = [part.q_proj.register_forward_hook(lambda _part, _inputs, output: inputs.append(output)) for part in parts]
    try:
        accuracy = TASK.metric(TASK.logits(model, example), example)
    finally:
        for hook in hooks:
            hook.remove()
    if not parts:
        return Found(accuracy)
    (part,), (queries,) = parts, inputs
    sees = visible(part.assign(normed(queries.unflatten(-1, (part.heads, -1)))), part.members)
    dense = TASK.length * (TASK.length + 1) / 2
    return Found(accuracy, together(sees, example), float(sees.sum((2, 3)).float().mean()) / dense)


def visible(clusters: Int[Tensor, "batch length heads"], members: int) -> Bool[Tensor, "batch heads length length"]:
    """Whom each token sees: the last members of its cluster up to itself, written out."""
    c = clusters.transpose(1, 2)
    alike = (c[..., :, None] == c[..., None, :]).tril()
    later = alike.sum(-1, keepdim=True) - alike.cumsum(-1)
    return alike & (later < members)


def together(sees: Bool[Tensor, "batch heads length length"], example: Example) -> float:
    """Share of the prompts whose slot some head sees."""
    tokens = example.tokens
    kind = torch.where(example.mask, tokens - TASK.prompts.start, -1)
    slot = torch.where(tokens < TASK.prompts.start, tokens // TASK.values, -2)
    asks = kind[:, :, None] == slot[:, None]
    return float((sees.any(1) & asks).any(-1)[example.mask].float().mean())
