"""The block algorithms of csrc/common.cuh, run on the CPU with the warps in any order."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Between two block barriers every warp runs on its own, as far ahead as it likes: here to the end,
# one warp after the other, in an order that changes. Within a warp the steps are in lockstep.
EMULATION = r"""
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "common.cuh"

using namespace sslops;

struct Step {
  uint32_t size, stride;
};

void run_warp(std::vector<uint64_t>& keys, const std::vector<Step>& steps, int warp, int threads) {
  for (const Step& step : steps)
    for (int lane = 0; lane < 32; ++lane)
      for (uint32_t pair = 32 * warp + lane; pair < keys.size() / 2; pair += threads)
        bitonic_exchange(keys.data(), pair, step.size, step.stride);
}

void block_sort(std::vector<uint64_t>& keys, int threads, std::mt19937& random) {
  std::vector<int> warps(threads / 32);
  for (size_t i = 0; i < warps.size(); ++i) warps[i] = static_cast<int>(i);
  std::vector<Step> steps;
  for (uint32_t size = 2; size <= keys.size(); size *= 2)
    for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
      steps.push_back({size, stride});
      const bool last = size == keys.size() && stride == 1;
      if (!last && next_exchange_stays_in_warp(size, stride)) continue;
      std::shuffle(warps.begin(), warps.end(), random);
      for (int warp : warps) run_warp(keys, steps, warp, threads);
      steps.clear();
    }
}

int main() {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> word(0, 50);
  for (int threads : {32, 64, 256})
    for (uint32_t L : {1, 2, 3, 31, 32, 33, 64, 65, 127, 128, 129, 196, 255, 1000, 4097, 8192}) {
      std::vector<uint64_t> keys(next_power_of_two(L), kLastKey);
      for (uint32_t i = 0; i < L; ++i) keys[i] = pack_key(word(random) / 50.0f, i);
      std::vector<uint64_t> sorted = keys;
      std::sort(sorted.begin(), sorted.end());
      block_sort(keys, threads, random);
      if (keys != sorted) {
        std::printf("not sorted: L = %u, %d threads\\n", L, threads);
        return 1;
      }
    }
  std::printf("sorted");
}
"""


@pytest.fixture(scope="module")
def compiler():
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler was found")
    return found


def run(compiler, source, folder):
    (folder / "main.cpp").write_text(source)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, "main.cpp", "-o", "main"], cwd=folder, check=True)
    return subprocess.run([folder / "main"], capture_output=True, text=True).stdout


def test_block_sort_needs_no_more_barriers_than_it_has(compiler, tmp_path):
    assert run(compiler, EMULATION, tmp_path) == "sorted"


def test_block_sort_needs_the_barriers_it_has(compiler, tmp_path):
    # The emulation must be able to fail: with one barrier less it does.
    weaker = EMULATION.replace(
        "next_exchange_stays_in_warp(size, stride)", "(stride <= 64 && stride > 1)"
    )
    assert run(compiler, weaker, tmp_path).startswith("not sorted")
