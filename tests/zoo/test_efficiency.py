"""Operations, hours and speeds are counted right."""

import math

import pytest
import torch
import yaml

from sslzoo import backbones, registry
from sslzoo.cli import main
from sslzoo.evaluate import Common, Subject
from sslzoo.evaluation.efficiency import (
    energy_joules,
    flops,
    peak_memory,
    training_flops,
    training_hours,
)


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


def test_hours_to_an_accuracy_end_at_the_first_probe_that_reaches_it(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"batch_size": 100, "accumulate": 1}))
    lines = ("step,images_per_second,knn_accuracy", "10,50,", "20,50,0.7", "30,50,0.9", "40,50,0.8")
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert training_hours(tmp_path) == pytest.approx(80 / 3600)
    assert training_hours(tmp_path, 0.7) == pytest.approx(40 / 3600)
    assert training_hours(tmp_path, 0.75) == pytest.approx(60 / 3600)
    assert training_hours(tmp_path, 0.95) is None


def test_operations_of_a_step_count_every_view_and_network():
    class Method(torch.nn.Module):
        """Student on two views, teacher on one."""

        def __init__(self):
            super().__init__()
            self.student, self.teacher = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
            self.teacher.requires_grad_(False)

        def forward(self, views, step):
            students = sum(self.student(view).sum() for view in views)
            return {"loss": students - self.teacher(views[0]).sum()}

    views = [torch.randn(4, 3), torch.randn(4, 3)]
    forward = 2 * 4 * 3 * 5
    # Of the inputs no gradient is asked: the backward pass is one product, of the weights.
    assert training_flops(Method(), views) == 2 * (forward + forward) + forward


def test_a_run_tells_what_its_training_costs(tmp_path):
    assert main(["pretrain", "simclr", "--backbone", "convnet4", "--image_size", "8", "--epochs",
                 "1", "--batch_size", "256", "--knn_every", "1", "--log_every", "1", "--device",
                 "cpu", "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    subject = Subject(tmp_path / "run", Common(device="cpu", max_test=60))
    notes = []
    config = registry.evaluator("efficiency").Config(accuracy=0.2, price=2.0)
    rows = registry.evaluator("efficiency").step_rows(subject, notes)
    rows += registry.evaluator("efficiency").run_rows(subject, config, notes)
    values = {row.metric: row.value for row in rows}
    encoder = flops(subject.backbone, torch.zeros(1, 1, 8, 8)) / 1e9
    # Two views, forward and backward: near six times the encoder, and the projector beside it.
    assert 5 * encoder < values["training step"] < 8 * encoder
    assert values["method, parameters that are trained"] == values["method, all parameters"]
    assert values["cost so far"] == pytest.approx(2 * values["training so far"])
    assert 0 < values["training to 20.0 %"] <= values["training so far"] and not notes


def test_the_protocol_measures_and_says_what_it_can_not(judge):
    values, result = judge("efficiency", steps=2, warmup=1, repeats=2)
    assert result.details["batch_size"] == (64 if torch.cuda.is_available() else 8)
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
