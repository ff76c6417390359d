"""`selfflow plan`: computes memory and minimum step time of an experiment on a slice of TPUs, without a TPU."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from selfflow.cli.parse import parse
from selfflow.config.experiment import Experiment
from selfflow.config.resolve import resolve
from selfflow.planning.chips import CHIPS

if TYPE_CHECKING:
    from selfflow.planning.plan import Plan

_EXAMPLE = "selfflow plan experiments/joint_625m.py --topology v5e:16x16"


@dataclass(frozen=True)
class Options:
    """Flags of `selfflow plan` that are not fields of the experiment."""

    topology: str = "v5e:16x16"
    """Chip (v4, v5e, v5p, v6e or tpu7x), a colon, and the number of chips along each axis, such as v5p:8x8x4."""
    slices: int | None = None
    """Number of slices, connected by the data-centre network; sets devices.slices."""
    every_component: bool = False
    """Compile the step of each component of the mixture. By default only the step of the component with most tokens is
    compiled; its memory and traffic, mostly due to parameters, approximate those of the others."""
    search: bool = True
    """If the step does not fit into memory, search for settings that do, with up to five compilations."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: list[str]) -> None:
    """Parses `EXPERIMENT [--topology CHIP:SHAPE] [--slices N] [--json] [--FIELD VALUE ...]` and prints the plan."""
    parsed = parse("plan", arguments, _EXAMPLE, lambda file: Options())
    if parsed is None:
        return
    experiment, options, _ = parsed
    import jax

    # Planning needs no device, and a local TPU may be in use by a training process.
    jax.config.update("jax_platforms", "cpu")
    from selfflow.planning.compile import slice_devices
    from selfflow.planning.fit import nearest_fit
    from selfflow.planning.plan import make_plan

    if options.slices is not None:
        experiment = dataclasses.replace(
            experiment, devices=dataclasses.replace(experiment.devices, slices=options.slices)
        )
    setup = resolve(experiment)
    experiment = setup.experiment
    experiment.model.execution.check("tpu")
    devices = slice_devices(options.topology, experiment.devices.slices)

    def make_mesh(experiment: Experiment) -> Mesh:
        return experiment.devices.mesh(devices)

    mesh = make_mesh(experiment)
    setup.check_devices(mesh)
    plan = make_plan(setup, options.topology, mesh, options.every_component)
    results: dict[str, Any] = dataclasses.asdict(plan)
    if not options.json:
        _print_plan(experiment, plan)
    if not plan.fits and options.search:
        fit = nearest_fit(setup, plan.component, plan, make_mesh)
        results["nearest"] = None if fit is None else fit[1]
        if not options.json:
            _print_nearest(results["nearest"])
    if options.json:
        print(json.dumps(results, indent=1))


def _print_nearest(flags: Sequence[str] | None) -> None:
    if flags is None:
        print("  None of the settings that were compiled fits: take a larger slice, or smaller batches.")
    else:
        print(f"  The nearest setting that fits, compiled: {' '.join(flags)}")


def _print_plan(experiment: Experiment, plan: "Plan") -> None:
    _print_memory(experiment, plan)
    if plan.fits:
        _print_bounds(experiment, plan)


def _print_memory(experiment: Experiment, plan: "Plan") -> None:
    """Prints the mesh and the memory of one chip."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    print(f"\n{plan.topology}: {plan.chips} chips of {plan.hosts} hosts, {mesh}, {experiment.model.dtype}")
    memory = dataclasses.asdict(plan.memory)
    limit, total = memory.pop("limit"), memory.pop("total")
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    print(f"\nMemory of a chip, component {plan.component}: {total / 1e9:.2f} GB of {limit / 1e9:.2f} GB")
    print(f"  {parts}")
    if not plan.fits:
        print(
            f"\nIt does not fit: {plan.excess_bytes / 1e9:.2f} GB too much (compiled in {plan.compile_seconds:.0f} s)."
        )
        return
    print("  it fits")


def _print_bounds(experiment: Experiment, plan: "Plan") -> None:
    """Prints minimum step times by resource, the traffic, and the bounds of the whole run."""
    bounds = plan.bounds
    print("\nMinimum times of a step by resource, in ms:")
    print(
        f"  {'component':<14} {'share':>6} {'model TFLOP':>12} {'program':>9} {'compute':>8} "
        f"{'HBM':>7} {'ICI':>7} {'DCN':>7}"
    )
    for component in bounds.components:
        times = component.seconds
        name = component.component if component.compiled else f"{component.component} *"
        print(
            f"  {name:<14} {component.share:>6.2f} "
            f"{component.model_flops / 1e12:>12,.2f} {component.flops / 1e12:>9,.2f} "
            f"{times['compute'] * 1e3:>8.1f} {times['hbm'] * 1e3:>7.1f} "
            f"{times['ici'] * 1e3:>7.1f} {times['dcn'] * 1e3:>7.1f}"
        )
    if not all(component.compiled for component in bounds.components):
        print(f"  * not compiled: its traffic is that of {plan.component}, its HBM that of the state alone")
    if experiment.devices.slices > 1 and CHIPS[plan.topology.partition(":")[0]].dcn_bandwidth is None:
        print("  no bandwidth of the network between slices is published for this chip: its time is left out")
    for where, traffic in (("within its slice", bounds.traffic), ("between slices", bounds.traffic_between_slices)):
        if traffic:
            sizes = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in traffic.items() if size >= 5e4)
            print(f"\nA device receives {where} in a step, in MB: {sizes}")
    rate, host_rate = bounds.input_bytes_per_second, bounds.input_bytes_per_second_of_a_host
    # MFU is inversely proportional to the time of a step.
    unhidden = bounds.unhidden_seconds
    unhidden_mfu = bounds.mfu * (bounds.step_seconds / unhidden)
    print(
        f"\nA step takes at least {bounds.step_seconds * 1e3:.1f} ms, bounded by {bounds.by}: at most "
        f"{bounds.mfu:.0%} MFU, and at least {bounds.days:.2f} days for {experiment.steps:,} steps.\n"
        f"Without overlap of transfers and arithmetic: {unhidden * 1e3:.1f} ms, {unhidden_mfu:.0%} MFU.\n"
        f"Input at the former rate: {rate / 1e6:,.0f} MB/s in all, {host_rate / 1e6:,.1f} MB/s for each host.\n"
        f"These are lower bounds at full utilisation of the resource, which no program reaches. "
        f"Compiled in {plan.compile_seconds:.0f} s."
    )
