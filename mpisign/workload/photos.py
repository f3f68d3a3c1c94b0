"""Real pictures without a download: scikit-learn's two photographs, cut into a small labelled ImageFolder tree."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

TILE = 80  # pixels; each photograph is 427 x 640


def part(tile: int, validate: Fraction) -> str:
    """Return the part that a class's tile number `tile`, from 0, belongs to: val has `validate` of them, evenly."""
    return "val" if (tile + 1) * validate // 1 > tile * validate // 1 else "train"


def make_photos(folder: Path, validate: Fraction | None = None) -> int:
    """Write the tiles to FOLDER/<class>/, one class for each photograph; return how many there are.

    With `validate` that share of each class goes to FOLDER/val/<class>/, the others to FOLDER/train/<class>/.

    Raises:
        ValueError: scikit-learn, which brings the photographs, is missing.
        OSError: a file can't be written.

    """
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ValueError(
            f"the photographs are scikit-learn's, and {error.name} is missing: python -m pip install 'mpisign[photos]'"
        ) from None

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
