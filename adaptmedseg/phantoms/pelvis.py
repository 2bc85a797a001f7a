"""Male pelvis phantom; the origin is the centre of the prostate. All lengths in mm."""

from __future__ import annotations

import numpy as np

from .anatomy import Blend, Ellipsoid, HalfSpace, Item, Point, Shape, Tube

TALL = 5000.0


class Draw:
    """Short names for the random numbers that shape a body."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def near(self, point: Point, sigma: float) -> Point:
        shift = np.clip(self.rng.standard_normal(3), -2, 2) * sigma
        return (point[0] + float(shift[0]), point[1] + float(shift[1]), point[2] + float(shift[2]))

    def angles(self, limit: float) -> Point:
        return (self.between(-limit, limit), self.between(-limit, limit), self.between(-limit, limit))


def outline(draw: Draw, width: float, depth: float, back: float) -> tuple[Ellipsoid, list[Item]]:
    """Skin and subcutaneous fat; `back` shifts the trunk's axis along y. Returns the space inside, and items."""
    fat = draw.between(9, 32)
    skin = Ellipsoid((0, back, 0), (width + fat, depth + fat * 0.8, TALL), square=draw.between(0.1, 0.5))
    inner = Ellipsoid((0, back, 0), (width, depth, TALL), square=draw.between(0.2, 0.5))
    couch = Ellipsoid((0, back - depth - fat * 0.8 - 16, 0), (230, 11, TALL), square=0.7)
    items = [Item(skin, ((0, "skin"), (2.2, "fat")))]
    if draw.chance(0.6):
        items.insert(0, Item(couch, ((0, "couch"), (2.5, "couch foam")), only="CT"))
    return inner, items


def bone(shape: Shape, cortex: float, *, label: int | None = 0, marrow: str = "marrow") -> Item:
    return Item(shape, ((0, "cortical bone"), (cortex, marrow)), label)


def _muscles(draw: Draw, inner: Shape) -> list[Item]:
    """Gluteal, iliopsoas, obturator and thigh muscles on both sides."""
    items: list[Item] = []
    bulk = draw.between(0.88, 1.12)
    table: list[tuple[Point, Point, Point]] = [
        ((88, -72, 15), (62, 38, 85), (0, 0, 28)),
        ((112, -42, 55), (40, 26, 60), (0, 12, 35)),
        ((138, 18, 35), (22, 48, 75), (0, 8, 10)),
        ((70, 44, 35), (25, 21, 95), (12, 8, 0)),
        ((104, 62, -25), (36, 28, 80), (0, 0, -20)),
        ((62, 38, -50), (34, 30, 42), (0, 0, 15)),
        ((88, -25, -60), (45, 45, 60), (0, 0, 0)),
        ((48, 2, 4), (10, 36, 36), (0, 14, -10)),
    ]
    for side in (1, -1):
        for centre, semi, angles in table:
            x, y, z = draw.near(centre, 3.0)
            grow = bulk * draw.between(0.92, 1.08)
            size = (semi[0] * grow, semi[1] * grow, semi[2] * grow)
            turn = (angles[0], side * angles[1], side * angles[2])
            items.append(Item(Ellipsoid((side * x, y, z), size, turn, 0.2), ((0, "muscle"),), within=(inner,)))
    wall = Ellipsoid((0, 88, 70), (62, 9, 85), square=0.4)
    items.append(Item(wall, ((0, "muscle"),), within=(inner,)))
    return items


