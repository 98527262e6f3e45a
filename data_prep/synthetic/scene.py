"""One drawn street scene: image and label from a seed.

The layers are painted from far to near, so that near things hide far ones:
sky, buildings, ground, road, plants, then vehicles, pedestrians and traffic
lights by distance.  Colour alone tells little: every class draws its colour
from several palettes that overlap with those of the others (grey sky, grey
road, grey facade, grey car; green cars and green facades), and light, colour
cast and noise differ from scene to scene.  What tells is shape, place, texture.

Lengths are in pixels unless they are called a share; colours are float32 RGB in
0..1 until the scene is photographed.
"""

import cv2
import numpy as np

from ss_gan_tf.datasets import DATASETS

HEIGHT, WIDTH = 128, 160  # px

_FACTS = DATASETS["synthetic"]
_ID = {name: class_id for class_id, name in enumerate(_FACTS.class_names)}

# Palettes: lowest and highest hue (degrees), saturation and value.
_GREY = ((0, 360), (0.0, 0.1), (0.3, 0.85))
_SKIES = (((200, 225), (0.2, 0.6), (0.65, 0.95)), ((15, 45), (0.2, 0.5), (0.6, 0.9)))
_ROADS = (((200, 230), (0.05, 0.3), (0.3, 0.7)), ((20, 45), (0.1, 0.35), (0.3, 0.7)))
_WALLS = (
    ((0, 45), (0.15, 0.6), (0.35, 0.85)),
    ((195, 230), (0.15, 0.5), (0.4, 0.9)),
    ((75, 150), (0.15, 0.5), (0.35, 0.75)),
)
_LEAVES = (
    ((75, 150), (0.2, 0.6), (0.3, 0.7)),
    ((15, 60), (0.3, 0.6), (0.35, 0.75)),
)
_PAINTS = (((0, 360), (0.2, 0.7), (0.3, 0.9)),)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene.

    Args:
        rng: All of the scene's randomness.

    Returns:
        image [HEIGHT, WIDTH, 3] uint8 RGB and label [HEIGHT, WIDTH] uint8; the
        outlines of vehicles, pedestrians and traffic lights, and the poles, carry
        the ignore label.
    """
    scene = _Scene(rng)
    scene.draw_sky()
    scene.draw_buildings()
    scene.draw_ground()
    scene.draw_road()
    scene.draw_trees()
    movers = [scene.draw_vehicle] * rng.integers(1, 4)
    movers += [scene.draw_pedestrian] * rng.integers(1, 4)
    movers += [scene.draw_traffic_light] * rng.integers(1, 3)
    # Small distances last; bushes stand anywhere and hide parts of the others.
    movers += [scene.draw_bush] * rng.integers(0, 3)
    distances = np.sort(rng.uniform(0, 1, len(movers)))[::-1]
    for i, distance in zip(rng.permutation(len(movers)), distances, strict=True):
        movers[i](distance)
    return scene.photograph(), scene.label


class _Scene:
    """A canvas with its label; each method paints one kind of thing."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        self.label = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.horizon = int(rng.uniform(0.38, 0.52) * HEIGHT)
        self.vanishing_x = rng.uniform(0.35, 0.65) * WIDTH
        self.road_half_width = rng.uniform(0.45, 0.75) * WIDTH  # at the bottom edge

    # --- Layers --------------------------------------------------------------

    def draw_sky(self):
        top, bottom = self.colour(_SKIES), self.colour(_SKIES)
        share = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None, None]
        clouds = np.clip(self.noise(30) + self.noise(12) / 2, 0, None)[..., None]
        sky = top + (bottom - top) * share + 0.25 * clouds
        self.paint(np.full((HEIGHT, WIDTH), 255, np.uint8), sky, "sky")

    def draw_buildings(self):
        x = self.rng.uniform(-30, 10)
        while x < WIDTH:
            width = self.rng.uniform(22, 50)
            # Streets open towards the vanishing point: low or no facades there.
            nearness = abs(x + width / 2 - self.vanishing_x) / WIDTH
            height = HEIGHT * self.rng.uniform(0.1, 0.3) + HEIGHT * 0.5 * nearness
            if nearness > 0.08:
                self.draw_facade(int(x), int(width), int(height))
            x += width + self.rng.choice([0, 0, 6])

    def draw_facade(self, x: int, width: int, height: int):
        left, right, foot = x, x + width, self.horizon + 4
        mask = self.mask_of(_box(left, foot - height, right, foot))
        wall = self.colour(_WALLS) + 0.03 * self.noise(1)[..., None]
        pane = (self.colour(_SKIES + _WALLS) * self.rng.uniform(0.35, 0.8)).tolist()
        step_x, step_y = int(self.rng.integers(7, 11)), int(self.rng.integers(8, 13))
        for y in range(foot - height + 3, foot - 5, step_y):
            for pane_x in range(left + 3, right - 4, step_x):
                corner = pane_x + 3, y + step_y - 5
                cv2.rectangle(wall, (pane_x, y), corner, pane, cv2.FILLED)
        self.paint(mask, wall, "building")

    def draw_ground(self):
        mask = self.mask_of(_box(0, self.horizon, WIDTH, HEIGHT))
        self.paint(mask, self.foliage(), "plants")

    def draw_road(self):
        far = 0.06 * self.road_half_width
        mask = self.mask_of(self.strip(-1, 1, far))
        road = self.colour(_ROADS) + 0.04 * self.noise(1)[..., None]
        road = road + 0.08 * self.noise(25)[..., None]  # patches, wet places
        paint = np.float32(self.rng.uniform(0.75, 0.95))
        for lane in (-0.03, self.rng.uniform(0.3, 0.5), -self.rng.uniform(0.3, 0.5)):
            mark = self.mask_of(self.strip(lane, lane + 0.05, far)) > 0
            depth = 40 / (np.arange(HEIGHT) - self.horizon + 3).clip(1)
            dashes = np.sin(depth * 6 + self.rng.uniform(0, 6)) > 0
            road[mark & dashes[:, None]] = paint
        self.paint(mask, road, "road")

    def draw_trees(self):
        for _ in range(self.rng.integers(1, 4)):
            side = self.rng.choice([-1, 1])
            x = self.vanishing_x + side * self.rng.uniform(0.25, 0.6) * WIDTH
            radius = self.rng.uniform(10, 20)
            foot = self.horizon + self.rng.uniform(2, 14)
            crown_y = foot - self.rng.uniform(1.6, 2.4) * radius
            trunk = self.mask_of(_box(x - 2, crown_y, x + 2, foot))
            self.paint(trunk, self.colour(_WALLS[:1]) * 0.6, "plants")
            self.paint(self.blob(x, crown_y, radius), self.foliage(), "plants")

    # --- Things, by distance: 0 near, 1 far ----------------------------------

    def draw_bush(self, distance: float):
        foot, size = self.place(distance)
        x = self.vanishing_x + self.rng.choice([-1, 1]) * self.edge(foot)
        radius = 0.22 * size
        self.paint(self.blob(x, foot - radius, radius), self.foliage(), "plants")

    def draw_vehicle(self, distance: float):
        foot, size = self.place(distance)
        width, height = self.rng.uniform(0.75, 1.0) * size, 0.62 * size
        if self.rng.random() < 0.4:  # seen from the side
            width *= 1.6
        x = self.vanishing_x + self.rng.uniform(-0.6, 0.6) * self.edge(foot)
        left, right, top = x - width / 2, x + width / 2, foot - height
        body = _box(left, top + 0.42 * height, right, foot - 0.1 * height)
        inset = self.rng.uniform(0.1, 0.22) * width
        waist = top + 0.45 * height
        cabin = [(left + inset / 2, waist), (left + inset, top)]
        cabin += [(right - inset, top), (right - inset / 2, waist)]
        mask = self.mask_of(body, cabin)
        for wheel_x in (left + 0.18 * width, right - 0.18 * width):
            mask |= self.disc(wheel_x, foot - 0.12 * height, 0.14 * height)
        paint = self.colour(_PAINTS) + self.shade(top, foot)
        paint[self.inner(cabin, 0.75) > 0] = self.colour(_SKIES) * 0.6
        lamps = np.float32(self.rng.choice([0.95, 0.6])), 0.2, 0.15
        for wheel_x in (left + 0.18 * width, right - 0.18 * width):
            paint[self.disc(wheel_x, foot - 0.12 * height, 0.14 * height) > 0] = 0.1
            lamp = self.disc(wheel_x, foot - 0.42 * height, 0.07 * height)
            paint[lamp > 0] = lamps
        self.paint(mask, paint, "vehicle", outline=True)

    def draw_pedestrian(self, distance: float):
        foot, size = self.place(distance)
        height = self.rng.uniform(0.85, 1.05) * size
        wide = 0.3 * height
        x = self.vanishing_x + self.rng.uniform(-1.0, 1.0) * self.edge(foot)
        top, hip, neck = foot - height, foot - 0.45 * height, foot - 0.8 * height
        head = self.disc(x, top + 0.1 * height, 0.11 * height)
        torso = _box(x - wide / 2, neck, x + wide / 2, hip)
        stride = self.rng.uniform(0.1, 0.55) * wide
        legs = [
            [(x, hip - 2), (x + side * wide / 2, hip), (x + side * stride, foot)]
            + [(x + side * stride - side * 0.22 * height, foot)]
            for side in (-1, 1)
        ]
        mask = head | self.mask_of(torso, *legs)
        clothes = self.colour(_PAINTS) + self.shade(top, foot)
        clothes[int(max(hip, 0)) :] = self.colour(_PAINTS) * 0.8
        clothes[head > 0] = self.colour((((15, 35), (0.25, 0.6), (0.3, 0.9)),))
        self.paint(mask, clothes, "pedestrian", outline=True)

    def draw_traffic_light(self, distance: float):
        foot, size = self.place(0.7 * distance)
        x = self.vanishing_x + self.rng.choice([-1, 1]) * 0.85 * self.edge(foot)
        x = np.clip(x, 10, WIDTH - 10)
        height, width = 0.62 * size, 0.26 * size
        top = max(foot - self.rng.uniform(1.35, 1.7) * size, 2)
        pole = self.mask_of(_box(x - 1.5, top, x + 1.5, foot))
        self.image[pole > 0] = self.colour(_PAINTS) * 0.5
        self.label[pole > 0] = _FACTS.ignore_label
        mask = self.mask_of(_box(x - width / 2, top, x + width / 2, top + height))
        housing = self.colour(_LEAVES + _PAINTS) * 0.6 + np.zeros_like(self.image)
        lit = self.rng.integers(3)
        colours = ((0.95, 0.15, 0.1), (0.95, 0.7, 0.1), (0.1, 0.85, 0.4))
        for i, colour in enumerate(colours):
            lamp = self.disc(x, top + (i + 0.5) / 3 * height, 0.32 * width)
            housing[lamp > 0] = np.float32(colour) * (1.0 if i == lit else 0.25)
        self.paint(mask, housing, "traffic_light", outline=True)

    # --- The camera ----------------------------------------------------------

    def photograph(self) -> np.ndarray:
        """Shadows, light, colour cast, blur and noise; float RGB to uint8."""
        rng, image = self.rng, self.image
        shadow = 1 - rng.uniform(0.1, 0.4) * (self.noise(35) > 0.35)[..., None]
        slope = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :, None]
        light = rng.uniform(0.65, 1.1) * (1 + rng.uniform(-0.2, 0.2) * slope)
        cast = rng.uniform(0.85, 1.15, 3).astype(np.float32)
        image = image * shadow * light * cast
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
        image += rng.normal(0, rng.uniform(0.015, 0.05), image.shape)
        return (image.clip(0, 1) * 255).round().astype(np.uint8)

    # --- Brushes -------------------------------------------------------------

    def paint(self, mask, colour, name: str, outline: bool = False):
        """Paints where mask is set; an outline keeps no class, as edges mix."""
        inside = mask > 0
        self.image[inside] = np.broadcast_to(colour, self.image.shape)[inside]
        self.label[inside] = _ID[name]
        if outline:
            core = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=255)
            self.label[inside & (core == 0)] = _FACTS.ignore_label

    def colour(self, palettes) -> np.ndarray:
        """A colour from one of the palettes, or grey as anything may be."""
        choices = (*palettes, _GREY)
        palette = choices[self.rng.integers(len(choices))]
        hsv = np.float32([[[self.rng.uniform(*limits) for limits in palette]]])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]

    def noise(self, cell: int) -> np.ndarray:
        """[HEIGHT, WIDTH] float32 noise of unit strength, `cell` pixels coarse."""
        shape = HEIGHT // cell + 2, WIDTH // cell + 2
        grid = self.rng.normal(0, 1, shape).astype(np.float32)
        return cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)

    def foliage(self) -> np.ndarray:
        texture = 0.09 * self.noise(2) + 0.09 * self.noise(5)
        return self.colour(_LEAVES) + texture[..., None]

    def shade(self, top: float, foot: float) -> np.ndarray:
        """Light from above: [HEIGHT, WIDTH, 3], +0.12 at the top to -0.12."""
        share = (np.arange(HEIGHT, dtype=np.float32) - top) / (foot - top)
        ramp = 0.12 - 0.24 * share.clip(0, 1)
        return np.broadcast_to(ramp[:, None, None], self.image.shape).copy()

    # --- Shapes --------------------------------------------------------------

    def mask_of(self, *polygons) -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 255)
        return mask

    def disc(self, x: float, y: float, radius: float) -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        centre = int(round(x)), int(round(y))
        return cv2.circle(mask, centre, max(int(round(radius)), 1), 255, -1)

    def blob(self, x: float, y: float, radius: float) -> np.ndarray:
        """A ragged round shape: discs around a centre."""
        mask = self.disc(x, y, 0.7 * radius)
        for angle in self.rng.uniform(0, 2 * np.pi, 9):
            dx, dy = 0.6 * radius * np.cos(angle), 0.6 * radius * np.sin(angle)
            mask |= self.disc(x + dx, y + dy, self.rng.uniform(0.3, 0.5) * radius)
        return mask

    def inner(self, polygon, share: float) -> np.ndarray:
        """The polygon shrunk about its centre."""
        points = np.asarray(polygon)
        centre = points.mean(0)
        return self.mask_of(centre + share * (points - centre))

    def strip(self, left: float, right: float, far: float):
        """A strip of road; left and right are shares of its half width."""
        x, near, bottom = self.vanishing_x, self.road_half_width, HEIGHT
        return [
            (x + left * far, self.horizon),
            (x + right * far, self.horizon),
            (x + right * near, bottom),
            (x + left * near, bottom),
        ]

    # --- Perspective ---------------------------------------------------------

    def place(self, distance: float) -> tuple[float, float]:
        """Foot (y) and size in pixels of a thing on the ground."""
        nearness = (1 - distance) ** 1.5
        foot = self.horizon + 14 + nearness * (HEIGHT - self.horizon - 18)
        return foot, 26 + 38 * nearness

    def edge(self, foot: float) -> float:
        """Half width of the road at height `foot`."""
        share = (foot - self.horizon) / (HEIGHT - self.horizon)
        return (0.06 + 0.94 * share) * self.road_half_width


def _box(left: float, top: float, right: float, bottom: float):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]
