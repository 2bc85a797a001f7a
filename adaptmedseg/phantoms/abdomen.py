"""Upper abdomen phantom; the origin lies at the height of the first lumbar vertebra. All lengths in mm."""

from __future__ import annotations

import numpy as np

from .anatomy import Blend, Ellipsoid, HalfSpace, Item, Point, Shape, Slabs, Tube
from .pelvis import TALL, Draw, bone, bowel, outline


def _spine(draw: Draw, y: float) -> list[Item]:
    phase, period = draw.between(0, 30), draw.between(30, 36)
    column = Ellipsoid((0, y, 0), (draw.between(20, 25), draw.between(15, 19), TALL), square=0.2)
    arch = Ellipsoid((0, y - 26, 0), (15, 14, TALL))
    levels = Slabs(period, period * 0.55, phase)
    spinous = Ellipsoid((0, y - 42, 0), (4.5, 20, TALL))
    transverse = Ellipsoid((0, y - 24, 0), (42, 5, TALL))
    items = []
    for side in (1, -1):
        erector = Ellipsoid(
            (side * 33, y - 34, 0), (draw.between(24, 30), draw.between(16, 21), TALL), (0, 0, side * 8.0), 0.3
        )
        psoas = Tube(
            ((side * 26.0, y + 2, 20.0), (side * 38.0, y + 4, -60.0), (side * 50.0, y + 12, -160.0)), (8, 20, 24)
        )
        items += [Item(erector, ((0, "muscle"),)), Item(psoas, ((0, "muscle"),))]
    items += [
        Item(transverse, ((0, "cortical bone"), (2, "marrow")), within=(levels,)),
        bone(arch, 3.0),
        Item(spinous, ((0, "cortical bone"), (1.5, "marrow")), within=(levels,)),
        bone(column, 1.5),
        Item(column, ((0, "disc"),), within=(Slabs(period, draw.between(6, 9), phase + period / 2),)),
        Item(Ellipsoid((0, y - 25, 0), (9, 8, TALL)), ((0, "fat"), (1.0, "csf"), (3.5, "cord"))),
    ]
    return items


def _walls(draw: Draw, inner: Ellipsoid, top: float) -> tuple[list[Item], Ellipsoid, Ellipsoid]:
    """Muscle wall, ribs, lungs above the diaphragm; returns the items, the cavity and the space under the diaphragm."""
    wall = draw.between(9, 14)
    cx, cy, _ = inner.centre
    a, b, _ = inner.semi
    cavity = Ellipsoid((cx, cy + 2, 0), (a - wall, b - wall, TALL), square=inner.square)
    dome = Ellipsoid((0, cy + 5, -30), (a + 4, b + 10, top + 30), square=0.25)
    ring_out = Ellipsoid((cx, cy, 0), (a - 2, b - 2, TALL), square=inner.square)
    ring_in = Ellipsoid((cx, cy, 0), (a - 10, b - 10, TALL), square=inner.square)
    ribs = Slabs(draw.between(24, 32), 9.0, draw.between(0, 30), slope=0.1, tilt=-0.55)
    upper = HalfSpace((0.0, -0.7, 1.0), draw.between(-45, -10))
    lungs = Item(cavity, ((0, "lung"),), within=(HalfSpace((0, 0, 1), 15),), without=(dome,))
    items = [
        Item(inner, ((0, "muscle"),)),
        Item(cavity, ((0, "visceral fat"),)),
        Item(ring_out, ((0, "cortical bone"), (2.0, "marrow")), within=(ribs, upper), without=(ring_in,)),
        lungs,
        Item(Ellipsoid((-18, cy + 35, top + 28), (55, 42, 34)), ((0, "fat"), (4, "vein")), within=(cavity,)),
    ]
    return items, cavity, dome


