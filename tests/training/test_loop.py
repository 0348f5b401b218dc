import errno
import itertools
import json
import math
import os
import signal

import pytest
import torch

from lengthwise.errors import InputError
from lengthwise.models import LanguageModel, load
from lengthwise.models.files import read_tensors
from lengthwise.options.training import to_mapping
from lengthwise.training import checkpoint, loop, snapshot
from lengthwise.training.batches import rows_of_steps
from lengthwise.training.checkpoint import BEST, LAST, linked
from lengthwise.training.failure import Diverged
from lengthwise.training.loop import Trainer, due
from tests.training.runs import LAYERS, corpus, metrics, options, trainer

KINDS = [{}, {"packing": "cut"}, {"packing": "greedy"}, {"carry_state": True}]
"""How rows are filled."""


def losses(run):
    return [r["loss"] for r in metrics(run) if r["kind"] == "train"]


@pytest.mark.parametrize("kind", KINDS, ids=["windows", "cut", "greedy", "streams"])
def test_accumulated_parts_give_the_steps_of_the_whole_batch(kind, tmp_path):
    torch.manual_seed(0)
    weights = LanguageModel(16, 16, LAYERS).double().state_dict()
    found = []
    for accumulate in (1, 4):
        model = LanguageModel(16, 16, LAYERS).double()
        model.load_state_dict(weights)
        run = tmp_path / str(accumulate)
        assert trainer(run, model, accumulate=accumulate, **kind).fit()
        found.append(losses(run))
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def test_a_carried_state_makes_the_steps_one_long_sequence(tmp_path):
    torch.manual_seed(0)
    data = corpus((200,))
    model = LanguageModel(16, 16, LAYERS).double()
    chunks = trainer(tmp_path, model, data, carry_state=True, learning_rate=1e-300, weight_decay=0.0, steps=4, batch=2)
    assert chunks.fit()
    stream = torch.stack([data.cut(0, 33), data.cut(100, 133)])
    logits, _ = model(stream[:, :-1])
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), stream[:, 1:], reduction="none")
    whole = [part.mean().item() for part in nats.split(8, dim=1)]
    assert losses(tmp_path) == pytest.approx(whole, rel=1e-10)


def test_a_state_that_grows_without_end_is_not_carried(tmp_path):
    model = LanguageModel(16, 16, LAYERS)
    model.growth = "linear"
    with pytest.raises(InputError, match="can't be carried"):
        trainer(tmp_path, model, carry_state=True)


@pytest.mark.parametrize("kind", [*KINDS, {"carry_state": True, "accumulate": 2}])
def test_a_resumed_run_is_the_run_that_was_never_stopped_bit_for_bit(kind, tmp_path):
    assert trainer(tmp_path / "whole", **kind).fit()
    first = trainer(tmp_path / "parts", **kind)
    rows = rows_of_steps(first.train, to_mapping(first.options), 0)
    for batch in itertools.islice(rows, 3):
        first.step(batch)
        first.progress.step += 1
    first.save(best=False)
    torch.manual_seed(99)
    second = trainer(tmp_path / "parts", seed=99, **kind)  # other weights and order, until the checkpoint is read
    second.options = options(tmp_path / "parts", **kind)
    second.go_on(linked(tmp_path / "parts", LAST))
    assert second.progress.step == 3
    assert second.fit()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")[3:]
    for file in ("model.safetensors", "trainer-0.safetensors", "state-0.safetensors"):
        whole, parts = (read_tensors(tmp_path / run / LAST / file)[0] for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_best_checkpoint_on_held_out_data_is_kept_beside_the_last(tmp_path, monkeypatch):
    bits = iter([3.0, 1.0, 2.0])

    def validate(self, journal, bar):
        measured = next(bits)
        improved = self.progress.best is None or measured < self.progress.best
        self.progress.best = measured if improved else self.progress.best
        return improved

    monkeypatch.setattr(Trainer, "validate", validate)
    assert trainer(tmp_path, checkpoint_every=0).fit()
    assert linked(tmp_path, BEST).name == "step-00000004"
    assert linked(tmp_path, LAST).name == "step-00000006"
    assert json.loads((tmp_path / LAST / "trainer.json").read_text())["best"] == 1.0


def test_validation_measures_bits_per_byte_and_does_not_touch_training(tmp_path):
    assert trainer(tmp_path / "with").fit()
    assert trainer(tmp_path / "without", validate_every=0, checkpoint_every=0).fit()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    measured = [r for r in metrics(tmp_path / "with") if r["kind"] == "validation"]
    assert [r["step"] for r in measured] == [2, 4, 6]
    assert measured[0]["bits_per_byte"] == pytest.approx(4, abs=0.5)  # near the 4 bits of 16 symbols at first
    assert measured[-1]["bits_per_byte"] < measured[0]["bits_per_byte"]


def poison(module, value=math.nan):
    with torch.no_grad():
        next(module.parameters()).fill_(value)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    honest = Trainer.step

    def step(self, rows):
        if self.progress.step == 3:
            poison(self.model.stack.layers[1].part)
        return honest(self, rows)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Diverged, match=r"nan at step 4, in the parameter stack\.layers\.1\.part.*step-00000002"):
        run.fit()
    assert losses(tmp_path) == pytest.approx(losses(tmp_path))
    assert len(losses(tmp_path)) == 3
    assert all(torch.isfinite(p).all() for p in load(tmp_path / LAST).parameters())


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    run = trainer(tmp_path)
    run.model.head.weight.register_hook(lambda grad: grad * math.inf)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    with pytest.raises(
        Diverged, match=r"gradient is not finite at step 1, in the gradient of head\.weight.*no checkpoint"
    ):
        run.fit()
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters())


