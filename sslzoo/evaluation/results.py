"""What an evaluator hands back: rows of numbers, and the pictures beside them."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

Z_95 = 1.959964  # two-sided 95 % of a normal distribution


class Row(NamedTuple):
    """One number with its uncertainty."""

    metric: str
    value: float
    std: float | None = None  # over seeds, draws or trials
    unit: str = "share"  # "share" is printed as a percentage
    count: int | None = None  # independent samples behind a share, for its interval

    @property
    def interval(self):
        """95 % interval of a share of `count` samples (Wilson, 1927), or None."""
        if self.count is None or self.unit != "share":
            return None
        n, p, z = self.count, self.value, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def text(self):
        """The value as it is printed, with its standard deviation or its interval."""
        if self.unit != "share":
            spread = f" ± {spread_text(self.std)}" if self.std is not None else ""
            return f"{number(self.value)}{spread} {self.unit}".rstrip()
        if self.std is None and self.interval:
            low, high = self.interval
            return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        return percent(self.value, self.std)

    def record(self):
        """The row as JSON holds it."""
        return {**self._asdict(), "interval": self.interval}


@dataclass
class Result:
    """What one evaluation found."""

    rows: list  # of Row
    pictures: dict = field(default_factory=dict)  # name -> path
    details: dict = field(default_factory=dict)  # anything else that JSON can hold
    notes: list = field(default_factory=list)  # one line each, for the user


def percent(value, std=None):
    """A share as a percentage, with its standard deviation where there is one."""
    return f"{100 * value:.1f} %" + (f" ± {100 * std:.1f}" if std is not None else "")


def number(value):
    """A value to five digits, and all whole ones: no exponent for what people count.

    Example:
        >>> number(0.0098796), number(1234567.8)
        ('0.0098796', '1234568')
    """
    return f"{value:.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def spread_text(std, share=False):
    """A standard deviation: percent to a tenth, other units to two digits and all whole ones.

    Example:
        >>> spread_text(1234.5), spread_text(0.01234), spread_text(1.26, share=True)
        ('1234', '0.012', '1.3')
    """
    return f"{std:.1f}" if share else f"{std:.0f}" if std >= 10 else f"{std:.2g}"
