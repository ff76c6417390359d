"""The chips that a plan can be made for: what Google publishes of them, in one table."""

from dataclasses import dataclass

from selfflow.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      peak_flops: bfloat16 operations a second.
      hbm_bytes: capacity of its memory, as it is advertised; the compiler keeps a part of it to itself.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that it can receive from its neighbours in the slice, over all links together: half
        of the published figure, which adds up both directions.
      torus_axes: axes of the torus, each with two links.
      dcn_bandwidth: its share of its host's network, bytes a second in one direction; None where nothing is published.
      source: where these stand.
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    torus_axes: int
    dcn_bandwidth: float | None
    source: str


_PAGES = "https://docs.cloud.google.com/tpu/docs"

# v4: the page gives no bandwidth of the links; 6 links of 50 GB/s are from arXiv 2304.01433, table 4.
# v5e: 6.4 Tb/s of a pod's 256 chips. v6e: its DCN stands on the page of tpu7x, which compares the generations.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 3, None, f"{_PAGES}/v4, arXiv 2304.01433"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 2, 6.4e12 / 8 / 256, f"{_PAGES}/v5e"),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3, 50e9 / 8, f"{_PAGES}/v5p"),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 2, 100e9 / 8, f"{_PAGES}/v6e, {_PAGES}/tpu7x"),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7380e9, 600e9, 3, 100e9 / 8, f"{_PAGES}/tpu7x"),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
      UserError: if there is no such chip.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        known = ", ".join(one for chip in CHIPS for one in topologies_of(chip))
        raise UserError(f"topology {topology!r}: there is no chip {name!r}; these are known: {known}")
    return CHIPS[name]


def topologies_of(name: str) -> tuple[str, ...]:
    """Topologies of a chip that the compiler knows; there are larger ones."""
    flat, deep = "2x2 2x4 4x4 4x8 8x8 8x16 16x16", "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x4 8x8x8"
    return tuple(f"{name}:{shape}" for shape in (flat if CHIPS[name].torus_axes == 2 else deep).split())
