"""Operations, hours and speeds are counted right."""

import math

import pytest
import torch
import yaml

from sslzoo import backbones
from sslzoo.evaluation.efficiency import energy_joules, flops, peak_memory, training_hours


@pytest.mark.parametrize("name, gmac", [("vit_tiny_p4", 0.365), ("vit_small_p4", 1.42)])
def test_operations_of_known_encoders(name, gmac):
    model = backbones.build(name, image_size=32).eval()
    assert flops(model, torch.zeros(1, 3, 32, 32)) / 2e9 == pytest.approx(gmac, rel=0.01)


def test_operations_of_a_convolution_by_hand():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert flops(layer, torch.zeros(2, 3, 5, 5)) == 2 * 2 * 8 * 25 * 27


def test_hours_of_a_run_come_from_its_metrics(tmp_path):
    assert training_hours(tmp_path) is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"batch_size": 100, "accumulate": 2}))
    # 20 steps of 200 images at 50 a second are 80 s, 10 more at 100 a second 20 s.
    (tmp_path / "metrics.csv").write_text("step,images_per_second\n20,50\n30,100\n")
    assert training_hours(tmp_path) == pytest.approx(100 / 3600)


def test_the_protocol_measures_and_says_what_it_can_not(judge):
    values, result = judge("efficiency", steps=2, warmup=1, repeats=2, batch_size=8)
    names = ("forward, speed", "forward and backward, speed", "forward with loading, speed")
    assert all(values[name] > 0 and math.isfinite(values[name]) for name in names)
    once, both = values["forward"], values["forward and backward"]
    assert both == 3 * once > 0
    if energy_joules(torch.device("cpu")) is None:
        assert result.notes == ["no energy: neither the driver nor the operating system tells"]
    found = {}
    with peak_memory("cpu", found):
        pass
    assert found == {}, "a CPU's memory is not that of the encoder alone"


def test_energy_of_the_cpu_is_read_in_joules(monkeypatch):
    readings = iter(range(10, 100, 10))
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: str(next(readings) * 10**6))
    assert energy_joules("cpu") == 10 and energy_joules("cpu") == 20


def test_a_frozen_backbone_stays_as_it_is(judge, make_subject):
    subject = make_subject()
    before = {name: value.clone() for name, value in subject.backbone.state_dict().items()}
    judge("efficiency", subject, steps=2, warmup=1, repeats=1, batch_size=8)
    after = subject.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_bad_options_are_told(judge):
    with pytest.raises(ValueError, match="must be at least 1"):
        judge("efficiency", steps=0)
