"""Features on disk: a file for each combination of weights, data, view, layer and precision.

Nothing is ever looked up by a name or a date. A changed weight has another key, so its features
can not be those of the old one; a file carries the digest of its values, so one that was cut off
or changed is found out and computed again.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

VERSION = 1  # of what a key stands for: raised when the evaluation view changes


class DamagedCache(ValueError):
    """A cache file that does not hold what was written; the message says why."""


def key_of(**parts):
    """Hexadecimal key of everything that the features depend on."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(module):
    """Hexadecimal digest of all parameters and buffers, their names and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def save(folder, key, features):
    """Write features [N, d]; the file is there whole or not at all."""
    features = features.contiguous()
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({"features": features}, temporary, {"key": key, "digest": _digest(features)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder, key):
    """The features of this key, or None where there is no file of them.

    Raises:
        DamagedCache: the file was cut off or changed.
    """
    path = _path(folder, key)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about, features = file.metadata() or {}, file.get_tensor("features")
    except SafetensorError as error:
        raise DamagedCache(f"{path} is damaged ({error})") from error
    if about.get("key") != key or about.get("digest") != _digest(features):
        raise DamagedCache(f"{path} is damaged (its values are not those that were written)")
    return features


def _path(folder, key):
    return Path(folder) / f"{key}.safetensors"


def _digest(features):
    return hashlib.blake2b(_bytes(features), digest_size=16).hexdigest()


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
