"""Real pictures without a download: scikit-learn's two photographs, cut into a small labelled ImageFolder tree.

    python benchmarks/make_photos.py FOLDER [--validate FRACTION]

makes FOLDER/china/*.jpg and FOLDER/flower/*.jpg; the label is the photograph that a tile was cut from. With
`--validate 1/5` every fifth tile of each class goes to FOLDER/val/<class>/, the others to FOLDER/train/<class>/.
"""

import argparse
from fractions import Fraction
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

TILE = 80  # pixels; each photograph is 427 x 640


def part(tile: int, validate: Fraction) -> str:
    """Return the part that a class's tile number `tile`, from 0, belongs to: val has `validate` of them, evenly."""
    return "val" if (tile + 1) * validate // 1 > tile * validate // 1 else "train"


def make_photos(folder: Path, validate: Fraction | None = None) -> int:
    """Write the tiles below `folder`; return how many there are."""
    photographs = load_sample_images()
    made = 0
    for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
        label = Path(name).stem
        picture = Image.fromarray(pixels)
        corners = [
            (left, top)
            for top in range(0, picture.height - TILE + 1, TILE)
            for left in range(0, picture.width - TILE + 1, TILE)
        ]
        for tile, (left, top) in enumerate(corners):
            file = f"{top:03}-{left:03}.jpg"
            target = folder / label
            if validate is not None:
                target = folder / part(tile, validate) / label
                for other in {"train", "val"} - {part(tile, validate)}:  # of an earlier call with another fraction
                    (folder / other / label / file).unlink(missing_ok=True)
            target.mkdir(parents=True, exist_ok=True)
            picture.crop((left, top, left + TILE, top + TILE)).save(target / file, quality=95)
            made += 1
    return made


def fraction(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path, metavar="FOLDER")
    arguments.add_argument(
        "--validate", type=fraction, metavar="FRACTION", help="split off so much, 0.2 or 1/5, as val"
    )
    options = arguments.parse_args()
    print(f"{make_photos(options.folder, options.validate)} pictures in {options.folder}")


if __name__ == "__main__":
    main()
