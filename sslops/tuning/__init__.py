"""Which engine and which tiles a GPU runs best, as data: one JSON file per device beside this.

A file is named after the device as CUDA names it (`nvidia-h200.json`), or after a compute
capability: `sm_90.json` serves every device of that capability without a file of its own, and
`sm_80.json` all others, as it asks for no more than every later chip has. Nothing is tuned at the
first call. benchmarks/tune.py writes a file from measurements; tests compile every tile listed.

    chip           the compute capability that the tiles are compiled for
    max_registers  a bound for the compiler, or null
    tiles          kernel -> kind of product -> WIDTH -> [ROWS, COLS, num_warps, num_stages]
    tiled_up_to    op -> kind of product -> the largest width D that the tiled engine takes; wider
                   rows go to the chunked engine. At most the widest WIDTH listed under tiles.
    color_attention  kind of product -> narrow (D up to 64) or wide -> [WIDTH, ROWS, COLS,
                   num_warps, num_stages]: its programs hold WIDTH columns of rows at a time
    source         where the choice comes from
"""

import json
import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent


def load():
    """{name: table}; JSON knows no whole numbers as keys, so widths are converted."""
    return {path.stem: _with_widths(json.loads(path.read_text()))
            for path in sorted(FOLDER.glob("*.json"))}  # fmt: skip


def _with_widths(table):
    tiles = {
        kernel: {kind: {int(width): tile for width, tile in by_width.items()}
                 for kind, by_width in kinds.items()}
        for kernel, kinds in table["tiles"].items()
    }  # fmt: skip
    return {**table, "tiles": tiles}


def file_name(device_name):
    """The stem of a device's file: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


# Read at import: reading a file in a call would break the graph under torch.compile.
TABLES = load()
_BY_NAME = {table["device"]: name for name, table in TABLES.items() if "device" in table}


def table_of(x):
    """The name of the table for the device of a tensor."""
    return table_on(x.device)


def table_on(device):
    """The name of the table for a torch.device."""
    is_cuda = device.type == "cuda"
    return name_for(torch.cuda.get_device_properties(device)) if is_cuda else "sm_80"


def name_for(properties):
    """The table for a device, from torch.cuda.get_device_properties."""
    if properties.name in _BY_NAME:
        return _BY_NAME[properties.name]
    capability = f"sm_{properties.major}0"
    return capability if capability in TABLES else "sm_80"
