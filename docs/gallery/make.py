"""Makes every picture of the gallery by the commands that stand under it in README.md.

    python docs/gallery/make.py runs/digits=RUN runs/fashion_mnist=RUN

The commands name the runs as the README does; each is called with the folder given for it here. Those of a run that is
not given are passed over.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LARGEST = 500_000  # bytes of a picture


def commands(page: str) -> Iterator[list[str]]:
    """The words of each `spheregen` command that a page shows as code, without that first one."""
    for command in re.findall(r"^    (spheregen (?:.*\\\n)*.*)$", page, re.M):
        yield shlex.split(command.replace("\\\n", " "))[1:]


def inputs(folder: Path) -> None:
    """The images that no model has seen the like of: a letter, and a photograph that comes with scikit-learn."""
    import sklearn.datasets

    letter, font = Image.new("L", (56, 56)), ImageFont.load_default(size=52)
    ImageDraw.Draw(letter).text((28, 28), "A", fill=255, anchor="mm", stroke_width=2, font=font)
    letter.save(folder / "letter.png", optimize=True)
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg") as photo:
        left, top = (photo.width - photo.height) // 2, 0
        square = photo.crop((left, top, left + photo.height, photo.height)).resize((112, 112)).convert("L")
    square.save(folder / "flower.png", optimize=True)


def shrink(path: Path) -> None:
    """Write a picture without colours with a byte a pixel, and in 64 greys where the file were too large. Raises
    SystemExit where it still is."""
    if path.suffix == ".png":
        with Image.open(path) as file:
            picture, grey = file.convert("RGB"), file.convert("L")
        if np.array_equal(np.asarray(picture), np.asarray(grey.convert("RGB"))):
            grey.save(path, optimize=True)
            if path.stat().st_size > LARGEST:
                grey.point([(v >> 2) * 255 // 63 for v in range(256)]).save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST:
        sys.exit(f"{path}: {size:,} bytes are more than {LARGEST:,}; show fewer images")


def make(runs: dict[str, str], page: str) -> None:
    """Call the commands of a page for the runs given. Raises SystemExit at the first that fails."""
    from spheregen import cli

    for words in commands(page):
        if not (named := [word for word in words if word in runs]):
            continue
        print("$ spheregen", shlex.join(words))
        try:
            cli.main([runs.get(word, word) for word in words])
        except SystemExit as done:
            if done.code:
                sys.exit(f"{named[0]}: that command failed")
        out = ROOT / words[words.index("--out") + 1]
        for path in out.parent.glob(f"{out.stem}.*"):
            shrink(path)


def main(arguments: Sequence[str]) -> None:
    runs = dict(argument.split("=", 1) for argument in arguments)
    inputs(HERE)
    make(runs, (HERE / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
