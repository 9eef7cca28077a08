"""Measures random views as benchmarks/views.py does and writes the results file.

python benchmarks/record_views.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that is not installed

from benchmarks import measure, results, views
from sslops.ops.augment.cases import MEASURED


def main():
    torch.set_num_threads(1)
    records = [dict(case=case.name, by=by, images_per_second=rate)
               for case in MEASURED for by, rate in views.measure(case).items()]  # fmt: skip
    print(f"wrote {results.add(measure.machine('cpu'), 'views', records)}")


if __name__ == "__main__":
    main()