@pytest.mark.parametrize("file", ["write_tensors", "write_json", "save_state"])
def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(file, tmp_path, monkeypatch):
    run = trainer(tmp_path)
    honest = getattr(snapshot, file)

    def write(*arguments):
        if run.progress.step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(*arguments)

    monkeypatch.setattr(snapshot, file, write)
    with pytest.raises(InputError, match=r"is full; the last good checkpoint is .*step-00000002"):
        run.fit()
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    again = trainer(tmp_path)
    again.go_on(linked(tmp_path, LAST))
    monkeypatch.undo()
    assert again.fit()
    assert trainer(tmp_path / "whole").fit()
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_run_that_ends_between_the_checkpoint_and_its_link_goes_on_from_the_one_before(tmp_path, monkeypatch):
    def point_to(run, name, step):
        if step == 4:
            raise MemoryError
        checkpoint.point_to(run, name, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "point_to", point_to)
        with pytest.raises(MemoryError):
            trainer(tmp_path / "parts").fit()
    again = trainer(tmp_path / "parts")
    again.go_on(linked(tmp_path / "parts", LAST))
    assert again.progress.step == 2
    assert again.fit()
    assert trainer(tmp_path / "whole").fit()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path, checkpoint_every=0, validate_every=0)
    honest = Trainer.step

    def step(self, rows):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(self, rows)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "step", step)
    assert run.fit() is False
    assert signal.getsignal(signal.SIGINT) is before
    assert linked(tmp_path, LAST).name == "step-00000003"
    assert len(losses(tmp_path)) == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(tmp_path).save(best=False)
    with pytest.raises(InputError, match="another model"):
        trainer(tmp_path, dim=32).go_on(linked(tmp_path, LAST))
    with pytest.raises(InputError, match="another model"):
        trainer(tmp_path, layers=f"2*({LAYERS})").go_on(linked(tmp_path, LAST))


def test_data_that_changed_are_refused(tmp_path):
    trainer(tmp_path).save(best=False)
    with pytest.raises(InputError, match=r"began with 500 tokens.*now has 510"):
        trainer(tmp_path, train=corpus((300, 210))).go_on(linked(tmp_path, LAST))


@pytest.mark.parametrize("file", ["model.safetensors", "trainer-0.safetensors", "state-0.safetensors", "trainer.json"])
def test_a_checkpoint_cut_short_or_gone_is_refused(file, tmp_path):
    run = trainer(tmp_path)
    assert run.fit()
    place = linked(tmp_path, LAST) / file
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{file} is cut short"):
        trainer(tmp_path).go_on(linked(tmp_path, LAST))
    place.unlink()
    with pytest.raises(InputError, match=f"no file .*{file}"):
        trainer(tmp_path).go_on(linked(tmp_path, LAST))


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"length": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup": -1},
        {"beta2": 1.0},
        {"packing": "cut", "carry_state": True},
    ],
)
def test_impossible_settings_are_refused_by_name(setting, tmp_path):
    with pytest.raises(InputError, match=next(iter(setting))):
        trainer(tmp_path, **setting)


def test_rows_without_anything_to_predict_change_no_loss(tmp_path):
    run = trainer(tmp_path, train=corpus((1, 1, 1, 1, 2, 40)), batch=1, length=2, packing="cut", seed=1)
    batches = rows_of_steps(run.train, to_mapping(run.options), 0)
    bare = next(batch for batch in batches if not batch.count)
    assert run.step(bare)["loss"] == 0.0
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_what_is_due():
    assert [s for s in range(1, 8) if due(3, s, s == 7)] == [3, 6, 7]
    assert [s for s in range(1, 8) if due(0, s, s == 7)] == [7]
