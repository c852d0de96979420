"""Renders one tile of the Mandelbrot set: the command of a job.

python3 tile.py COLUMN ROW [--fail-first]   writes tile-<row>-<column>.png into the working directory
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import png

COLUMNS, ROWS, SIDE = 6, 4, 160
LEFT, TOP, WIDTH = -0.7507, 0.1192, 0.0126
DEPTH = 260


def color(x: float, y: float) -> bytes:
    """The pixel at a point of the plane: smooth escape time, through a wheel of cosines."""
    c = complex(x, y)
    z = 0j
    for step in range(DEPTH):
        z = z * z + c
        if z.real * z.real + z.imag * z.imag > 64.0:
            t = 0.035 * (step + 1 - math.log2(math.log(abs(z)))) ** 1.05
            return bytes(int(127.5 + 127.5 * math.cos(6.2832 * (t + shift))) for shift in (0.55, 0.70, 0.85))
    return b"\x05\x04\x12"


def main() -> int:
    column, row = int(sys.argv[1]), int(sys.argv[2])
    attempt = json.loads(Path("job.json").read_text())["attempt"]
    if "--fail-first" in sys.argv and attempt == 1:
        print("this tile fails its first time, on purpose", file=sys.stderr)
        return 1
    pixel = WIDTH / (COLUMNS * SIDE)
    lines = []
    for line in range(row * SIDE, (row + 1) * SIDE):
        points = range(column * SIDE, (column + 1) * SIDE)
        lines.append(b"".join(color(LEFT + at * pixel, TOP - line * pixel) for at in points))
    png.write(Path(f"tile-{row}-{column}.png"), SIDE, lines)
    print(f"tile {row}-{column} done in attempt {attempt}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
