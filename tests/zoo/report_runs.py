"""Run folders as sslzoo leaves them, made by hand, with names that try to be code."""

import csv
import json

import numpy as np
import yaml
from PIL import Image

HOSTILE = """</script><script>hacked=1</script><img src="x" onerror="hacked=1">&amp;"'{{ 7*7 }}"""
POINTS, SIDE, COLUMNS = 60, 8, 10


def make_run(folder, *, method="mae", accuracy=0.6, seed=0, word="", epochs=3, fingerprint="aa"):
    """A run with everything that a report shows but a video; `word` stands in many places."""
    folder.mkdir(parents=True)
    options = dict(method=method, data=f"photos{word}", backbone="vit_micro_p4", image_size=16,
                   epochs=epochs, batch_size=32, accumulate=1, warmup_epochs=0, note=word,
                   betas=[0.9, 0.95], seed=seed)  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    versions = {"torch": "2.0", "platform": f"machine{word}", "device": "cpu"}
    (folder / "versions.json").write_text(json.dumps(versions))
    write_metrics(folder, epochs, word)
    for epoch in range(1, epochs + 1):
        save(folder / "pictures" / f"reconstruction_{epoch:04d}.png", (90, 40), epoch)
    entries = [
        entry("knn", [row("20 nearest neighbours, top-1", accuracy, [accuracy - 0.1, 0.7])], word,
              fingerprint=fingerprint),
        entry("retrieval", [row("recall at 1", 0.5, [0.4, 0.6])], word,
              pictures={"neighbours": "evaluation/neighbours.png"}),
        entry("embedding", [row("silhouette of the features", 0.25, unit="")], word,
              pictures=embedding_files(folder),
              details={"maps": {"t-SNE 30": "tsne", f"PCA{word}": "pca"}, "thumbnail": SIDE,
                       "columns": COLUMNS, "class_names": ["cat", f"dog{word}"]}),
    ]  # fmt: skip
    save(folder / "evaluation" / "neighbours.png", (700, 120), 5)
    write_evaluations(folder, entries)
    return folder


def write_metrics(folder, epochs, word):
    with (folder / "metrics.csv").open("w", newline="") as file:
        names = ["step", "epoch", "loss", "feature_std", "effective_rank", "knn_accuracy",
                 "images_per_second", f"odd{word}"]  # fmt: skip
        writer = csv.writer(file)
        writer.writerow(names)
        for step in range(10, 10 * epochs + 1, 10):
            probe = 0.5 if step == 10 * epochs else ""
            writer.writerow([step, step // 10, 5 - step / 10, 0.1, 12.5, probe, 100.0, 1.0])


def write_evaluations(folder, entries):
    text = json.dumps({"format": 1, "evaluations": entries})
    (folder / "evaluation.json").write_text(text)


def row(metric, value, interval=None, std=None, unit="share"):
    return dict(metric=metric, value=value, std=std, unit=unit, count=None, interval=interval)


def entry(protocol, rows, word="", *, fingerprint="aa", pictures=None, details=None,
          weights="w1", untrained=False):  # fmt: skip
    return {
        "protocol": protocol,
        "version": 1,
        "backbone": {"backbone": f"vit{word}", "weights": weights},
        "features": [f"output{word}"],
        "device": "cpu",
        "seed": 0,
        "data": {f"photos/test{word}": {"images": 60, "fingerprint": fingerprint}},
        "options": {"untrained": untrained, "k": [20], "out": "anywhere"},
        "results": rows,
        "details": details or {},
        "notes": [f"a note{word}"],
        "pictures": pictures or {},
        "versions": {},
    }


def embedding_files(folder):
    """Coordinates and thumbnails: each point has a place and a colour of its own."""
    (folder / "evaluation").mkdir()
    xy = np.stack([np.arange(POINTS) % 10, np.arange(POINTS) // 10], 1).astype(np.float32)
    labels = np.arange(POINTS) % 2
    np.savez(folder / "evaluation/embedding.npz", indices=np.arange(POINTS) * 3, labels=labels,
             tsne=xy, pca=xy[::-1])  # fmt: skip
    sheet = np.zeros((POINTS // COLUMNS * SIDE, COLUMNS * SIDE, 3), np.uint8)
    for i in range(POINTS):
        y, x = divmod(i, COLUMNS)
        sheet[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] = colour(i)
    Image.fromarray(sheet).save(folder / "evaluation/thumbnails.png")
    return {"coordinates": "evaluation/embedding.npz", "thumbnails": "evaluation/thumbnails.png"}


def colour(point):
    return [4 * point, 255 - 3 * point, 77]


def save(path, size, seed):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
