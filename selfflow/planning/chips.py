"""Specifications of TPU chips, as published by Google."""

from dataclasses import dataclass

from selfflow.errors import UserError


@dataclass(frozen=True)
class Chip:
    """Specifications of a TPU chip.

    Attributes:
      peak_flops: peak bfloat16 operations per second.
      hbm_bytes: advertised memory capacity, of which the compiler reserves a part.
      hbm_bandwidth: memory bandwidth in bytes per second.
      ici_bandwidth: interconnect bandwidth for received data over all links, in bytes per second: half of the published
        figure, which is the sum of both directions.
      torus_axes: number of axes of the torus; a chip has two links along each axis.
      dcn_bandwidth: share of the host's network bandwidth in one direction, in bytes per second; None if not published.
      source: pages with these specifications.
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    torus_axes: int
    dcn_bandwidth: float | None
    source: str


_PAGES = "https://docs.cloud.google.com/tpu/docs"

# v4: the page has no bandwidth of the links; 6 links of 50 GB/s are from arXiv 2304.01433, table 4.
# v5e: DCN bandwidth of 6.4 Tb/s for the 256 chips of a pod. v6e: DCN bandwidth from the page of tpu7x.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 3, None, f"{_PAGES}/v4, arXiv 2304.01433"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 2, 6.4e12 / 8 / 256, f"{_PAGES}/v5e"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3, 50e9 / 8, f"{_PAGES}/v5p"),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 2, 100e9 / 8, f"{_PAGES}/v6e, {_PAGES}/tpu7x"),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7380e9, 600e9, 3, 100e9 / 8, f"{_PAGES}/tpu7x"),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology, such as "v5e:16x16".

    Raises:
      UserError: if the chip is unknown.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        known: list[str] = []
        for chip in CHIPS:
            known += topologies_of(chip)
        raise UserError(f"topology {topology!r}: no chip {name!r}; give one of {', '.join(known)}")
    return CHIPS[name]


def topologies_of(name: str) -> tuple[str, ...]:
    """Returns common topologies of a chip; larger ones exist."""
    shapes = "2x2 2x4 4x4 4x8 8x8 8x16 16x16"
    if CHIPS[name].torus_axes == 3:
        shapes = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x4 8x8x8"
    return tuple(f"{name}:{shape}" for shape in shapes.split())
