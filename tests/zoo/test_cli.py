"""The command line as a new user meets it: every mistake is one line on stderr and exit code 2."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sslzoo.cli import OF_THE_ZOO, main

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--backbone", "convnet4", "--image_size", "8", "--epochs", "1", "--batch_size", "4",
        "--warmup_epochs", "0"]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Two classes of images in train and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (9 + i % 2, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def fails(capsys, *argv):
    """The one line on stderr of a command that must fail with exit code 2."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sslzoo: error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err + out
    return err.removeprefix("sslzoo: error: ").strip()


def pretrain(photos, tmp_path, *more):
    return main(["pretrain", "simclr", "--data", str(photos), "--out", str(tmp_path / "run"),
                 *TINY, *more])  # fmt: skip


def test_help_comes_at_once_and_needs_no_torch():
    code = (
        "import sys; from sslzoo.cli import main; main(['--help']); print('torch' in sys.modules)"
    )
    start = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.startswith("usage: sslzoo COMMAND")
    assert answer.stdout.endswith("False\n")
    assert time.perf_counter() - start < 5


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "simclr" in lines["methods"] and "convnet4" in lines["backbones"]
    assert "digits" in lines["data"] and {"knn", "linear"} <= {*lines["evaluators"].split()}
    assert "simclr_digits" in lines["recipes"]
    assert main(["list", "methods"]) == 0
    names = capsys.readouterr().out.split()
    assert names[0] == "methods:" and {"mae", "simclr"} < set(names)