def _liver(draw: Draw, cavity: Shape, dome: Shape, top: float) -> list[Item]:
    size = draw.between(0.82, 1.06)
    x = draw.between(58, 74)
    right = Ellipsoid(
        (x, -4, top - 72 * size), (76 * size, 84 * size, 78 * size), draw.angles(10), draw.between(0, 0.5)
    )
    tip = Ellipsoid((x + 20, -8, top - 118 * size), (40 * size, 55 * size, draw.between(35, 70)), draw.angles(10))
    left_lobe = Ellipsoid(
        (draw.between(-15, 12), 48, top - 58),
        (draw.between(55, 85), 34 * size, 36 * size),
        (0, draw.between(-15, 15), -10),
    )
    # the hollow under the liver, where the stomach, duodenum and kidney lie
    hollow = Ellipsoid((-5, -12, top - 135), (62, 68, 72), draw.angles(12))
    shape = Blend((right, tip, left_lobe), 14.0)
    items = [Item(shape, ((0, "liver"),), 7, (cavity, dome), (hollow,))]
    root: Point = (22.0, -5.0, top - 62)
    for _ in range(int(draw.rng.integers(6, 11))):
        end = draw.near((x + draw.between(-45, 45), draw.between(-50, 50), top - draw.between(30, 105)), 5)
        mid = draw.near(((root[0] + end[0]) / 2, (root[1] + end[1]) / 2, (root[2] + end[2]) / 2), 7)
        vessel = Tube((root, mid, end), (draw.between(4, 6.5), draw.between(2.5, 4.5), 1.2))
        items.append(Item(vessel, ((0, "vein"),), None, (shape, dome, cavity)))
    if draw.chance(0.3):
        r = draw.between(5, 16)
        cyst = Ellipsoid(draw.near((x, 0, top - 65), 22), (r, r * 0.9, r * 1.1))
        items.append(Item(cyst, ((0, str(draw.rng.choice(["bile", "lesion"]))),), None, (right, dome, cavity)))
    return items


def _kidney(draw: Draw, side: int, y: float, z: float) -> list[Item]:
    size = draw.between(0.88, 1.12)
    x = draw.between(56, 68)
    semi = (27 * size, 24 * size, draw.between(48, 58) * size)
    turn = (draw.between(-16, -4), side * draw.between(-18, -6), side * draw.between(15, 40))
    centre = (side * x, y, z)
    whole = Ellipsoid(centre, semi, turn, draw.between(0, 0.3))
    sinus = Ellipsoid((side * (x - 17), y + 6, z), (16 * size, 10 * size, 21 * size), turn)
    label = 10 if side > 0 else 9
    medulla = Ellipsoid(centre, (semi[0] - 7, semi[1] - 7, semi[2] - 7), turn)
    pyramids = Slabs(draw.between(14, 19), draw.between(8, 11), z, slope=0.35, tilt=0.3)
    pelvis = Ellipsoid((side * (x - 15), y + 5, z - 3), (8, 5, 10), turn)
    ureter = Tube(
        ((side * (x - 17), y + 6, z - 5), (side * 38.0, y + 12, z - 60), (side * 34.0, y + 15, z - 150)), (3, 2.5, 2.5)
    )
    artery = Tube(((side * 5.0, y + 25, z + 12), (side * (x - 20), y + 8, z + 4)), (3.5, 3))
    vein = Tube(((side * 8.0, y + 28, z + 6), (side * (x - 20), y + 10, z - 2)), (5, 4))
    items = [
        Item(artery, ((0, "artery"),)),
        Item(vein, ((0, "vein"),)),
        Item(whole, ((0, "kidney cortex"),), label),
        Item(medulla, ((0, "kidney medulla"),), None, (pyramids,)),
        Item(sinus, ((0, "visceral fat"),), 0, (), ()),
        Item(pelvis, ((0, "urine"),), 0),
        Item(ureter, ((0, "muscle"), (1, "urine"))),
    ]
    if draw.chance(0.2):
        r = draw.between(5, 14)
        items.append(Item(Ellipsoid(draw.near(centre, 12), (r, r, r)), ((0, "urine"),), None, (whole,), (sinus,)))
    return items


