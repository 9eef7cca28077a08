"""The columns of metrics.csv as small charts: geometry for the template, points for the hover."""

import math
import re

from sslzoo.watch import LEAST_EFFECTIVE_RANK, LEAST_RELATIVE_STD

# Size of a chart and its margins in the units of its view box: CSS pixels on a phone.
WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22
POINTS = 240  # of a curve; a longer one keeps the lowest and highest value of each stretch
MARKED = 30  # curves of fewer points show each

GROUPS = (
    ("Probes and tests", re.compile(r"(knn|linear)_accuracy|test_|tracking_")),
    ("Compute", re.compile(r"images_per_second$|data_wait_share$|peak_memory_mib$")),
    ("Collapse meters", re.compile(
        r"feature_std$|effective_rank$|alignment$|uniformity$|mutual_information|"
        r".*(entropy|cosine|variance|usage|distance)")),
    ("Training", re.compile("")),
)  # fmt: skip
ORDER = ("Training", "Collapse meters", "Probes and tests", "Compute")
FIRST = ("loss", "feature_std", "effective_rank", "images_per_second")
HIDDEN = {"step", "epoch"}
SHOWN_ROWS = 14  # of an evaluation's table; more are folded in
OPEN = 6  # charts of a group that are seen at once; more are folded in


def groups(runs):
    """[(title, charts)] of all that the runs logged, a curve of each run in a chart."""
    found = {title: [] for title in ORDER}
    names = dict.fromkeys(name for run in runs for name in run.metrics if name not in HIDDEN)
    steps = [x for run in runs for name in names for x, _ in run.metrics.get(name, ())]
    for name in sorted(names, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST)):
        title = next(title for title, pattern in GROUPS if pattern.match(name))
        drawn = chart(name, runs, (min(steps), max(steps)))
        if drawn:
            found[title].append(drawn)
    return [(title, charts) for title, charts in found.items() if charts]


def chart(name, runs, span):
    """One metric of all runs over the steps first to last; None where no value can be drawn."""
    curves = [(number, thin(run.metrics.get(name, []))) for number, run in enumerate(runs)]
    curves = [(number, points) for number, points in curves if points]
    finite = [(x, y) for _, points in curves for x, y in points if math.isfinite(y)]
    if not finite:
        return None
    marks = guides(name, runs)
    ys = [y for _, y in finite] + [y for y, _ in marks]
    first, final = span[0], max(span[1], span[0] + 1)
    x_ticks = [x for x in ticks(first, final, 4, whole=True) if first <= x <= final]
    y_ticks = ticks(min(ys), max(ys), 4)
    to_x = scale(first, final, LEFT, WIDTH - RIGHT)
    to_y = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    return {
        "name": name,
        "x_ticks": [(to_x(x), short(x)) for x in x_ticks],
        "y_ticks": [*zip(map(to_y, y_ticks), labels(y_ticks), strict=True)],
        "guides": [(to_y(y), text) for y, text in marks],
        "curves": [(number, path(points, to_x, to_y)) for number, points in curves],
        "dots": [(number, to_x(x), to_y(y)) for number, points in curves
                 if len(points) < MARKED for x, y in points if math.isfinite(y)],
        "data": [[number, [[x, y, to_x(x), to_y(y)] for x, y in points if math.isfinite(y)]]
                 for number, points in curves],
    }  # fmt: skip


def guides(name, runs):
    """Values below which a meter speaks of collapse, with a word; known for few meters."""
    if name == "effective_rank":
        return [(LEAST_EFFECTIVE_RANK, "collapse")]
    widths = {run.width for run in runs if name in run.metrics}
    if name != "feature_std" or len(widths) != 1 or None in widths:
        return []
    healthy = widths.pop() ** -0.5
    return [(healthy, "spread evenly"), (LEAST_RELATIVE_STD * healthy, "collapse")]


def thin(points):
    """At most about POINTS points: of each stretch, the lowest and the highest value in order."""
    if len(points) <= POINTS:
        return points
    length = 2 * len(points) / POINTS
    kept = [0, len(points) - 1]
    for number in range(POINTS // 2):
        rows = range(int(number * length), min(int((number + 1) * length), len(points)))
        # A value that is not finite stays: the curve breaks there.
        order = sorted(rows, key=lambda r: (math.isfinite(points[r][1]), points[r][1]))
        kept += [order[0], order[-1]]
    return [points[row] for row in sorted(set(kept))]


def path(points, to_x, to_y):
    """The d of an SVG path, broken where a value is not finite."""
    words, command = [], "M"
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{command}{to_x(x):g} {to_y(y):g}")
        command = "L" if math.isfinite(y) else "M"
    return "".join(words)


def scale(low, high, start, end):
    """A function from low..high to start..end, to a tenth of a pixel."""
    span = high - low
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def ticks(low, high, count, whole=False):
    """Round numbers from at most low to at least high, about count + 1 of them.

    Example:
        >>> ticks(0.13, 0.98, 4)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) / 2 or 1.0
        low, high = low - margin * (not whole), high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, final = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, final + 1)]


def labels(values):
    """Labels of ticks, with as many digits as tell them apart.

    Example:
        >>> labels([73.0624, 73.065, 73.0676]), labels([0.0, 0.5])
        (['73.062', '73.065', '73.068'], ['0', '0.5'])
    """
    for digits in range(4, 12):
        texts = [short(value, digits) for value in values]
        if len({*texts}) == len(texts):
            break
    return texts


def short(value, digits=4):
    """A tick's label, mostly about six letters."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.{digits}g}M"
    if size >= 1e4:
        return f"{value / 1e3:.{digits}g}k"
    if 0 < size < 1e-3:
        return f"{value:.{digits - 3}e}".replace("e-0", "e-")
    return f"{value:.{digits}g}"
