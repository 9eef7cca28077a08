"""The tables that say which engine and which tiles a GPU runs."""

import types

import pytest
import torch

from sslops import tuning

launch = pytest.importorskip("sslops.triton_launch")
OPS = ["info_nce", "nt_xent"]
KINDS = {"half", "tf32", "tf32x3", "ieee"}


def device(name, major):
    return types.SimpleNamespace(name=name, major=major)


@pytest.mark.parametrize("name", tuning.TABLES)
def test_a_table_lists_tiles_for_every_width_that_it_tiles(name):
    table = tuning.TABLES[name]
    for op in OPS:
        assert table["tiled_up_to"][op].keys() == KINDS
        for kind, most in table["tiled_up_to"][op].items():
            kernels = ["rows"] if op == "info_nce" else ["rows", "triangle"]
            for kernel in kernels:
                widths = {w for w in (16, 32, 64, 128, 256) if w <= launch.width(most)}
                assert widths <= table["tiles"][kernel][kind].keys(), (name, op, kind, kernel)


@pytest.mark.parametrize("name", tuning.TABLES)
def test_a_table_lists_tiles_of_colour_attention(name):
    tiles = tuning.TABLES[name]["color_attention"]
    assert tiles.keys() == {"half", "tf32x3", "ieee"}
    for widths in tiles.values():
        assert widths.keys() == {"narrow", "wide"} and all(len(t) == 5 for t in widths.values())


@pytest.mark.parametrize("name", tuning.TABLES)
def test_a_table_says_where_its_choice_comes_from_and_for_which_chip(name):
    table = tuning.TABLES[name]
    assert table["source"] and table["chip"] in ("sm_80", "sm_90", "sm_100")
    assert name.startswith("sm_") or tuning.file_name(table["device"]) == name


def test_a_device_without_a_table_gets_that_of_its_capability_or_the_conservative_one():
    assert tuning.name_for(device("NVIDIA Unheard-of", 9)) == "sm_90"
    assert tuning.name_for(device("NVIDIA A100-SXM4-80GB", 8)) == "sm_80"
    assert tuning.name_for(device("NVIDIA B200", 10)) == "sm_80"


def test_a_device_with_a_table_gets_its_own(monkeypatch):
    monkeypatch.setitem(tuning._BY_NAME, "NVIDIA Special", "sm_80")
    assert tuning.name_for(device("NVIDIA Special", 9)) == "sm_80"


def test_rows_wider_than_the_table_says_go_to_the_chunked_engine(monkeypatch):
    monkeypatch.setitem(tuning.TABLES["sm_80"]["tiled_up_to"]["info_nce"], "half", 64)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: device("NVIDIA A100", 8))

    class OnDevice:
        dtype, is_cuda, device = torch.bfloat16, True, torch.device("cuda")

        def __init__(self, D):
            self.shape = (1, 100, D)

    assert launch.why_not("info_nce", OnDevice(64)) is None
    assert "at most 64" in launch.why_not("info_nce", OnDevice(65))
    assert launch.why_not("nt_xent", OnDevice(65)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [64, 256])
def test_the_choice_of_an_engine_breaks_no_graph(D, dtype, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "why_not_device", lambda x: None)

    def is_tiled(x):
        return x + 1 if launch.why_not("nt_xent", x) is None else x

    x = torch.zeros(1, 2, D, dtype=dtype)
    compiled = torch.compile(is_tiled, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), is_tiled(x))
