"""Does Self-Flow do better than flow matching alone, at this size, at equal steps and at equal compute?

    selfflow sweep experiments/ablations/self_flow.py --jobs 2 --workdir runs/ablations/self_flow
    cd runs/ablations/self_flow
    for run in *_?; do
        selfflow evaluate $run --samples 64 --features logmel --sampler.steps 25
        selfflow evaluate $run --samples 256 --modality image --features effnet --sampler.steps 25
    done
    selfflow probe *_? --targets position,material,count,contacts --sources video,audio,video+audio --tau 0.5 \\
        --layers 2,4,6 --clips 1024 --csv probes/trained.csv
    selfflow probe vanilla_? --targets position --sources video --tau 0.5 --layers 2,4,6 --clips 1024 \\
        --weights untrained --csv probes/untrained.csv
    cd .. && selfflow report self_flow

vanilla          one tau for all tokens of a sample, no alignment
dual             two taus (Dual-Timestep Scheduling), no alignment
self_flow        two taus and alignment with the EMA copy: the defaults of this package, gamma 0.8
self_flow_short  as self_flow, for as many steps as vanilla's FLOPs pay for

All arms have the initialisation, the data in their order and the noise of their seed in common. The losses that a run
reports at its end are comparable, for they are all measured with one tau for all tokens of a sample.

Fixed before any of them was measured. For what is understood: R^2 of a ridge probe of a body's position on the tokens
of a film, from video alone at tau 0.5, the layer chosen on validation; with less noise the token itself tells it to a
linear probe, whatever the network knows. For what is made: KID on EffNet's features of 256 stills. Each is self_flow
minus vanilla, five seeds, paired. All else explores. Arms are compared only if vanilla has learned: flow loss below 0.9
of its linear baseline, and that probe's R^2 0.10 above the untrained network's. (512 stills were planned, and made 256 for
time when the first runs were trained and nothing was measured.)

It is the quickstart for 600 steps, with films and sounds alone among its batches, as in arXiv 2603.06507, so that what
is probed of them is something that the network has seen.

Hardware: two CPU cores, 2 GB for each member. Wall time: 6 to 8 minutes for a member where two run at
once, and 4 to measure it.
"""

import dataclasses
from collections.abc import Iterable

from selfflow.config.experiment import Experiment, FinalEvaluation
from selfflow.experiments import quickstart
from selfflow.input.mixture import Component
from selfflow.noise import UniformTimestep
from selfflow.objectives.alignment import NoAlignment
from selfflow.planning.model_flops import flops_of, mean_flops, steps_within
from selfflow.sweep.members import Member, seeds
from selfflow.training.loop import Cadence


def experiment() -> Experiment:
    return dataclasses.replace(
        quickstart.experiment(),
        mixture={
            "joint": Component(modalities=("video", "audio"), weight=0.4, batch_size=16),
            "films": Component(modalities=("video",), weight=0.3, batch_size=16),
            "sounds": Component(modalities=("audio",), weight=0.1, batch_size=64),
            "stills": Component(modalities=("image",), weight=0.2, batch_size=64),
        },
        steps=600,
        cadence=Cadence(checkpoint_every=200),
        final_evaluation=FinalEvaluation(samples=2, probe_clips=0),
    )


def sweep(base: Experiment) -> Iterable[Member]:
    alone = {"schedule": UniformTimestep(), "alignment": NoAlignment()}
    vanilla, whole = dataclasses.replace(base, **alone).resolved(), base.resolved()
    paid_for = steps_within(mean_flops(whole), flops_of(mean_flops(vanilla), vanilla.steps))
    arms = (
        Member("vanilla", alone),
        Member("dual", {"alignment": NoAlignment()}),
        Member("self_flow", {}),
        Member("self_flow_short", {"steps": paid_for}),
    )
    return seeds(arms, range(1, 6))
