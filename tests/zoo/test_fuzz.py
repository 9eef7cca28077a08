"""Mutated files and random command lines give results or the documented errors, nothing else."""

import contextlib
import io
import json
import os
import pickle
import tarfile
from argparse import ArgumentError

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzzing import MUTATIONS, QUICK, mutate, nested
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_runs import make_run
from safetensors.torch import save_file
from torch import nn

from sslzoo import cli, demo, doctor, options, registry
from sslzoo.backbones import build
from sslzoo.data import DataError, open_data
from sslzoo.evaluation.opening import open_backbone, random_twin
from sslzoo.run_folder import RunFolder, RunFolderError, load_backbone, load_options

ABOUT = {"method": "simclr", "data": "digits", "kind": "images", "backbone": "convnet4",
         "backbone_options": {}, "image_size": 8, "channels": 1, "mean": [0.5],
         "std": [0.5]}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A checkpoint and a backbone.safetensors of few bytes that are not weights."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    backbone = build("convnet4", image_size=8, channels=1)
    method = nn.ModuleDict({"backbone": backbone})
    run.save_checkpoint({"step": 1, "method": method.state_dict(), "about": ABOUT,
                         "options": {"seed": 0}})  # fmt: skip
    run.save_backbone(backbone, ABOUT)
    return run.path


@pytest.mark.parametrize("name", ["checkpoint.pt", "backbone.safetensors"])
@pytest.mark.parametrize("part", ["all", "start", "end"])
def test_mutated_weights(run_folder, tmp_path, name, part):
    """The structure of these files lies at their ends, which are mutated on their own too."""
    content = (run_folder / name).read_bytes()
    cut = {"all": (0, None), "start": (0, 4000), "end": (-6000, None)}[part]
    file = tmp_path / name

    @QUICK
    @given(MUTATIONS)
    def check(mutations):
        middle = mutate(content[slice(*cut)], mutations)
        before, after = {"all": (b"", b""), "start": (b"", content[4000:]),
                         "end": (content[:-6000], b"")}[part]  # fmt: skip
        file.write_bytes(before + middle + after)
        try:
            backbone, about = load_backbone(file)
        except RunFolderError as error:
            assert str(file) in str(error)
        else:
            assert isinstance(backbone, nn.Module) and about["backbone"]

    check()


VALUES = nested(st.just(torch.zeros(2)))


@QUICK
@given(st.sampled_from(["step", "method", "about", *ABOUT]), VALUES, st.booleans())
def test_checkpoints_with_other_content(tmp_path, run_folder, key, value, is_missing):
    state = torch.load(run_folder / "checkpoint.pt", weights_only=True)
    holder = state["about"] if key in ABOUT else state
    holder[key] = value
    if is_missing:
        del holder[key]
    torch.save(state, tmp_path / "checkpoint.pt")
    with contextlib.suppress(RunFolderError):
        open_backbone(tmp_path / "checkpoint.pt")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with a small model of timm, as the Hugging Face hub has them."""
    folder = tmp_path_factory.mktemp("hub")
    sizes = dict(img_size=8, patch_size=8, embed_dim=4, depth=1, num_heads=1)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": sizes,
              "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3,
                                 "classifier": "head"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    about = {"architecture": config["architecture"], "model_args": sizes}
    save_file(random_twin(about, 0).state_dict(), folder / "model.safetensors")
    assert open_backbone(folder)[1]["image_size"] == 8
    return folder


def linked(hub, folder, config):
    """The weights of `hub` with another config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").hardlink_to(hub / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@settings(QUICK, max_examples=80)
@given(st.data())
def test_hub_folders_with_other_content(hub, tmp_path, data):
    config = json.loads((hub / "config.json").read_text())
    holder = data.draw(st.sampled_from([config, config["model_args"], config["pretrained_cfg"]]))
    key = data.draw(st.sampled_from([*holder, "model_type", "depths", "drop_rate"]))
    holder[key] = data.draw(nested())
    with contextlib.suppress(RunFolderError):
        open_backbone(linked(hub, tmp_path / "x", config))


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_what_describes_a_network_names_no_other_weights(hub, tmp_path, option):
    """Neither a config.json nor a checkpoint: timm would read or fetch them."""
    trap = tmp_path / "trap.pth"
    trap.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    value = {"pretrained": True, "pretrained_cfg": {"file": str(trap)}}.get(option, str(trap))
    config = json.loads((hub / "config.json").read_text())
    config["model_args"][option] = value
    with pytest.raises(RunFolderError, match=f"{option} is no option of a network"):
        open_backbone(linked(hub, tmp_path / "hub", config))
    about = ABOUT | {"backbone": "resnet10t", "backbone_options": {option: value}}
    RunFolder(tmp_path).save_backbone(nn.Linear(1, 1), about)
    with pytest.raises(RunFolderError, match=f"{option} is no option of a network"):
        open_backbone(tmp_path / "backbone.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The bytes of a file with six images and their labels."""
    cells = []
    for i in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (8 + i % 2, 8), (40 * i, 9, 0)).save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    file = tmp_path_factory.mktemp("parquet") / "x.parquet"
    pq.write_table(pa.table({"image": cells, "label": list(range(6))}), file)
    return file.read_bytes()