def _spleen(draw: Draw, cavity: Shape, dome: Shape, top: float, width: float) -> list[Item]:
    size = draw.between(0.85, 1.2)
    centre = (-(width - 46), draw.between(-48, -34), top - draw.between(58, 72))
    body = Ellipsoid(
        centre, (32 * size, 50 * size, 50 * size), (draw.between(10, 35), draw.between(-5, 20), draw.between(-35, -10))
    )
    hollow = Ellipsoid((centre[0] + 42, centre[1] + 30, centre[2] - 5), (36, 48, 58), draw.angles(15))
    return [Item(body, ((0, "spleen"),), 8, (cavity, dome), (hollow,))]


def _stomach(draw: Draw, cavity: Shape, dome: Shape, top: float) -> list[Item]:
    size = draw.between(0.75, 1.15)
    fundus = Ellipsoid((-55, 5, top - 60), (34 * size, 38 * size, 36 * size), draw.angles(15))
    body = Tube(((-55, 10, top - 70), (-40, 45, top - 105), (5, 48, top - 125)), (30 * size, 22 * size, 13 * size))
    shape = Blend((fundus, body), 12.0)
    contents = str(draw.rng.choice(["bowel contents", "mucus", "stool"], p=[0.7, 0.15, 0.15]))
    items = [Item(shape, ((0, "bowel wall"), (draw.between(3, 5), contents)), 0, (cavity, dome))]
    if draw.chance(0.7):
        gas = Ellipsoid((-48, 18, top - 72), (24 * size, 30 * size, 30 * size))
        items.append(Item(gas, ((0, "gas"),), 0, (shape, cavity, dome, HalfSpace((0, 1, 0), draw.between(8, 30)))))
    return items


def abdomen_items(rng: np.random.Generator) -> tuple[list[Item], Point]:
    """Items of an upper abdomen in painting order and its point of interest."""
    draw = Draw(rng)
    width, depth, top = draw.between(138, 160), draw.between(98, 115), draw.between(85, 105)
    inner, items = outline(draw, width, depth, 0.0)
    walls, cavity, dome = _walls(draw, inner, top)
    items += walls
    spine = -depth + 52
    items += _spine(draw, spine)
    back = spine + draw.between(0, 8)
    items += [
        Item(Tube(((-8, spine + 29, -200), (-6, spine + 29, 200)), (9.5, 11.0)), ((0, "artery"),)),
        Item(Tube(((16, spine + 29, -200), (22, spine + 33, 200)), (11.0, 12.5)), ((0, "vein"),)),
    ]
    items += bowel(draw, int(rng.integers(14, 24)), (-95, 0, -150), (95, 75, -35), cavity)
    for side in (1, -1):
        points: tuple[Point, ...] = (
            (side * 108.0, -5.0, -30.0),
            draw.near((side * 106.0, 0.0, -90.0), 8),
            (side * 98.0, 5.0, -160.0),
        )
        r = draw.between(14, 22)
        contents = "stool" if draw.chance(0.6) else "gas"
        items.append(Item(Tube(points, (r, r, r)), ((0, "bowel wall"), (2.5, contents)), within=(cavity,)))
    pancreas = Tube(
        ((28, 10, top - 128), (0, 2, top - 112), (-50, -14, top - 96), (-80, -25, top - 85)), (15, 10, 11, 8)
    )
    items.append(Item(pancreas, ((0, "pancreas"),)))
    items += _liver(draw, cavity, dome, top)
    items += _stomach(draw, cavity, dome, top)
    items += _spleen(draw, cavity, dome, top, width)
    gallbladder = Ellipsoid(
        draw.near((48, 32, top - 118), 6), (draw.between(10, 17), draw.between(12, 18), 26), (35, 0, 0)
    )
    items.append(Item(gallbladder, ((0, "bowel wall"), (1.5, "bile"))))
    for side, z in ((-1, draw.between(-12, 12)), (1, draw.between(-32, -8))):
        items += _kidney(draw, side, back, z)
    return items, (0.0, 0.0, 5.0)
