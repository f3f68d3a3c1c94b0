"""Real pictures without a download: scikit-learn's two photographs, cut into a small labelled ImageFolder tree.

    python benchmarks/make_photos.py FOLDER

makes FOLDER/china/*.jpg and FOLDER/flower/*.jpg; the label is the photograph that a tile was cut from.
"""

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

TILE = 80  # pixels; each photograph is 427 x 640


def make_photos(folder: Path) -> int:
    """Write the tiles below `folder`; return how many there are."""
    photographs = load_sample_images()
    made = 0
    for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
        target = folder / Path(name).stem
        target.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        for top in range(0, picture.height - TILE + 1, TILE):
            for left in range(0, picture.width - TILE + 1, TILE):
                tile = picture.crop((left, top, left + TILE, top + TILE))
                tile.save(target / f"{top:03}-{left:03}.jpg", quality=95)
                made += 1
    return made


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path, metavar="FOLDER")
    folder = arguments.parse_args().folder
    print(f"{make_photos(folder)} pictures in {folder}")


if __name__ == "__main__":
    main()
