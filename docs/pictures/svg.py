"""A small SVG canvas: boxes, words, arrows and lines that read on light and on dark pages."""

from html import escape

STYLE = """
.card { fill: #ffffff } .ink { fill: #24292f } .faint { fill: #57606a }
.weak { fill: #e7eaee } .blue { fill: #a9c7ea } .orange { fill: #f4c27a } .green { fill: #a8d8a0 }
.grid { stroke: #ffffff } .edge { stroke: #57606a; fill: none }
.frame { stroke: #24292f; fill: none }
.curve { stroke: #2f6db3; fill: none } .second { stroke: #b5651d; fill: none }
.curveword { fill: #2f6db3 } .secondword { fill: #b5651d }
@media (prefers-color-scheme: dark) {
.card { fill: #1c2128 } .ink { fill: #e6edf3 } .faint { fill: #9da7b1 }
.weak { fill: #353c45 } .blue { fill: #2f5f96 } .orange { fill: #8a5a14 } .green { fill: #34703a }
.grid { stroke: #1c2128 } .edge { stroke: #9da7b1 } .frame { stroke: #e6edf3 }
.curve { stroke: #7db3ee } .second { stroke: #e6a35c }
.curveword { fill: #7db3ee } .secondword { fill: #e6a35c }
}
text { font-family: system-ui, sans-serif }
""".strip()
HEAD = '<path d="M0 0 L8 4 L0 8 z" class="faint"/>'


class Canvas:
    """A picture on a card of its own.

    Args:
        width, height: in pixels.
        title: said to those who cannot see it.
    """

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def box(self, x, y, w, h, kind="weak", rounded=0):
        """A filled rectangle; its kind is a class of STYLE."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{rounded}" '
                          f'class="{kind} grid"/>')  # fmt: skip

    def frame(self, x, y, w, h):
        """A rectangle's outline."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" class="frame" '
                          'stroke-width="2"/>')  # fmt: skip

    def cells(self, x, y, rows, columns, side, kind=lambda i, j: "weak"):
        """A grid; kind(row, column) is the class of a cell, None leaves it out."""
        for i in range(rows):
            for j in range(columns):
                if kind(i, j):
                    self.box(x + j * side, y + i * side, side, side, kind(i, j))

    def words(self, x, y, text, kind="ink", size=14, at="start"):
        """A line of text; at: start, middle or end."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" font-size="{size}" '
                          f'text-anchor="{at}">{escape(text)}</text>')  # fmt: skip

    def lines(self, x, y, texts, kind="faint", size=13):
        """Lines of text, one below the other."""
        for i, text in enumerate(texts):
            self.words(x, y + 19 * i, text, kind, size)

    def arrow(self, x0, y0, x1, y1):
        self.parts.append(f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" class="edge" '
                          'stroke-width="1.5" marker-end="url(#head)"/>')  # fmt: skip

    def path(self, points, kind="curve", dashed=False):
        """A line through points."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<polyline points="{joined}" class="{kind}" stroke-width="2"{dashes}/>')

    def text(self):
        """The SVG file."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{self.height}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto">{HEAD}</marker></defs>',
            f'<rect width="{self.width}" height="{self.height}" rx="8" class="card"/>',
            *self.parts,
            "</svg>\n",
        ])  # fmt: skip
