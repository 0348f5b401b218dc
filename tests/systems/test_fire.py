from lengthwise.models.language_model import LanguageModel
from lengthwise.positions.fire import FIRE
from lengthwise.systems import fire
from lengthwise.systems.experiments import DECODER
from lengthwise.systems.system import Run


def test_every_layer_has_the_network_of_the_paper_with_the_threshold_of_the_experiment():
    model = LanguageModel(256, 64, DECODER, **fire.KINDS["fire"])
    found = [m for m in model.modules() if isinstance(m, FIRE)]
    assert len(found) == 4
    assert {(f.heads, f.width, f.initial_c, f.length) for f in found} == {(4, 32, 0.1, 32)}
    plain = LanguageModel(256, 64, DECODER, **fire.KINDS["rope"])
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 4 * (32 + 32 + 32 * 4 + 4 + 2)


def test_the_experiment_yields_its_figures(monkeypatch):
    monkeypatch.setattr(fire, "STEPS", 2)
    monkeypatch.setattr(fire, "LENGTHS", (64, 66, 68, 70))
    fractions = []
    figures = list(fire.SYSTEM.reproduce(Run(seeds=(10,), progress=lambda text, fraction: fractions.append(fraction))))
    assert [figure.threshold for figure in figures if figure.threshold] == ["≤ 0.5", "≤ 0.1"]
    assert len(figures) == 3 * 4 + 2
    assert all(figure.measured == figure.measured for figure in figures)
    assert fractions == [n / 6 for n in range(1, 7)]
