"""DeltaNet: a memory that replaces what it holds for a key recalls the latest value, where one that adds can't."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lengthwise.measure import interleaved
from lengthwise.mixers.deltanet import DeltaNet, Heads
from lengthwise.models.language_model import LanguageModel
from lengthwise.ops.delta_rule import delta_rule
from lengthwise.ops.linear_attention import linear_attention
from lengthwise.systems.system import Figure, Run, System, at_least, reported
from lengthwise.tasks.recall import AssociativeRecall, Overwriting
from lengthwise.tasks.task import Task
from lengthwise.training.fit import fit

SYSTEM = System(
    key="deltanet",
    title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    arxiv="2406.06484",
    parts=["mixers.deltanet", "ops.delta_rule", "tasks.overwriting"],
    claim="writing only the error of the memory recalls overwritten keys, and trains in parallel over chunks",
    expression="24*(deltanet + swiglu)",
)

STEPS = 500
RECALL_STEPS = 600


class AdditiveMemory(DeltaNet):
    """DeltaNet's block around an additive memory: S_t = S_{t-1} + φ(k_t) v_tᵀ, o_t = S_tᵀ φ(q_t) / (z_t · φ(q_t)).

    z_t is the sum of the φ(k), φ(x) = elu(x) + 1. Projections, convolution, norm and the size of the state, but for z,
    are DeltaNet's; β isn't used.
    """

    def recall(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        rates: Float[Tensor, "batch length heads"],  # noqa: ARG002
        memory: Float[Tensor, "batch heads head_dim values"] | None,
        starts: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Heads, Float[Tensor, "batch heads head_dim values"]]:
        """The mean of all values written, weighted by φ(q) · φ(k), and S with z as its last column."""
        q, k, counted = functional.elu(q) + 1, functional.elu(k) + 1, functional.pad(v, (0, 1), value=1.0)
        sums, memory = linear_attention(q, k, counted, None, memory, starts)
        return sums[..., :-1] / (sums[..., -1:] + 1e-6), memory

    def state_nbytes(self, length: int) -> int:
        """DeltaNet's, and z."""
        return super().state_nbytes(length) + self.dim * self.norm.weight.element_size()


@SYSTEM.experiment
def reproduce(run: Run) -> Iterator[Figure]:
    """Recall with overwriting against an additive memory of the same size; then the speed of the chunked form."""
    task = Overwriting()
    jobs = [(mixer, seed) for seed in run.seeds for mixer in ("deltanet", "additive")]
    accuracies: dict[str, list[float]] = {"deltanet": [], "additive": []}
    for done, (mixer, seed) in enumerate(jobs):
        run.progress(f"{mixer}, seed {seed}", 0.7 * done / len(jobs))
        accuracies[mixer].append(accuracy(task, mixer, seed, STEPS))
    delta, additive = (statistics.median(values) for values in accuracies.values())
    over = f"median of {len(run.seeds)} seeds"
    yield at_least(f"accuracy of the latest value, DeltaNet ({over})", delta, 0.95, claimed="perfect on MQAR")
    yield at_least(
        f"the same above an additive memory's ({over})",
        delta - additive,
        0.15,
        claimed="additive memories fail where DeltaNet is perfect",
        note=f"additive {additive:.3f}, chance {task.chance:.3f}",
    )
    run.progress("chunked against one step at a time", 0.7)
    yield at_least(
        "times as fast in chunks of 64 as one step at a time, forward, L 2048, 4 heads of 32",
        chunked_speedup(),
        5,
        claimed="more than 20 to 30 times on a GPU, growing with length",
    )
    run.progress("recall of many different keys", 0.75)
    many = AssociativeRecall(length=128, pairs=24, keys=64, values=64)
    yield reported(
        f"accuracy on associative recall, 24 of 64 keys, after {RECALL_STEPS} steps, DeltaNet (one seed)",
        accuracy(many, "deltanet", run.seeds[0], RECALL_STEPS),
        claimed="perfect, after far more steps",
        note=f"chance {many.chance:.3f}",
    )


def accuracy(task: Task, mixer: str, seed: int, steps: int) -> float:
    """Of two layers of width 32 with one head, on 256 fresh sequences after `steps` of 32."""
    torch.manual_seed(seed)
    model = LanguageModel(
        vocab_size=task.vocab_size,
        dim=32,
        layers=f"2*({mixer}(heads=1) + mlp)",
        position="none",
        norm="layernorm",
        parts={"additive": AdditiveMemory},
    )
    batches = task.batches(32, seed=seed)
    fit(model, batches, steps=steps, learning_rate=3e-3, warmup=50, weight_decay=0.01, loss=task.objective)
    return task.score(model.eval())


@torch.no_grad()
def chunked_speedup(length: int = 2048, heads: int = 4, dim: int = 32) -> float:
    """How many times as fast as its definition the chunked delta rule runs."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, heads, dim) for _ in range(3))
    k, beta = functional.normalize(k, dim=-1), torch.rand(1, length, heads)
    times = interleaved(
        {
            "chunks": lambda: delta_rule(q, k, v, beta, chunk=64, backend="torch"),
            "steps": lambda: delta_rule(q, k, v, beta, backend="reference"),
        }
    )
    return times["steps"] / times["chunks"]
