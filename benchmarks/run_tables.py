"""Tables and curves of whole runs: beside lightly's code, and of the recipes on all of CIFAR-10."""

import statistics

PUBLISHED = {"simclr": 84.7, "moco": 83.8, "dino": 84.0}  # lightly's table, 200 epochs, best epoch


def settings(records):
    """{(method, model, images, epochs): {variant: its records, one for each seed}}."""
    found = {}
    for r in records:
        key = (r["method"], r["model"], r["images"], r["epochs"])
        found.setdefault(key, {}).setdefault(r["variant"], []).append(r)
    return found


def representations_table(records):
    """A line for each side of each method: means over seeds, ± their standard deviation."""
    if not records:
        return []
    lines = ["", "| method | by | seeds | loss, last epoch | kNN % | linear % | images/s | waiting "
             "| x lightly |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for (method, model, images, epochs), sides in settings(records).items():
        name = f"{method}, {model}, {images} images, {epochs} epochs"
        any_side = next(iter(sides.values()))
        untrained = [f"{mean_of([r['untrained'][k] for r in any_side], 100):.1f}"
                     for k in ("knn", "linear")]  # fmt: skip
        lines.append(f"| {name} | untrained | {len(any_side)} | | {' | '.join(untrained)} | | | |")
        for variant, rows in sides.items():
            lines.append(f"| | {variant} | {len(rows)} | {cells(rows)} |")
    return lines


def cells(rows):
    """One side's cells, from the loss on."""
    if rows[0].get("absent"):
        return f"absent: {rows[0]['absent']} | | | | | "
    ratios = [r["ratio_to_best_peer"] for r in rows if "ratio_to_best_peer" in r]
    return " | ".join([
        with_spread([r["loss"][-1] for r in rows], 1, 4),
        with_spread([r["knn"] for r in rows], 100, 1),
        with_spread([r["linear"] for r in rows], 100, 1),
        f"{mean_of([r['images_per_second'] for r in rows]):.0f}",
        f"{mean_of([r['share_waiting'] for r in rows]):.0%}",
        f"{mean_of(ratios):.2f}" if ratios else "",
    ])  # fmt: skip


def curves_table(records):
    """How far apart the loss curves of both sides are, and how far those of one side's seeds."""
    heads = ("method", "largest gap between the sides' mean curves", "largest spread over seeds")
    lines = ["", f"| {' | '.join(heads)} |", "|---|---|---|"]
    for (method, model, *_), sides in settings(records).items():
        curves = [[r["loss"] for r in rows] for rows in sides.values() if "loss" in rows[0]]
        if len(curves) == 2:
            gap = max(abs(a - b) for a, b in zip(*map(mean_curve, curves), strict=True))
            spread = max(max(e) - min(e) for runs in curves for e in zip(*runs, strict=True))
            lines.append(f"| {short(method, model)} | {gap:.3f} | {spread:.3f} |")
    return lines if lines[3:] else []


def short(method, model):
    """The method and its encoder, without sizes."""
    return f"{method}, {model.split(', ')[0]}"


def mean_curve(runs):
    return [statistics.mean(epoch) for epoch in zip(*runs, strict=True)]


def runs_table(records):
    """A line for each recipe: means over seeds."""
    records = [r for r in records if not r["tiny"]]
    if not records:
        return []
    lines = ["", "| recipe | seeds | kNN % | linear % | lightly's kNN %, published | minutes | "
             "images/s | peak MiB | kJ | waiting |", "|---|" + "---|" * 9]  # fmt: skip
    for recipe in dict.fromkeys(r["recipe"] for r in records):
        rows = [r for r in records if r["recipe"] == recipe]
        accuracy = [with_spread([max(r[k].values()) for r in rows], 100, 1)
                    for k in ("knn", "linear")]  # fmt: skip
        costs = [known([r[k] for r in rows]) for k in
                 ("minutes", "images_per_second", "peak_memory_mib", "kilojoules")]  # fmt: skip
        published = PUBLISHED.get(rows[0]["method"], "")
        waiting = f"{mean_of([r['share_waiting'] for r in rows]):.0%}"
        lines.append("| " + " | ".join(map(str, [recipe, len(rows), *accuracy, published, *costs,
                                                 waiting])) + " |")  # fmt: skip
    sums = [f"- `{r['sha256']}` {r['recipe']}, seed {r['seed']}" for r in records]
    return [*lines, "", "SHA-256 of the backbones' safetensors files:", "", *sums]


def plot_curves(records, path):
    """The loss over epochs of both sides, a panel for each method, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = settings(records)
    figure, panels = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), squeeze=False,
                                  layout="constrained")  # fmt: skip
    for axes, ((method, model, *_), sides) in zip(panels[0], found.items(), strict=True):
        for color, (variant, rows) in zip(("C0", "C1"), sides.items(), strict=False):
            for i, r in enumerate(r for r in rows if "loss" in r):
                epochs = range(1, len(r["loss"]) + 1)
                axes.plot(epochs, r["loss"], color=color, alpha=0.7, label=variant * (i == 0))
        axes.set(title=short(method, model), xlabel="epoch", ylabel="loss")
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def mean_of(values, factor=1):
    return factor * statistics.mean(values)


def with_spread(values, factor, digits):
    """Mean ± standard deviation, where there are several."""
    text = f"{mean_of(values, factor):.{digits}f}"
    return text + (f" ± {factor * statistics.stdev(values):.{digits}f}" if values[1:] else "")


def known(values):
    values = [v for v in values if v is not None]
    return f"{mean_of(values):.4g}" if values else "not told"
