"""Measured curves: what metrics.csv of a recorded run says, as a picture.

docs/pictures/curves.json holds for each method the command, the value of chance, and rows of
[step, loss, accuracy or None]; `record` adds one from a run folder.

python docs/pictures/curves.py RUN NAME CHANCE COLUMN "COMMAND"
"""

import csv
import json
import sys
from pathlib import Path

from svg import Canvas

FILE = Path(__file__).with_name("curves.json")
POINTS = 40
LEFT, RIGHT, TOP, BOTTOM = 60, 660, 40, 220


def curves():
    """(name, Canvas) of every recorded run."""
    for name, run in json.loads(FILE.read_text()).items():
        yield name, curve(run)


def curve(run):
    """Loss over steps with its value of chance, and one more column on a scale of its own."""
    c = Canvas(720, 270, f"{run['command']}: loss and {run['column']} over steps")
    last = run["rows"][-1][0]
    losses = [(step, loss) for step, loss, _ in run["rows"]]
    chance = [(0, run["chance"]), (last, run["chance"])] if run["chance"] else []
    axis(c, losses + chance, last, LEFT - 8, "end", "curveword")
    scaled(c, losses, chance + losses, last, "curve")
    scaled(c, chance, chance + losses, last, "edge", dashed=True)
    c.words(LEFT, TOP - 16, "loss" + " (dashed: chance)" * bool(chance), "curveword", 14)
    others = [(step, value) for step, _, value in run["rows"] if value is not None]
    if others:
        axis(c, others, last, RIGHT + 8, "start", "secondword")
        scaled(c, others, others, last, "second")
        c.words(RIGHT, TOP - 16, run["column"], "secondword", 14, "end")
    c.frame(LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP)
    for step in (0, last // 2, last):
        c.words(LEFT + (RIGHT - LEFT) * step / last, BOTTOM + 20, str(step), "faint", 13, "middle")
    c.words((LEFT + RIGHT) / 2, BOTTOM + 40, "optimizer steps", "faint", 13, "middle")
    return c


def limits(points):
    """The range of a scale: the values, with a little room."""
    values = [value for _, value in points]
    room = 0.06 * (max(values) - min(values)) or 1
    return min(values) - room, max(values) + room


def scaled(c, points, scale, last, kind, dashed=False):
    low, high = limits(scale)
    width, height = RIGHT - LEFT, BOTTOM - TOP
    placed = [(step / last, (value - low) / (high - low)) for step, value in points]
    c.path([(LEFT + width * x, BOTTOM - height * y) for x, y in placed], kind, dashed)


def axis(c, scale, last, x, at, kind):
    low, high = limits(scale)
    for share in (0.05, 0.5, 0.95):
        value = f"{low + share * (high - low):.3g}"
        c.words(x, BOTTOM - (BOTTOM - TOP) * share + 4, value, kind, 12, at)


def record(folder, chance, column, command):
    """What curves.json keeps of a run."""
    with Path(folder, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = {round(i * (len(rows) - 1) / (POINTS - 1)) for i in range(POINTS)}
    wanted |= {i for i, row in enumerate(rows) if column.endswith("knn_accuracy") and row[column]}
    kept = [row for i, row in enumerate(rows) if i in wanted]
    return {"command": command, "chance": chance, "column": column,
            "rows": [[int(row["step"]), rounded(row["loss"]), rounded(row.get(column))]
                     for row in kept]}  # fmt: skip


def rounded(text):
    return float(f"{float(text):.4g}") if text else None


def main():
    folder, name, chance, column, command = sys.argv[1:]
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    content[name] = record(folder, float(chance) or None, column, command)
    runs = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
                      for key, value in sorted(content.items()))  # fmt: skip
    FILE.write_text(f"{{\n{runs}\n}}\n")


if __name__ == "__main__":
    main()
