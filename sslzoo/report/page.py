"""The page: what was read from the runs, put into the template."""

import base64
import functools
import hashlib
import statistics
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sslzoo.evaluation.efficiency import training_hours
from sslzoo.report import curves, leaderboard, media
from sslzoo.report.run import ReportError, last, read_runs
from sslzoo.run_folder import RunFolderError, replace_file
from sslzoo.watch import collapse_warning

HERE = Path(__file__).parent
COLOURS = 10  # of curves and classes; page.css names them --c0 to --c9


def write(paths, out):
    """Write the report of some run folders.

    Args:
        paths: of the run folders.
        out: the HTML file.

    Raises:
        ReportError: a folder is no run, or a file in it is damaged.
    """
    text = render(read_runs(paths))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda p: p.write_text(text, encoding="utf-8"))


def render(runs):
    """The page as text."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment().get_template("page.html")
    names = ", ".join(run.name for run in runs)
    return template.render(
        title=f"{names} · sslzoo report",
        # The two files of this folder are the only text that is not escaped.
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        runs=[about_run(number, run) for number, run in enumerate(runs)],
        groups=curves.groups(runs),
        chart=curves,
        board=leaderboard.board(runs),
        compared=leaderboard.compared(runs),
        settings=leaderboard.settings(runs) if len(runs) > 1 else [],
    )


@functools.cache
def environment():
    """Jinja's environment: everything is escaped, a name that is missing is an error."""
    found = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                        lstrip_blocks=True, loader=FileSystemLoader(HERE))  # fmt: skip
    found.filters["cell"] = leaderboard.cell
    found.globals["colours"] = COLOURS
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the first map is the first one
    return found


def about_run(number, run):
    """What the template shows of one run."""
    return {
        "number": number,
        "name": run.name,
        "facts": facts(run),
        "collapse": collapse(run),
        "evaluations": [
            about_evaluation(run, entry)
            for entry in run.evaluations
            if entry.results or entry.notes
        ],
        "embedding": (drawn := media.embedding(run)),
        "final_map": None if drawn else media.final_map(run),
        "evaluation_pictures": media.evaluation_pictures(run),
        "method_pictures": (pictures := media.method_pictures(run)),
        "method_legend": media.legend_of_method(run) if pictures else None,
        "videos": media.videos(run),
        "compute": compute(run),
        "config": {name: plain(value) for name, value in run.config.items()},
        "versions": {name: plain(value) for name, value in run.versions.items()},
    }


def facts(run):
    """The line under a run's name."""
    names = ("method", "backbone", "data", "image_size", "epochs", "batch_size")
    found = [(name.replace("_", " "), plain(run.config[name]))
             for name in names if name in run.config]  # fmt: skip
    found = [(name, leaderboard.short_path(text) if name == "data" else text)
             for name, text in found]  # fmt: skip
    if not found and run.evaluations:
        found = [("backbone", plain(run.evaluations[-1].backbone.get("backbone")))]
    return found


def collapse(run):
    """What the meters of the last log step say: (is well, words); None without meters.

    Before the warm-up has ended, every method looks collapsed: then nothing is said.
    """
    row = {name: value for name in run.metrics if (value := last(run, name)) is not None}
    warmup = run.config.get("warmup_epochs")
    settled = max(warmup, 1) if isinstance(warmup, (int, float)) else 1
    if not {"feature_std", "effective_rank"} & set(row) or row.get("epoch", 0) < settled:
        return None
    if run.width is None:  # the standard deviation means nothing without it
        row.pop("feature_std", None)
    warning = collapse_warning(row, run.width or 10**9)
    return (False, warning) if warning else (True, "no sign of collapse at the last log step")


def about_evaluation(run, entry):
    """One evaluation for the template: heading, rows, and what is needed to do it again."""
    newest = run.trained[-1].weights if run.trained else entry.weights
    data = [leaderboard.short_path(name)
            + (f" ({about['images']} images)" if "images" in about else "")
            for name, about in entry.data.items()]  # fmt: skip
    fingerprints = plain([one.get("fingerprint") for one in entry.data.values()])
    source = {"data sets": plain(list(entry.data)), "data fingerprints": fingerprints,
              "weights": entry.weights, "seed": entry.seed, "device": entry.device}  # fmt: skip
    return {
        "protocol": entry.protocol,
        "version": entry.version,
        "kind": "untrained" if entry.untrained else "older weights" * (entry.weights != newest),
        "data": data,
        "features": entry.features,
        "notes": entry.notes,
        "rows": entry.results,
        "has_intervals": any(row["interval"] for row in entry.results),
        "options": {name: plain(value) for name, value in (source | entry.options).items()},
    }


def compute(run):
    """Hours, speed and memory of the training, and the machine: [(name, text)]."""
    found = []
    if "images_per_second" in run.metrics and {"batch_size", "accumulate"} <= set(run.config):
        try:
            hours = training_hours(run.path) or 0.0
        except RunFolderError as error:
            raise ReportError(str(error)) from error
        found.append(("training", f"{hours:.2f} hours" if hours >= 1 else f"{60 * hours:.1f} min"))
    middle = {"images_per_second": "{:,.0f} images/s", "data_wait_share": "{:.1%}"}
    for name, form in middle.items():
        if name in run.metrics:
            median = statistics.median(value for _, value in run.metrics[name])
            label = "speed, median" if name == "images_per_second" else "time waiting for data"
            found.append((label, form.format(median)))
    if "peak_memory_mib" in run.metrics:
        peak = max(value for _, value in run.metrics["peak_memory_mib"])
        found.append(("peak memory", f"{peak:,.0f} MiB"))
    for name in ("device", "cpu_threads", "torch", "platform"):
        if run.versions.get(name) is not None:
            found.append((name.replace("_", " "), plain(run.versions[name])))
    return found


def plain(value):
    """A value of a configuration as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(one) for one in value) or "none"
    return "–" if value is None or value == "" else str(value)
