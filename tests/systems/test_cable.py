import torch

from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.alibi import slopes
from lengthwise.positions.cable import Cable
from lengthwise.systems import cable
from lengthwise.systems.system import Run


def test_mean_steps_are_the_slopes_where_steps_ask_no_token():
    model = LanguageModel(16, 8, "2*(attention(heads=2) + mlp)", position="cable(heads=2, start=spread)")
    for part in model.modules():
        if isinstance(part, Cable):
            torch.nn.init.zeros_(part.weight)
    found = cable.mean_steps(model, torch.randint(16, (2, 5)))
    assert len(found) == 2
    for steps in found:
        torch.testing.assert_close(steps, slopes(2).float())


def test_the_experiment_yields_its_figures(monkeypatch):
    monkeypatch.setattr(cable, "STEPS", 2)
    monkeypatch.setattr(cable, "LENGTHS", (64, 66, 68, 70))
    figures = list(cable.SYSTEM.reproduce(Run(seeds=(10,))))
    assert [figure.threshold for figure in figures if figure.threshold] == ["≤ 0.3", "≤ 0"]
    assert len(figures) == 3 * 4 + 2 + 4
    assert all(figure.measured == figure.measured for figure in figures)
    assert all(figure.note.count(",") == 3 for figure in figures[-4:])
