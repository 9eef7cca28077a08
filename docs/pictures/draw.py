"""Draws the pictures of docs/: how each op cuts its work into tiles, and measured curves.

python docs/pictures/draw.py      writes docs/pictures/<op>.svg and curve_<method>.svg
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from curves import curves  # noqa: E402
from svg import Canvas  # noqa: E402


def info_nce():
    c = Canvas(720, 300, "InfoNCE: one tile of the N x M logits exists at a time")
    x, y, side = 60, 50, 24
    strip = range(3, 5)
    c.cells(x, y, 9, 14, side, lambda i, j: "orange" if i in strip and j in (6, 7) else
            "blue" if i in strip else "weak")  # fmt: skip
    for i in range(9):
        c.words(x + i * side + 12, y + i * side + 17, "+", "ink", 15, "middle")
    c.frame(x + 6 * side, y + 3 * side, 2 * side, 2 * side)
    c.arrow(x + 8 * side + 3, y + 4 * side, x + 12 * side, y + 4 * side)
    c.words(x + 7 * side, y - 12, "M keys", "faint", 14, "middle")
    c.words(16, y + 4 * side + 17, "N", "faint")
    c.lines(440, 70, ["+  the positive, apart from the sums", "blue  a strip of queries",
                      "orange  the tile that exists now"], "ink")  # fmt: skip
    c.lines(440, 150, ["A strip walks over all keys and adds", "Σ exp(z - c) and Σ exp(z - c) k:",
                       "D + 1 numbers a query, from which loss", "and query gradient follow.",
                       "The N x M logits are never stored."])  # fmt: skip
    return c


def nt_xent():
    c = Canvas(720, 320, "NT-Xent: half of the symmetric scores, each serving two rows")
    x, y, side, n = 50, 50, 24, 10

    def kind(i, j):
        if (i, j) in ((2, 6), (6, 2)):
            return "orange" if i < j else "green"
        return "blue" if j > i else "weak" if j == i else None

    c.cells(x, y, n, n, side, kind)
    c.frame(x, y, n * side, n * side)
    for i in range(n):
        c.words(x + i * side + 12, y + i * side + 17, "–", "faint", 14, "middle")
        if i < n // 2:
            c.words(x + (i + n // 2) * side + 12, y + i * side + 17, "+", "ink", 15, "middle")
    c.arrow(x + 6 * side + 12, y + 3 * side + 2, x + 6 * side + 12, y + n * side - 3)
    c.arrow(x + 7 * side + 2, y + 2 * side + 12, x + n * side - 3, y + 2 * side + 12)
    c.words(x + n * side / 2, y - 12, "2N views", "faint", 14, "middle")
    c.lines(330, 70, ["blue  tiles that are computed", "orange  one of them: its exponentials",
                      "        E = exp(z - 1/τ) add to its rows and,",
                      "        as E is symmetric, to its columns",
                      "green  its mirror image: never computed",
                      "+  the other view of the same image", "–  a view with itself: no candidate"],
            "ink")  # fmt: skip
    c.lines(330, 226, ["Two walks: row sums r, then gradients",
                       "G = E (g/r of the row + g/r of the column):",
                       "4 (2N)² D operations in place of 6."])  # fmt: skip
    return c


def key_queue():
    c = Canvas(720, 230, "The key queue: a ring, written at a pointer on the device")
    x, y, side = 50, 90, 36
    new = {14, 15, 16, 0, 1}
    c.cells(x, y, 1, 17, side, lambda i, j: "orange" if j in new else "blue")
    for slot, key in zip((14, 15, 16, 0, 1), range(5), strict=True):
        c.words(x + slot * side + 18, y + 23, f"k{key}", "ink", 14, "middle")
    c.words(x + 14 * side + 18, y - 24, "pointer p", "ink", 14, "middle")
    c.arrow(x + 14 * side + 18, y - 18, x + 14 * side + 18, y - 2)
    c.words(x + 2 * side + 18, y - 24, "then (p + B) mod size", "faint", 14, "middle")
    c.arrow(x + 2 * side + 18, y - 18, x + 2 * side + 18, y - 2)
    c.arrow(x + 17 * side - 6, y + side + 14, x + 6, y + side + 14)
    c.words(x + 8.5 * side, y + side + 32, "the end of the ring goes on at its beginning", "faint",
            13, "middle")  # fmt: skip
    c.words(x, 200, "orange  a batch of B = 5 new keys, each normalised on its way in (one launch)")
    c.words(x, 219, "blue  keys of earlier batches: the negatives", "ink")
    return c


def masking():
    c = Canvas(720, 330, "Masking: sort the noise, copy the kept rows, put them back")
    x, side = 150, 42
    noise = [0.62, 0.13, 0.88, 0.41, 0.05, 0.97, 0.70, 0.29, 0.54, 0.36, 0.80, 0.21]
    order = sorted(range(12), key=noise.__getitem__)
    kept = order[:3]
    for i, value in enumerate(noise):
        kind = "orange" if i in kept else "weak"
        c.box(x + i * side, 40, side, 30, kind)
        c.words(x + i * side + 21, 60, f"{value:.2f}", "ink", 13, "middle")
        c.box(x + i * side, 250, side, 30, kind)
        c.words(x + i * side + 21, 270, f"x{i}" if i in kept else "m", "ink", 13, "middle")
    for rank, i in enumerate(kept):
        left = x + (rank + 4.5) * side
        c.box(left, 145, side, 30, "orange")
        c.words(left + 21, 165, f"x{i}", "ink", 13, "middle")
        c.arrow(x + i * side + 21, 72, left + 21, 143)
        c.arrow(left + 21, 177, x + i * side + 21, 248)
    for label, y in (("noise of L tokens", 60), ("kept, by rank", 165), ("restored", 270)):
        c.words(16, y, label, "faint", 13)
    c.lines(x + 8 * side, 152, ["random_masking: one sort,",
                                "then ids, mask and copies"])  # fmt: skip
    c.lines(x - 134, 306, ["restore_tokens: rows by ids_restore, the mask token m elsewhere, "
                           "positions added in the same pass"])  # fmt: skip
    return c


def color_attention():
    c = Canvas(720, 325, "Colour attention: a target cell copies labels from a window")
    side = 20
    for frame, left in enumerate((40, 220)):
        cell = (4, 4) if frame else (3, 3)

        def kind(i, j, cell=cell):
            near = max(abs(i - 4), abs(j - 4)) <= 2
            return "orange" if (i, j) == cell else "blue" if near else "weak"

        c.cells(left, 60, 8, 8, side, kind)
        c.words(left + 80, 48, f"reference frame {frame + 1}", "faint", 13, "middle")
    c.cells(470, 60, 8, 8, side, lambda i, j: "green" if (i, j) == (4, 4) else "weak")
    c.words(550, 48, "target frame", "faint", 13, "middle")
    c.arrow(40 + 3.5 * side, 60 + 4 * side, 470 + 4 * side, 60 + 4.6 * side)
    c.arrow(220 + 5 * side, 60 + 4.5 * side, 470 + 4 * side - 2, 60 + 4.5 * side)
    c.words(40, 248, "green  a target cell; blue  its window of radius 2 in every frame; orange  "
                     "the cells it keeps (top-k)", "ink", 13)  # fmt: skip
    c.lines(40, 270, ["One softmax over the candidates of all frames. A block of target cells",
                      "walks over the references with a running maximum: scores exist a tile",
                      "at a time."])  # fmt: skip
    return c


def dino_loss():
    c = Canvas(720, 300, "dino_loss: one pass over each student row instead of one for each pair")
    x, y, side = 90, 60, 30
    c.cells(x, y, 6, 2, side, lambda i, j: None if i == j else "blue")
    for j in range(2):
        c.words(x + j * side + 15, y - 8, f"t{j + 1}", "ink", 13, "middle")
    for i in range(6):
        c.words(x - 10, y + i * side + 20, f"s{i + 1}", "ink", 13, "end")
    c.frame(x, y, 2 * side, 6 * side)
    c.words(x + 30, y + 206, "pairs t ≠ s", "faint", 13, "middle")
    left = 260
    c.words(left, y - 8, "K prototypes, in chunks", "faint", 13)
    for chunk in range(5):
        kind = "orange" if chunk == 2 else "weak"
        c.box(left + chunk * 80, y, 76, 2 * 22, "green" if chunk == 2 else "weak")
        c.box(left + chunk * 80, y + 60, 76, 6 * 20, kind)
    c.words(left + 410, y + 26, "T teacher rows", "faint", 12, "end")
    c.words(left + 410, y + 126, "S student rows", "faint", 12, "end")
    c.arrow(left + 240, y + 46, left + 240, y + 58)
    c.lines(left, y + 204, ["A chunk's teacher probabilities stay while the S student rows pass:",
                            "Q_s = Σ P_t over t ≠ s, then m·lse(z_s) - <Q_s, z_s>."])  # fmt: skip
    return c


def sinkhorn_knopp():
    c = Canvas(720, 250, "Sinkhorn-Knopp: rows and columns are scaled in turn, the matrix stays")
    for step, left in enumerate((50, 380)):
        across = step == 1
        c.cells(left, 60, 6, 9, 24, lambda i, j, across=across: "orange" if (
            i == 2 if across else j == 5) else "weak")  # fmt: skip
        words = "v: each image's row" if across else "u: each prototype's column"
        c.words(left + 108, 46, words, "ink", 14, "middle")
    c.arrow(290, 120, 365, 120)
    c.arrow(365, 150, 290, 150)
    c.words(328, 176, "3 times", "faint", 13, "middle")
    c.words(50, 228, "B images x K prototypes. Only K + B numbers change; the logits are read once "
                     "for each half-step.", "faint", 13)  # fmt: skip
    return c


def koleo():
    c = Canvas(720, 280, "KoLeo: the nearest neighbour by an arg-max over tiles of products")
    x, y, side = 60, 50, 24
    c.cells(x, y, 8, 8, side, lambda i, j: "weak" if i == j else "orange" if i in (2, 3) and j in (
        4, 5) else "blue" if i in (2, 3) else "weak")  # fmt: skip
    for i in range(8):
        c.words(x + i * side + 12, y + i * side + 17, "–", "faint", 14, "middle")
    c.frame(x + 4 * side, y + 2 * side, 2 * side, 2 * side)
    c.arrow(x + 6 * side + 3, y + 3 * side, x + 8 * side - 2, y + 3 * side)
    c.words(x + 4 * side, y - 12, "N rows", "faint", 14, "middle")
    c.lines(310, 80, ["blue  a block of rows", "orange  the tile of products that exists now",
                      "–  a row with itself: no neighbour"], "ink")  # fmt: skip
    c.lines(310, 160, ["A row keeps its largest product and that index.",
                       "Distance and gradient then come from the difference",
                       "of the two rows: N x D numbers, never N x N."])  # fmt: skip
    return c


def augment():
    c = Canvas(720, 300, "augment: two small matrices of taps crop and resize, then steps in place")
    c.cells(40, 60, 9, 9, 18, lambda i, j: "orange" if 2 <= i < 7 and 3 <= j < 9 else "weak")
    c.frame(40 + 3 * 18, 60 + 2 * 18, 6 * 18, 5 * 18)
    c.words(121, 48, "image, bytes", "faint", 13, "middle")
    c.words(240, 146, "T_rows", "ink", 14, "middle")
    c.words(240, 166, "X T_colsᵀ", "ink", 14, "middle")
    c.arrow(208, 120, 272, 120)
    c.cells(290, 90, 5, 5, 20, lambda i, j: "blue")
    c.words(340, 78, "view, floats", "faint", 13, "middle")
    c.arrow(396, 140, 430, 140)
    steps = ["flip, affine", "posterise", "colours, in drawn order", "grey, blur, solarise",
             "normalise, erase"]  # fmt: skip
    for i, step in enumerate(steps):
        c.box(440, 60 + 34 * i, 230, 30, "green" if i != 2 else "orange", 4)
        c.words(555, 80 + 34 * i, step, "ink", 14, "middle")
    c.lines(40, 250, ["Every sample has parameters of its own. A view pixel is a weighted sum of",
                      "few image pixels (antialiased); a view stays in the cache (CPU) or in",
                      "registers (GPU) while the steps pass."])  # fmt: skip
    return c


OPS = [info_nce, nt_xent, key_queue, masking, color_attention, dino_loss, sinkhorn_knopp, koleo,
       augment]  # fmt: skip


def pictures():
    """{file name: SVG} of all pictures."""
    drawn = {f"{op.__name__}.svg": op().text() for op in OPS}
    return drawn | {f"curve_{name}.svg": canvas.text() for name, canvas in curves()}


def main():
    for name, text in pictures().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