def _hip(draw: Draw, side: int, radius: float, centre: Point) -> list[Item]:
    """One femur with its head (the only labelled part), the socket around it and the hip bone; side +1 is right."""
    x, y, z = centre
    label = 6 if side > 0 else 5

    def at(dx: float, dy: float, dz: float) -> Point:
        return (side * (x + dx), y + dy, z + dz)

    cortex = draw.between(2.0, 3.5)
    neck = Tube((at(0, 0, 0), at(33, -8, -16)), (radius * 0.62, radius * 0.62))
    shaft = Tube((at(38, -10, -20), at(34, -4, -60), at(28, 2, -160)), (19.0, 15.0, 14.0))
    trochanter = Ellipsoid(at(42, -16, -6), (13, 19, 20))
    socket = Ellipsoid(at(-8, -3, 6), (radius + 8, radius + 9, radius + 9))
    ischium = Tube((at(-17, -16, -5), at(-34, -42, -38), at(-38, -45, -52)), (15, 14, 12))
    ilium = Tube((at(-10, -5, 22), at(-2, -30, 75), at(10, -25, 130)), (13, 8, 6))
    wing = Ellipsoid(at(4, -18, 85), (7, 46, 50), (0, side * 8.0, side * 25.0))
    ramus = Tube((at(-20, 8, 0), at(-50, 20, -15), (side * 15.0, 44.0, -10.0)), (11, 7, 10))
    lower = Tube(((side * 14.0, 42.0, -16.0), (side * 26.0, 18.0, -38.0), at(-36, -42, -50)), (9, 6, 9))
    head = Ellipsoid(centre=at(0, 0, 0), semi=(radius, radius * draw.between(0.97, 1.03), radius))
    capsule = Ellipsoid(at(8, -1, -4), (radius + 9, radius + 8, radius + 6))
    return [
        *(bone(shape, cortex) for shape in (wing, ilium, ischium, ramus, lower)),
        bone(socket, cortex),
        Item(capsule, ((0, "muscle"),), without=(HalfSpace((-side * 1.0, 0.1, 0.5), -(x - 4)),)),
        Item(Ellipsoid(at(0, 0, 0), (radius + 2.5,) * 3), ((0, "cartilage"),)),
        bone(Blend((neck, shaft, trochanter), 10.0), cortex),
        bone(head, cortex * 0.5, label=label, marrow="femoral marrow"),
        Item(Ellipsoid(at(14, -3, -6), (9, 9, 9)), ((0, "marrow"),), label=None),
    ]


def _bones(draw: Draw) -> list[Item]:
    radius = draw.between(21.5, 26.5)
    centre = draw.near((88, 10, 20), 3.5)
    items = [item for side in (1, -1) for item in _hip(draw, side, radius, draw.near(centre, 1.5))]
    sacrum = Tube(((0, -50, 135), (0, -78, 100), (0, -90, 65), (0, -82, 40)), (30, 26, 18, 9))
    coccyx = Tube(((0, -80, 40), (0, -68, 18)), (8, 5))
    wings = [Ellipsoid((side * 34, -72, 100), (28, 14, 34), (20, 0, side * -15)) for side in (1, -1)]
    items += [bone(shape, 2.0) for shape in (Blend((sacrum, *wings), 10.0), coccyx)]
    items.append(Item(Ellipsoid((0, 45, -10), (3.0, 11, 18)), ((0, "cartilage"),)))
    return items


def _vessels(draw: Draw) -> list[Item]:
    items = []
    for side in (1, -1):
        vein = Tube(((side * 78.0, 60.0, -80.0), (side * 70.0, 66.0, 10.0), (side * 50.0, 20.0, 90.0)), (6, 6, 6))
        artery = Tube(((side * 92.0, 62.0, -80.0), (side * 82.0, 70.0, 10.0), (side * 56.0, 30.0, 90.0)), (4.5, 4.5, 5))
        inner = Tube((draw.near((side * 52.0, -18.0, 90.0), 4), draw.near((side * 46.0, -34.0, 30.0), 4)), (4, 2.5))
        items += [Item(vein, ((0, "vein"),)), Item(artery, ((0, "artery"),)), Item(inner, ((0, "vein"),))]
    return items


