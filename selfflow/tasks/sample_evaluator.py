"""Evaluation of samples of a run, in `selfflow evaluate` and during training."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from selfflow.config.experiment import Experiment
from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset
from selfflow.errors import UserError
from selfflow.evaluation.accumulate import Accumulator
from selfflow.evaluation.extractors import Extractor, media_of, open_extractor
from selfflow.evaluation.model_features import ModelFeatures
from selfflow.evaluation.physics.verifier import PhysicsVerifier, physics_verifier
from selfflow.evaluation.real_clips import RealClips
from selfflow.evaluation.samples import MAX_CLIPS, EvaluationSetup, SampleAccumulator, batch_size, space_name
from selfflow.input.batches import BatchSource
from selfflow.progress import Progress


class SampleEvaluator:
    """Computes metrics of samples of one component of the mixture, compared with its real clips.

    Extractors are opened in the constructor, so that errors in `features` are raised before samples are drawn. The
    physics verifier is fitted on first use.

    Args:
      run_setup: setup of the run's experiment.
      source: batches and latents of the run.
      built: data sets with raw records, by name.
      component: name of the component.
      features: names of features, as in `Evaluation.features`. Features of media that the component lacks are ignored.
      samples: n, the number of samples.
      max_clips: maximum number of clips for metrics of single clips.

    Attributes:
      built: data set of the component with raw records; None if they do not exist.
      setup: extractors, without the verifier.
      samples: n, the number of samples.

    Raises:
      UserError: if features are unknown, two of them are the same feature space, or a package or file is missing.
    """

    def __init__(
        self,
        run_setup: FlowSetup,
        source: BatchSource,
        built: Mapping[str, BuiltDataset],
        component: str,
        features: tuple[str, ...],
        samples: int,
        max_clips: int = MAX_CLIPS,
    ):
        experiment = run_setup.experiment
        self._experiment, self._source, self._component = experiment, source, component
        self._media = run_setup.media[component]
        self._data = experiment.mixture[component].data
        self.built = built.get(self._data)
        self.setup = _open_features(features, run_setup, component)._replace(max_clips=max_clips)
        self.samples = samples
        self._references: dict[str, Accumulator] = {}

    def exclude(self, modalities: tuple[str, ...]) -> None:
        """Removes the extractors of modalities that are entirely context, and thus equal to the data."""
        extractors = [extractor for extractor in self.setup.extractors if extractor.medium not in modalities]
        self.setup = self.setup._replace(extractors=tuple(extractors))

    def set_weights(self, params: Any, identity: str) -> None:
        """Sets the parameters of the model for features of the run's own network.

        Args:
          params: parameters of the model, on the devices that compute the features.
          identity: unique description of the parameters, such as run and step.
        """
        if self.setup.model_features:
            self.setup = self.setup._replace(model_features=self.setup.model_features.with_params(params, identity))

    @cached_property
    def verifier(self) -> PhysicsVerifier | None:
        """Physics verifier of the data set, or None; fitting it takes about a minute."""
        data, modalities = self._experiment.data[self._data], self._experiment.mixture[self._component].modalities
        return physics_verifier(data, modalities, self.built)

    def clips(self, split: str) -> RealClips:
        """Returns the real clips of the component in a split of its data set."""
        latents = self._source.latents[self._data]
        lengths = {m: media.shape[0] if media.rate else 0 for m, media in self._media.items()}
        autoencoders = {m: latents.autoencoder(m, self._experiment.autoencoders[m]) for m in self._media}
        return RealClips(self._source, self.built, self._component, split, lengths, autoencoders)

    def reference(self, clips: RealClips, indices: np.ndarray, rows: int) -> dict[str, Accumulator]:
        """Computes features of real clips, by the name of the feature space.

        Features of extractors are cached: they are computed once, for the clips of the first call. Features of the
        run's own network are computed in every call, because its weights change.

        Args:
          clips: clips of a split.
          indices: indices of the clips, [m].
          rows: batch size.
        """
        # Metrics of single clips, such as physics, need no reference.
        setup = self.setup._replace(verifier=None, max_clips=0)
        if self._references:
            setup = setup._replace(extractors=())
        if not setup.feature_spaces:
            return dict(self._references)
        accumulated = SampleAccumulator(setup, self.samples)
        with Progress(f"real clips of {clips.split}", len(indices), unit="clip") as shown:
            for latents, media in clips.batches(indices, rows):
                accumulated.add(latents, media)
                shown.advance(batch_size(latents))
        for extractor in setup.extractors:
            self._references[space_name(extractor)] = accumulated.features[space_name(extractor)]
        return self._references | accumulated.features

    def accumulator(self) -> SampleAccumulator:
        """Returns an empty accumulator for n samples."""
        return SampleAccumulator(self.setup._replace(verifier=self.verifier), self.samples)


def _open_features(features: tuple[str, ...], run_setup: FlowSetup, component: str) -> EvaluationSetup:
    """Opens the extractors of `features` that apply to the component; weights of the run's network are set later."""
    experiment, modalities = run_setup.experiment, run_setup.modalities[component]
    rates = {m: media.rate for m, media in run_setup.media[component].items()}
    extractors: dict[str, Extractor] = {}
    model_features = None
    for spec in features:
        kind, _, block = spec.partition("=")
        if kind == "layer":
            if model_features is not None:
                raise UserError(f"--features {' '.join(features)}: name one layer")
            model_features = ModelFeatures(
                run_setup.objective.apply,
                modalities,
                _block(experiment, block),
                experiment.final_evaluation.probe_tau,
                experiment.model.labels,
                experiment.model.width,
            )
            continue
        for m in modalities:
            if m not in media_of(spec):
                continue
            extractor = open_extractor(spec, m)
            name = space_name(extractor)
            if name in extractors:
                raise UserError(f"--features {' '.join(features)}: two of them give {name}; name one")
            extractors[name] = extractor
    return EvaluationSetup(rates, tuple(extractors.values()), model_features)


def _block(experiment: Experiment, text: str) -> int:
    """Parses the block K of `layer=K`; the default is the teacher's block, or the block at 0.7 of the depth."""
    depth = experiment.model.depth
    block = text or experiment.alignment.teacher_layer or max(1, round(0.7 * depth))
    if not str(block).isdigit() or not 1 <= int(block) <= depth:
        raise UserError(f"--features layer={text}: this model has blocks 1 to {depth}")
    return int(block)
