"""Pictures that are as hard to decode as photographs, and their labels.

Nobody's photographs can be part of a package.  What is drawn here has regions with
edges, shading and texture at every scale, as photographs have, and compresses to about
as many bytes.  As pictures they show nothing.
"""

import cv2
import numpy as np

IGNORE = 255


def draw_example(
    rng: np.random.Generator,
    size: tuple[int, int],
    num_classes: int,
    *,
    regions: int,
    grain: float,
    border: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image and the label that belongs to it.

    Args:
        rng: Decides everything.
        size: H, W in pixels.
        num_classes: C; most regions are of the first few.
        regions: About how many regions lie side by side.
        grain: Contrast of the finest texture, in grey values.
        border: Width of the unlabelled line around regions, in pixels; 0 for none.

    Returns:
        image [H, W, 3] uint8, label [H, W] uint8 with ids in 0..C-1 or 255.
    """
    cell = max(size) / regions
    fields = [_noise(rng, size, cell, octaves=3) for _ in range(8)]
    number = np.argmax(fields, axis=0).astype(np.uint8)
    ids = np.minimum(rng.geometric(0.2, 8) - 1, num_classes - 1).astype(np.uint8)
    label = ids[number]
    if border:
        edges = cv2.morphologyEx(number, cv2.MORPH_GRADIENT, np.ones((border, border)))
        label[edges > 0] = IGNORE
    colors = rng.uniform(50, 200, (8, 3)).astype(np.float32)
    image = cv2.GaussianBlur(colors[number], (0, 0), 0.7)
    image += 20 * _noise(rng, size, max(size) / 2, octaves=4)[..., None]
    image += grain * _noise(rng, size, 8, octaves=4, falling=0.9)[..., None]
    for channel in range(3):
        image[..., channel] += grain / 3 * _noise(rng, size, 4, octaves=3)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def _noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    cell: float,
    octaves: int,
    falling: float = 0.6,
) -> np.ndarray:
    """[H, W] float32 of variance about 1 for one octave.

    The spectrum falls with frequency, as in photographs: each octave has half the cell
    and `falling` of the contrast of the one before.
    """
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        coarse = [max(int(side / step), 1) + 1 for side in size]
        values = rng.standard_normal(coarse, np.float32) * falling**octave
        total += cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    return total