def _rectum(draw: Draw, front: float) -> list[Item]:
    """Anal canal to the lower sigmoid; `front` is the y at which the prostate's posterior surface lies."""
    r = draw.between(11, 21)
    y = front - r + draw.between(0.0, 3.5)
    sway, wall = draw.between(-10, 10), draw.between(2.5, 4.0)
    points: tuple[Point, ...] = (
        (0, y - 2, -58),
        (0, y + 4, -30),
        (sway * 0.3, y, -2),
        (sway, y - 8, 32),
        (sway * 0.5, y - 14, 64),
        (-sway * 1.5, y - 6, 95),
    )
    radii = (11.0, 12.0, r, r * draw.between(0.8, 1.2), r * draw.between(0.7, 1.2), r * draw.between(0.6, 1.0))
    tube = Tube(points, radii)
    filling = str(draw.rng.choice(["stool", "gas", "mixed", "collapsed"], p=[0.35, 0.2, 0.3, 0.15]))
    if filling == "collapsed":
        return [Item(tube, ((0, "bowel wall"), (max(r - 5, wall), "mucus")), 4)]
    contents = "gas" if filling == "gas" else "stool"
    items = [Item(tube, ((0, "bowel wall"), (wall, contents)), 4)]
    # the anal canal is closed
    items.append(Item(Tube(points[:2], (8.0, 8.5)), ((0, "bowel wall"),), None))
    if filling == "mixed":
        gas = tuple(max(radius - wall - 1, 2.0) for radius in radii[2:])
        items.append(
            Item(Tube(points[2:], gas), ((0, "gas"),), None, (HalfSpace((0, 1, 0.1), y + draw.between(-8, 8)),))
        )
    return items


def _prostate(draw: Draw, semi: Point) -> list[Item]:
    """Peripheral zone as a horseshoe behind and beside the transition zone, nodules in the latter."""
    a, b, c = semi
    gland = Ellipsoid((0, 0, 0), semi, (draw.between(-15, 5), 0, draw.between(-6, 6)), 0.25, draw.between(0.08, 0.25))
    part = draw.between(0.58, 0.84)
    core_centre = (draw.between(-2, 2), b * draw.between(0.28, 0.42), c * draw.between(0.08, 0.25))
    core = Ellipsoid(core_centre, (a * part, b * draw.between(0.72, 0.9), c * part), draw.angles(8), 0.2)
    items = [
        Item(gland, ((0, "capsule"), (1.2, "peripheral zone")), 1),
        Item(core, ((0, "capsule"), (1.0, "transition zone")), 2, (gland,)),
    ]
    inside: tuple[Shape, ...] = (gland, core)
    for _ in range(draw.rng.integers(1, 9)):
        r = draw.between(2.5, 0.32 * a)
        u = draw.rng.uniform(-0.6, 0.6, 3)
        centre = (
            float(core_centre[0] + u[0] * a * part),
            float(core_centre[1] + u[1] * b * 0.8),
            float(u[2] * c * part),
        )
        tissue = str(draw.rng.choice(["glandular nodule", "stromal nodule", "mixed nodule"]))
        shape = Ellipsoid(centre, (r, r * draw.between(0.7, 1.2), r * draw.between(0.8, 1.3)), draw.angles(40))
        items.append(Item(shape, ((0, "capsule"), (0.8, tissue)), None, inside))
    stroma = Ellipsoid((0, b * 0.95, 0), (a * 0.45, b * 0.28, c * 0.75))
    items.append(Item(stroma, ((0, "stroma"),), None, (gland,)))
    urethra = Tube(((0, b * 0.2, c), (0, b * 0.05, 0), (0, b * 0.1, -c)), (2.5, 2.5, 3.0))
    items.append(Item(urethra, ((0, "mixed nodule"),), None, (gland,)))
    if draw.chance(0.5):
        side = 1 if draw.chance(0.5) else -1
        spot = Ellipsoid((side * a * 0.6, -b * 0.5, draw.between(-0.5, 0.5) * c), (a * 0.25, b * 0.2, c * 0.25))
        items.append(Item(spot, ((0, "lesion"),), None, (gland,), (core,)))
    return items


