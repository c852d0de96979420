"""Puts tile-<row>-<column>.png files together into fractal.png: the command of the last job."""

from __future__ import annotations

import sys
from pathlib import Path

import png


def main() -> int:
    tiles = {tuple(map(int, path.stem.split("-")[1:])): png.read(path) for path in Path("tiles").glob("*/tile-*-*.png")}
    rows = 1 + max(row for row, _ in tiles)
    columns = 1 + max(column for _, column in tiles)
    missing = [(row, column) for row in range(rows) for column in range(columns) if (row, column) not in tiles]
    if missing:
        print(f"tiles are missing: {missing}", file=sys.stderr)
        return 1
    lines: list[bytes] = []
    for row in range(rows):
        strips = [tiles[row, column][1] for column in range(columns)]
        lines.extend(b"".join(parts) for parts in zip(*strips, strict=True))
    width = sum(tiles[0, column][0] for column in range(columns))
    png.write(Path("fractal.png"), width, lines)
    print(f"{len(tiles)} tiles, {width} x {len(lines)} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
