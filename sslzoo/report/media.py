"""Pictures, videos and maps of a run, as the page carries them: inside itself."""

import base64
import inspect
import io
import re
import zipfile
import zlib

import numpy as np
from PIL import Image

from sslzoo import registry
from sslzoo.data import decoding
from sslzoo.report.leaderboard import short_path
from sslzoo.report.run import ReportError
from sslzoo.run_folder import DAMAGE

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
LOSSLESS_BYTES = 2**18  # a larger picture becomes a JPEG where that is much smaller
JPEG_QUALITY = 88
EPOCHS = 8  # pictures of one name, evenly spaced over the training
VIDEO_BYTES = 2**25  # of all videos of a run
SIDE = 1000  # of a map, in the whole numbers that the page holds

TITLES = {
    ("retrieval", "neighbours"): "Nearest neighbours",
    ("attention", "maps"): "Attention maps",
    ("robustness", "errors"): "Errors under corruption",
    ("semi", "curve"): "Accuracy over the number of labels",
}
# What is to be seen in them.
LEGENDS = {
    (
        "retrieval",
        "neighbours",
    ): "Blue: the query; then the nearest images, green where the class is "
    "the query's, red where it is not.",
    ("attention", "maps"): "The image; the mean over the heads; the heads. Of a convolutional "
    "network its one map of activation.",
    ("robustness", "errors"): "Shares of wrong predictions by kind and severity.",
    ("semi", "curve"): "Labels of each class on a logarithmic scale; bars are standard deviations "
    "over draws.",
    ("tracking", "contact sheet"): "Tinted: the carried mask; white: the true boundary.",
    ("tracking", "keypoints"): "Dots: carried joints; lines: to where they truly are.",
}


def inside(run, path):
    """A file inside the run folder, or None: a path that leads out of it is not followed."""
    try:
        file = (run.path / str(path)).resolve()
        is_there = file.is_relative_to(run.path.resolve()) and file.is_file()
    except (OSError, ValueError):  # no system has such a name: too long, or a NUL in it
        return None
    return file if is_there else None


def picture(path, title, note=""):
    """A picture for the template: title, note, data URI and size in pixels."""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
            kind, size = image.format, image.size
            if kind == "PNG" and len(content) > LOSSLESS_BYTES:
                smaller = jpeg(image)
                if 2 * len(smaller) < len(content):
                    content, kind = smaller, "JPEG"
    except decoding.DAMAGE as error:
        raise ReportError(f"{path} is no picture ({error})") from error
    return {"title": title, "note": note, "legend": None, "width": size[0], "height": size[1],
            "uri": data_uri(FORMATS[kind], content)}  # fmt: skip


def jpeg(image):
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def data_uri(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def evaluation_pictures(run):
    """Pictures of the evaluations; of those that share a file, the newest wrote it."""
    newest = {str(path): (entry, name)
              for entry in run.evaluations for name, path in entry.pictures.items()}  # fmt: skip
    found = []
    for path, (entry, name) in newest.items():
        file = inside(run, path)
        if file is None or file.suffix.lower() != ".png" or entry.protocol == "embedding":
            continue
        kind = entry.protocol, name.rpartition(": ")[2]  # before it stands the layer
        title = TITLES.get(kind, f"{entry.protocol.capitalize()}: {name}")
        found.append(picture(file, title, note_of(entry)) | {"legend": LEGENDS.get(kind)})
    return found


def note_of(entry):
    """What an evaluation was of, in a line."""
    parts = [entry.features[-1]] if entry.features else []
    if entry.untrained:
        parts.append("untrained")
    return ", ".join([*parts, *map(short_path, entry.data)])


def method_pictures(run):
    """pictures/NAME_EPOCH.png as [(name, [(epoch, picture), ...])], epochs evenly spaced."""
    series = {}
    for path in sorted((run.path / "pictures").glob("*.png")):
        match = re.fullmatch(r"(.+)_(\d+)", path.stem)
        if match and inside(run, path.relative_to(run.path)):
            series.setdefault(match[1], []).append((int(match[2]), path))
    return [(name, [(epoch, picture(path, name)) for epoch, path in spaced(sorted(found))])
            for name, found in series.items()]  # fmt: skip


def legend_of_method(run):
    """What the pictures of the run's method show, in its own words; None where it says nothing."""
    name = run.config.get("method")
    if name not in registry.methods():
        return None
    draw = getattr(registry.method_class(registry.method(name)), "pictures", None)
    return inspect.getdoc(draw).splitlines()[0] if draw and draw.__doc__ else None


def spaced(items):
    """At most EPOCHS items, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(items) - 1, EPOCHS).round().astype(int))
    return [items[row] for row in rows]


def final_map(run):
    """features.png, where no evaluation drew a better one."""
    file = inside(run, "features.png")
    return picture(file, "t-SNE of the features at the end of the run") if file else None


def videos(run):
    """MP4 files of the run folder, as `sslzoo propagate` and `evaluate tracking` write them."""
    titles = {str(path): name for entry in run.evaluations for name, path in entry.pictures.items()}
    found, left = [], VIDEO_BYTES
    for path in sorted([*run.path.glob("*.mp4"), *run.path.glob("*/*.mp4")]):
        name = str(path.relative_to(run.path))
        if inside(run, name) is None:
            continue
        content = path.read_bytes()
        fits = len(content) <= left
        left -= len(content) * fits
        note = "" if fits else f"left out: {len(content) / 2**20:.0f} MiB"
        found.append({"title": titles.get(name, name), "note": note,
                      "uri": data_uri("video/mp4", content) if fits else None})  # fmt: skip
    return found


def embedding(run):
    """The newest evaluation's maps with the thumbnails of their points; None without one."""
    entries = [e for e in run.evaluations if e.protocol == "embedding" and "maps" in e.details]
    if not entries:
        return None
    entry = entries[-1]
    files = [inside(run, entry.pictures.get(name, "")) for name in ("coordinates", "thumbnails")]
    if None in files:
        return None
    try:
        with np.load(files[0], allow_pickle=False) as arrays:
            labels = arrays["labels"].astype(int).tolist()
            indices = arrays["indices"].astype(int).tolist()
            maps = {str(name): flat(arrays[key]) for name, key in entry.details["maps"].items()}
        names = entry.details.get("class_names")
        data = {
            "maps": maps,
            "labels": labels,
            "indices": indices,
            "names": [str(name) for name in names] if names else None,
            "thumbnail": int(entry.details["thumbnail"]),
            "columns": int(entry.details["columns"]),
            "side": SIDE,
        }
    except (*DAMAGE, zipfile.BadZipFile, zlib.error) as error:
        raise ReportError(f"{files[0]} holds no maps of the features ({error})") from error
    return {"data": data, "sheet": picture(files[1], "thumbnails"), "note": note_of(entry),
            "points": len(labels)}  # fmt: skip


def flat(xy):
    """Coordinates as whole numbers 0 to SIDE, x and y in the same scale: [x, y, x, y, ...]."""
    xy = np.asarray(xy, dtype=np.float64)
    low, high = xy.min(0), xy.max(0)
    span = max((high - low).max(), 1e-12)
    return ((xy - (low + high) / 2) / span * SIDE + SIDE / 2).round().astype(int).ravel().tolist()
