"""What a run was made with: Python, packages, platform, device, commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import sslops

PACKAGES = ("torch", "torchvision", "triton", "timm", "accelerate", "numpy", "scikit-learn",
            "torchmetrics")  # fmt: skip


def versions():
    """Python, packages, platform, device and commit, by name."""
    found = {"python": platform.python_version(), "sslops": sslops.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["platform"] = platform.platform()
    found["cuda"] = torch.version.cuda
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["cpu_threads"] = torch.get_num_threads()
    found["commit"] = _commit()
    return found


def _commit():
    """The commit of the checkout that this code runs from, or None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return answer.stdout.strip() or None