def _bladder(draw: Draw, base: float) -> list[Item]:
    """Bladder above the prostate's base (z = `base`), from nearly empty to full."""
    size = draw.between(24, 50)
    semi = (size * draw.between(0.95, 1.25), size * draw.between(0.75, 1.0), size * draw.between(0.65, 0.95))
    centre = (draw.between(-5, 5), draw.between(6, 16), base + semi[2] * 0.93 - 3)
    wall = draw.between(2.0, 3.2) + 60 / size**1.2
    main = Ellipsoid(centre, semi, draw.angles(10), draw.between(0, 0.5))
    top = draw.near((centre[0], centre[1] + semi[1] * 0.3, centre[2] + semi[2] * 0.3), 6)
    horn = Ellipsoid(top, (semi[0] * 0.7, semi[1] * 0.7, semi[2] * 0.7))
    shape = Blend((main, horn), 12.0)
    items = [Item(shape, ((0, "bladder wall"), (wall, "urine")), 3)]
    if draw.chance(0.3):
        low = HalfSpace((0, -1, -0.1), -(centre[1] - semi[1] * draw.between(0.1, 0.6)))
        inset = wall + 1.5
        pool = Ellipsoid(centre, (semi[0] - inset, semi[1] - inset, semi[2] - inset))
        items.append(Item(pool, ((0, "contrast urine"),), None, (low, shape)))
    return items


def bowel(draw: Draw, count: int, low: Point, high: Point, inside: Shape) -> list[Item]:
    """Loops of bowel at random places of a box, some with gas in front of the contents."""
    items = []
    for _ in range(count):
        centre = np.asarray([draw.between(a, b) for a, b in zip(low, high, strict=True)])
        step = draw.rng.standard_normal((2, 3)) * (22, 14, 14)
        points = tuple((float(p[0]), float(p[1]), float(p[2])) for p in (centre - step[0], centre, centre + step[1]))
        r = draw.between(9, 17)
        loop = Tube(points, (r, r * draw.between(0.9, 1.3), r))
        wall = draw.between(1.8, 3.0)
        contents = str(draw.rng.choice(["bowel contents", "stool", "mucus"], p=[0.6, 0.2, 0.2]))
        items.append(Item(loop, ((0, "bowel wall"), (wall, contents)), within=(inside,)))
        if draw.chance(0.4):
            core = Tube(points, (r - wall - 1,) * 3)
            level = HalfSpace((0, 1, 0), float(centre[1]) + draw.between(-4, 6))
            items.append(Item(core, ((0, "gas"),), within=(inside, level)))
    return items


def pelvis_items(rng: np.random.Generator) -> tuple[list[Item], Point]:
    """Items of a male pelvis in painting order and its point of interest (near the prostate)."""
    draw = Draw(rng)
    inner, items = outline(draw, draw.between(148, 170), draw.between(92, 108), draw.between(-12, -2))
    size = draw.between(0.85, 1.25)
    semi = (size * draw.between(22, 28), size * draw.between(15, 19), size * draw.between(17, 23))
    items += _muscles(draw, inner)
    items += _bones(draw)
    items += _vessels(draw)
    cavity = Ellipsoid((0, 0, 85), (75, 75, 75))
    items += bowel(draw, int(rng.integers(10, 17)), (-65, -25, 70), (65, 65, 125), cavity)
    for side in (1, -1):
        sling = Ellipsoid(
            (side * (semi[0] + 2.5), -14, -12), (draw.between(3.5, 5.5), 36, 24), (0, side * 10.0, side * 8.0)
        )
        items.append(Item(sling, ((0, "muscle"),)))
    items.append(Item(Ellipsoid((0, 2, -semi[2] - 9), (20, 24, 11)), ((0, "muscle"),)))
    items.append(
        Item(Ellipsoid((0, 16, -semi[2] - 30), (13, 26, 11), (20, 0, 0)), ((0, "muscle"), (2, "erectile tissue")))
    )
    items.append(Item(Ellipsoid((0, 24, 0), (22, 7, 18)), ((0, "vein"),), within=(HalfSpace((0, -1, 0), -31),)))
    items += _bladder(draw, semi[2])
    for side in (1, -1):
        vesicle = Ellipsoid((side * 17, -semi[1] * 0.75, semi[2] + 3), (18, 6.5, 8), (0, side * -20.0, side * -20.0))
        items.append(Item(vesicle, ((0, "capsule"), (1.2, "seminal vesicle"))))
    items += _rectum(draw, -semi[1])
    items += _prostate(draw, semi)
    return items, (0.0, 0.0, 12.0)