@settings(QUICK, max_examples=300)
@given(MUTATIONS, st.sampled_from([0, 1024]))
def test_mutated_parquet_files(tmp_path, parquet, mutations, memory_limit_mib):
    file = tmp_path / "x.parquet"
    file.write_bytes(mutate(parquet, mutations))
    try:
        data = open_data(file, memory_limit_mib=memory_limit_mib)
        images = [data.load(index) for index in range(len(data))]
    except DataError:
        return
    assert all(image.dtype == torch.uint8 and image.ndim == 3 for image in images)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of a tar archive with three images and their labels, long names among them."""
    file = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(file, "w") as tar:
        for i in range(3):
            buffer = io.BytesIO()
            Image.new("RGB", (8 + i % 2, 8), (40 * i, 9, 0)).save(buffer, "png")
            name = f"{i}" * (120 * (i == 1) + 1)
            label = f'{{"label": {i}}}'.encode()
            for kind, content in (("png", buffer.getvalue()), ("json", label)):
                info = tarfile.TarInfo(f"{name}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.read_bytes()


def with_right_sums(content):
    """Mutated headers that keep their check sum, or no other fault of one would be reached."""
    content = bytearray(content)
    for start in range(0, len(content) - 511, 512):
        header = content[start : start + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            content[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
    return bytes(content)


@settings(QUICK, max_examples=300)
@given(MUTATIONS, st.booleans())
def test_mutated_tar_archives(tmp_path, archive, mutations, is_summed):
    file = tmp_path / "x.tar"
    content = mutate(archive, mutations)
    file.write_bytes(with_right_sums(content) if is_summed else content)
    try:
        data = open_data(file)
        images = [data.load(index) for index in range(len(data))]
    except DataError:
        return
    assert all(image.dtype == torch.uint8 and image.ndim == 3 for image in images)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_parquet_cell_cannot_name_a_file_outside(tmp_path, path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    cell = [{"bytes": None, "path": path}]
    pq.write_table(pa.table({"image": cell}), folder / "x.parquet")
    with pytest.raises(DataError, match="outside of"):
        open_data(folder / "x.parquet")


USER_ERRORS = (ArgumentError, ValueError, OSError)


@settings(QUICK, max_examples=60)
@given(MUTATIONS)
def test_mutated_configurations(tmp_path, mutations):
    file = tmp_path / "config.yaml"
    file.write_bytes(mutate(registry.recipe("simclr_digits").read_bytes(), mutations))
    for read in (load_options, lambda folder: options.parse_pretrain(["--config", str(file)])):
        try:
            read(tmp_path)
        except USER_ERRORS as error:
            assert str(error)


def test_a_configuration_cannot_run_code(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"method: simclr\nseed: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    for read in (load_options, lambda folder: options.parse_pretrain(["--config", str(file)])):
        with pytest.raises(USER_ERRORS):
            read(tmp_path)
    assert not (tmp_path / "ran").exists()


WORDS = st.one_of(
    st.sampled_from(["list", "pretrain", "methods", "simclr", "mae", "--epochs", "--epochs=3",
                     "--data", "digits", "--config", "--resume", "--resume=x", "--betas", "[0,1]",
                     "--out", "--print_config", "--help", "-h", "--", "-1", "nan", "--download",
                     "--temperature=0", "--batch_size", "--config=simclr_digits"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)  # fmt: skip


OF_COMMAND = {
    "report": ["run", "video.mp4", "--out=page.html", "--out=run"],
    "propagate": ["run", "--video", "video.mp4", "--mask", "--size=8", "--sequence", "a"],
    "doctor": ["--json"],
    "evaluate": ["knn", "tracking", "all", "--layers", "no such", "--k", "[1]", "--raw"],
    "export": ["run", "--to", "timm", "torchvision", "--out=weights"],
    "import": ["run", "video.mp4", "--out=imported", "--backbone", "resnet50"],
}
LINES = st.sampled_from(sorted({*cli.COMMANDS, "nothing"})).flatmap(
    lambda command: st.lists(
        st.one_of(WORDS, st.sampled_from(OF_COMMAND.get(command, ["--help"]))), max_size=5
    ).map(lambda words: [command, *words])
)


@pytest.fixture
def somewhere(monkeypatch, tmp_path):
    """A folder with a run and a broken video, where nothing is trained and no op is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "pretrain", lambda chosen: None)
    monkeypatch.setattr(demo, "show", lambda run: None)
    monkeypatch.setattr(doctor, "self_test", lambda device: [])
    make_run(tmp_path / "run", epochs=1)
    (tmp_path / "video.mp4").write_bytes(b"no video")


@settings(QUICK, max_examples=400)
@given(LINES)
def test_random_command_lines(somewhere, capsys, line):
    try:
        code = cli.main(line)
    except SystemExit as end:  # --help and --print_config of jsonargparse
        code = end.code
    assert code in (0, 2)
    if code == 2:
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("sslzoo: error:")
