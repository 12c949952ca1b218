"""Rooms with balls, rendered with their depth: `python -m experiments.depth.render DIR`.

A floor, a wall at the back and up to four balls, each of a colour of its own, lit from the camera: brightness falls
with distance and with the angle, as with a flash. Depth is the distance along the optical axis; 2 % of the pixels have
none, as with a real sensor.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bireal_jax import output


def scene(rng: np.random.Generator, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [size, size, 3], depth float64 [size, size] in metres, 0 where there is none)."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    rays = np.stack([*np.meshgrid(0.6 * axis, 0.6 * axis), np.ones((size, size))], -1)  # z = 1
    wall, floor = rng.uniform(2.5, 6), rng.uniform(0.6, 1.2)
    depth, normal = np.full((size, size), wall), np.broadcast_to((0, 0, -1.0), (size, size, 3)).copy()
    colour = np.zeros((size, size, 3)) + rng.uniform(0.4, 1, 3)
    below = np.where(rays[..., 1] > 0, floor / np.maximum(rays[..., 1], 1e-9), np.inf)
    hit = below < depth
    depth, normal[hit], colour[hit] = np.where(hit, below, depth), (0, -1.0, 0), rng.uniform(0.4, 1, 3)
    for _ in range(rng.integers(1, 5)):
        z, radius = rng.uniform(1.2, wall - 0.4), rng.uniform(0.15, 0.5)
        centre = np.array([rng.uniform(-0.5, 0.5) * z, rng.uniform(-0.4, 0.4) * z, z])
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
        root = b**2 - a * c
        near = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        hit = (near > 0.3) & (near < depth)
        depth = np.where(hit, near, depth)
        normal[hit] = ((rays * np.where(hit, near, 0)[..., None] - centre) / radius)[hit]
        colour[hit] = rng.uniform(0.4, 1, 3)
    towards = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    light = np.clip(-(normal * towards).sum(-1), 0.15, 1) / (0.5 + 0.25 * depth) ** 2
    pixels = colour * light[..., None] * 160 + rng.normal(0, 3, (size, size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), np.where(rng.random((size, size)) < 0.02, 0, depth)


def write(folder: Path, train: int = 256, val: int = 64, size: int = 64, seed: int = 0) -> None:
    """folder/{train,val}/NAME.png and NAME_depth.png, in millimetres of 16 bit."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, depth = scene(rng, size)
            Image.fromarray(image).save(folder / split / f"{i:04}.png")
            Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(folder / split / f"{i:04}_depth.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.depth.render", description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="to write train/ and val/ into")
    parser.add_argument("--train", type=int, default=256, help="images to train on")
    parser.add_argument("--val", type=int, default=64, help="images to evaluate on")
    parser.add_argument("--size", type=int, default=64, help="of their sides, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with output.command():
        write(given.folder, given.train, given.val, given.size, given.seed)