def test_every_option_shows_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["pretrain", "simclr", "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in text.split(" options: ")[1].split(" --")[2:]:
        if not option.startswith(("config", "print_config", "help")):
            assert "default: " in option and len(option.split()) > 5, option
    assert "Learning rate per 256 images" in text and "in degrees" in text
    assert "--base_lr BASE_LR" in text and "default: 0.12)" in text


def test_pretrain_evaluate_resume_and_config_work_together(capsys, photos, tmp_path):
    assert pretrain(photos, tmp_path, "--temperature", "0.2") == 0
    run = tmp_path / "run"
    assert "learning rate" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["temperature"] == 0.2

    assert main(["evaluate", "knn", str(run), "--k", "[1,3]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "1 nearest neighbours, top-1", "1 nearest neighbours, top-5",
        "3 nearest neighbours, top-1", "3 nearest neighbours, top-5"]  # fmt: skip
    checkpoint = str(run / "checkpoint.pt")
    assert main(["evaluate", "linear", checkpoint, "--labels_per_class", "[2]"]) == 0
    assert "2 labels per class, top-1: " in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert [entry["protocol"] for entry in found] == ["knn", "linear"]

    assert main(["pretrain", "--config", str(run / "config.yaml"), "--out",
                 str(tmp_path / "again")]) == 0  # fmt: skip
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert again["temperature"] == 0.2 and again["batch_size"] == 4
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert "from step 3" in capsys.readouterr().out


def test_print_config_is_a_config(capsys, photos, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["pretrain", "simclr", "--data", str(photos), *TINY, "--print_config"])
    assert exit_.value.code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert yaml.safe_load(file.read_text())["method"] == "simclr"
    assert main(["pretrain", "--config", str(file), "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (["pretrian"], "unknown command 'pretrian'; did you mean pretrain?"),
        (["pretrain", "simclrr"], "unknown method 'simclrr'; did you mean simclr?"),
        (["pretrain", "--epochs", "3"], "no method was named; known: "),
        (["pretrain", "simclr", "--temprature", "1"], "did you mean temperature?"),
        (["pretrain", "simclr", "--temperature", "warm"], "--temperature: Expected a float"),
        (["pretrain", "simclr", "--temperature", "-1"], "temperature must be above 0; got -1.0"),
        (["pretrain", "simclr", "--optimizer", "adam"], "--optimizer"),
        (["pretrain", "simclr", "--flip", "2"], "flip"),
        (["pretrain", "simclr", "--epochs", "0"], "epochs must be 1 or more; got 0"),
        (["pretrain", "simclr", "--batch_size", "2000"], "exceeds the 1437 images"),
        (
            [
                "pretrain",
                "context_encoder",
                "--adversarial",
                "--shard",
                "true",
                "--image_size",
                "32",
            ],
            "shard is not for this run: the discriminator has an optimizer of its own",
        ),
        (["pretrain", "mae", "--shard", "true", "--precision", "fp16"], "take bf16"),
        (["pretrain", "mae", "--shard", "sometimes"], "--shard: Expected"),
        (["pretrain", "simclr", "--data", "digit"], "did you mean digits?"),
        (["pretrain", "simclr", "--backbone", "resnet1"], "unknown backbone 'resnet1'"),
        (["pretrain", "--config", "simclr_digitz"], "did you mean simclr_digits"),
        (["pretrain", "--config"], "--config needs a value"),
        (["pretrain", "--resume", "no/where"], "no/where is no run folder"),
        (["evaluate", "lniear", "run"], "unknown evaluator 'lniear'; did you mean linear?"),
        (["evaluate", "tracking", "run", "--k", "5"], "unknown option 'k'"),
        (["pretrain", "simclr", "--temp", "1"], "unknown option 'temp'"),
        (["evaluate", "knn", "no/where"], "no/where holds no backbone.safetensors"),
        (["evaluate", "knn"], "required: run"),
        (["list", "method"], "did you mean methods?"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, argv, words):
    assert words in fails(capsys, *argv)


def test_an_empty_folder_is_told(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in fails(
        capsys, "pretrain", "simclr", "--data", tmp_path / "empty", *TINY
    )


def test_a_corrupt_image_is_named(capsys, photos, tmp_path):
    victim = photos / "train" / "b" / "5.png"
    victim.write_bytes(victim.read_bytes()[:40])
    message = fails(capsys, "pretrain", "simclr", "--data", photos, *TINY,
                    "--out", tmp_path / "run")  # fmt: skip
    assert str(victim) in message and "not a readable image" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everywhere")
def test_folders_without_permission_are_told(capsys, photos, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write to the run folder" in fails(
        capsys, "pretrain", "simclr", "--data", photos, *TINY, "--out", tmp_path / "locked" / "run"
    )
    photos.chmod(0)
    assert str(photos) in fails(capsys, "pretrain", "simclr", "--data", photos, *TINY)
    photos.chmod(0o700)


def test_an_output_folder_that_cannot_be_made_is_told(capsys, photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write to the run folder" in fails(
        capsys, "pretrain", "simclr", "--data", photos, *TINY, "--out", tmp_path / "file" / "run"
    )


def test_a_taken_run_folder_is_told(capsys, photos, tmp_path):
    assert pretrain(photos, tmp_path) == 0
    capsys.readouterr()
    assert "already holds a run" in fails(
        capsys, "pretrain", "simclr", "--data", photos, *TINY, "--out", tmp_path / "run"
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ("method: simclr\nepochs: [", "is not valid YAML"),
        ("epochs: 3\n", "names no method"),
        ("method: simclr\ntemprature: 3\n", "did you mean temperature?"),
        ("method: simclr\ntemperature: warm\n", "temperature"),
    ],
)
def test_mistakes_in_a_file_are_told(capsys, tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    assert words in fails(capsys, "pretrain", "--config", tmp_path / "c.yaml")


@pytest.mark.parametrize("name", ["backbone.safetensors", "checkpoint.pt"])
def test_a_damaged_checkpoint_is_told(capsys, photos, tmp_path, name):
    assert pretrain(photos, tmp_path) == 0
    capsys.readouterr()
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:1000])
    assert str(file) in fails(capsys, "evaluate", "knn", file)


def test_evaluating_unlabelled_data_is_told(capsys, photos, tmp_path):
    assert pretrain(photos, tmp_path) == 0
    capsys.readouterr()
    for split in ("train", "test"):
        Image.new("RGB", (8, 8)).save(photos / split / "alone.png")
    assert "labels" in fails(capsys, "evaluate", "knn", tmp_path / "run")


def test_debug_shows_the_traceback():
    answer = subprocess.run([sys.executable, "-m", "sslzoo", "pretrain", "simclrr", "--debug"],
                            cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert answer.returncode != 0 and "Traceback" in answer.stderr
    answer = subprocess.run([sys.executable, "-m", "sslzoo", "pretrain", "simclrr"],
                            cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and not answer.stdout


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules["sslzoo.cli"].COMMANDS, "list", lambda argv: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_switches_need_no_value():
    from sslzoo.options import switched_on

    words = ["--download", "--k", "3", "--head_bn", "false", "--download"]
    assert list(switched_on(words, {"--download", "--head_bn"})) == [
        "--download=true", "--k", "3", "--head_bn", "false", "--download=true"]  # fmt: skip


def test_an_installation_without_the_zoo_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)  # importing it now raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, "sslzoo.options", raising=False)
    monkeypatch.delattr("sslzoo.options", raising=False)
    assert fails(capsys, "pretrain", "simclr") == (
        "yaml is not installed: pip install 'sslops[zoo]'"
    )


def test_every_library_of_the_zoo_is_known_by_its_name():
    """Those of pyproject.toml, by the names that are imported."""
    text = (ROOT / "pyproject.toml").read_text().split("zoo = [")[1].split("]\n")[0]
    names = {re.match(r"[\w-]+", line)[0] for line in re.findall(r'"(.*?)"', text)}
    imported = {"scikit-learn": "sklearn", "pillow": "PIL"}
    assert {imported.get(name, name) for name in names} <= OF_THE_ZOO
