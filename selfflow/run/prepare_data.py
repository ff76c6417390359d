"""Preparation of an experiment's data: builds data sets, fits autoencoders and encodes latents."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from selfflow.autoencoders.config import AnyAutoencoder, can_decode, uses_pretrained
from selfflow.config.experiment import Experiment
from selfflow.config.setup import FlowSetup
from selfflow.data.built import BuiltDataset, build
from selfflow.encoders.config import Encoder
from selfflow.encoders.load import cached_text_encoder
from selfflow.errors import UserError
from selfflow.input.batches import BatchSource
from selfflow.latents.encode import EncodeShare, encode
from selfflow.latents.features import check_features, encoder_identities
from selfflow.latents.fit_autoencoder import FittedAutoencoder, fit_autoencoder, fitted_path
from selfflow.latents.ids import check_excluded, read_ids
from selfflow.latents.pretrained_weights import find_weights
from selfflow.latents.store import MANIFEST, Latents
from selfflow.modality import Modality
from selfflow.serialization import digest
from selfflow.storage.lock import wait_for_file
from selfflow.storage.mirror import fetch_folder
from selfflow.storage.paths import local_path
from selfflow.weights.read import sha256_of


class RunData(NamedTuple):
    """The data of a run.

    Attributes:
      source: source of the batches of all components of the mixture, with their latents.
      built: data sets whose raw records exist, by name.
    """

    source: BatchSource
    built: dict[str, BuiltDataset]


def prepare_data(
    setup: FlowSetup,
    data_dir: Path,
    share: EncodeShare = EncodeShare(),
    own: Path | None = None,
    recorded: Mapping[str, str] = MappingProxyType({}),
) -> RunData | None:
    """Opens the latents of an experiment; first builds data sets, fits autoencoders and encodes latents if missing.

    Args:
      setup: setup of the experiment.
      data_dir: cache folder of data sets, autoencoders and latents.
      share: number of worker processes, and the part of the shards that this host encodes.
      own: folder of a run's copies of its autoencoders, which replace the weights that the experiment names.
      recorded: names of the data sets that a run was trained on, from its provenance.

    Returns:
      The data; None while other hosts encode their parts.

    Raises:
      UserError: for errors in data, latents or experiment that a user can correct.
    """
    experiment, modalities = setup.experiment, setup.objective.modalities
    if own:
        experiment = _with_own_weights(experiment, own)
    excluded = read_ids(experiment.exclude) if experiment.exclude else set()
    names = sorted({component.data for component in experiment.mixture.values()})
    encoders = {name: _encoders(experiment, name) for name in names}
    built = {}
    for name in names:
        if name not in experiment.latents:
            built[name] = build(experiment.data[name], data_dir, recorded.get(name, ""))

    # Latents that were encoded elsewhere must equal those that this experiment would encode.
    latents: dict[str, Latents | None] = {}
    for name in names:
        if name in experiment.latents:
            latents[name] = _open_latents(experiment.latents[name], excluded)
    text_identity = cached_text_encoder(experiment.text).identity if experiment.text and built else None
    encoder_of_modality = {}
    for name in built:
        encoder_of_modality |= encoders[name]
    identities = encoder_identities(encoder_of_modality)
    for name, stored in latents.items():
        stored.check(experiment.autoencoders, modalities, experiment.text, text_identity)
        check_features(stored, encoders[name], identities)

    autoencoders = _fit(experiment, built, latents, excluded, data_dir, share)
    for name, dataset in built.items():
        shapes = experiment.data[name].media_shapes()
        latents[name] = encode(
            dataset,
            {m: autoencoder for m, autoencoder in autoencoders.items() if m in shapes},
            modalities,
            experiment.text,
            data_dir,
            encoders=encoders[name],
            share=share,
            exclude=excluded,
        )
    if not all(latents.values()):  # other hosts still encode
        return None
    _check_identities(latents, encoders)
    _print_excluded(experiment.exclude, excluded, latents)
    raw = {name: dataset for name, dataset in built.items() if not dataset.settings.holds_latents}
    return RunData(_batch_source(experiment, setup.modalities, latents), raw)


def latents_hash(latents: Mapping[str, Latents]) -> str:
    """Returns a hash of all data that a run may read: latents, and the features stored beside them."""
    hashes = {name: stored.hash for name, stored in latents.items()}
    features = {name: stored.features for name, stored in latents.items() if stored.features}
    if len(hashes) == 1 and not features:
        return next(iter(hashes.values()))
    return digest([hashes, features] if features else hashes)


def dataset_provenance(experiment: Experiment, latents: Mapping[str, Latents]) -> dict[str, Any]:
    """Returns the provenance of each data set, as JSON data: licence, and identities of records and encoders."""
    provenance = {}
    for name, stored in latents.items():
        manifest = stored.manifest
        provenance[name] = {
            "dataset": manifest["dataset"],
            "licence": experiment.data[name].licence,
            "fingerprint": manifest["fingerprint"],
            "latents": stored.hash,
            "autoencoders": {m: entry["identity"] for m, entry in manifest["modalities"].items()},
            "text": (manifest["text"] or {}).get("identity"),
            "features": stored.features,
        }
    return provenance


def autoencoder_files(latents: Mapping[str, Latents]) -> dict[str, Path]:
    """Returns the weights file of each modality's autoencoder, which all data sets with the modality share."""
    files = {}
    for stored in latents.values():
        for m in stored.manifest["modalities"]:
            files[m] = stored.autoencoder_path(m)
    return {m: path for m, path in files.items() if path}


def _with_own_weights(experiment: Experiment, own: Path) -> Experiment:
    """Returns the experiment with paths of pretrained weights replaced by the paths of a run's copies."""
    configs = dict(experiment.autoencoders)
    for m, config in configs.items():
        copy = own / f"{m}.safetensors"
        if uses_pretrained(config) and config.kind != "diffusers" and copy.is_file():
            configs[m] = dataclasses.replace(config, path=str(copy))
    return dataclasses.replace(experiment, autoencoders=configs)


def _open_latents(path: str, excluded: Collection[str]) -> Latents:
    """Opens latents in a folder or a bucket; from a bucket all files but the shards are copied to this disk."""
    folder = local_path(path)
    fetch_folder(folder, MANIFEST)
    return Latents(folder, excluded)


def _encoders(experiment: Experiment, data: str) -> dict[str, Encoder]:
    """Returns the frozen encoders of the modalities that the mixture reads from a data set."""
    modalities = set()
    for component in experiment.mixture.values():
        if component.data == data:
            modalities |= set(component.modalities)
    return {m: encoder for m, encoder in experiment.alignment.target_encoders.items() if m in modalities}


def _batch_source(
    experiment: Experiment, modalities: dict[str, dict[str, Modality]], latents: dict[str, Latents]
) -> BatchSource:
    """Returns the source of batches; raises `UserError` if stored captions and the model differ in width."""
    caption = None
    if experiment.text:
        caption = (experiment.text.tokens, experiment.model.text)
        for name, stored in latents.items():
            width = stored.manifest["text"]["width"]
            if width != experiment.model.text:
                raise UserError(
                    f"model.text is {experiment.model.text}, but the captions of data.{name} have {width} channels"
                )
    return BatchSource(
        latents,
        experiment.mixture,
        modalities,
        experiment.curriculum,
        experiment.label,
        experiment.model.labels,
        caption,
        {m: encoder.width for m, encoder in experiment.alignment.target_encoders.items()},
        experiment.seed.data,
        experiment.loader,
    )


def _fit(
    experiment: Experiment,
    built: dict[str, BuiltDataset],
    stored: Mapping[str, Latents],
    excluded: Collection[str],
    data_dir: Path,
    share: EncodeShare,
) -> dict[str, FittedAutoencoder]:
    """Returns the autoencoder of each modality, from latents that were encoded elsewhere or fitted to built data sets.

    A modality that no component reads and no record has is left out, such as video in a folder of images.
    """
    needed: set[str] = set()
    for component in experiment.mixture.values():
        needed |= set(component.modalities)
    for dataset in built.values():
        needed |= dataset.modalities()
    fitted = {}
    for m, config in experiment.autoencoders.items():
        with_modality = {name: b for name, b in built.items() if m in experiment.data[name].media_shapes()}
        elsewhere = [latents for latents in stored.values() if m in latents.manifest["modalities"]]
        if elsewhere:
            fitted[m] = _autoencoder_of(elsewhere[0], m, config)
        elif with_modality and m in needed:
            if share.host and can_decode(config):
                # The first host fits the autoencoder; the others wait for the metadata, which it writes last.
                metadata = fitted_path(m, config, with_modality, excluded, data_dir).with_suffix(".json")
                wait_for_file(metadata, f"fit the {m} autoencoder")
            fitted[m] = fit_autoencoder(m, config, with_modality, excluded, data_dir)
    return fitted


def _autoencoder_of(latents: Latents, m: str, config: AnyAutoencoder) -> FittedAutoencoder:
    """Returns the autoencoder that encoded latents from elsewhere.

    Raises:
      UserError: if the experiment names other weights.
    """
    path = latents.autoencoder_path(m)
    if path and uses_pretrained(config) and config.kind != "diffusers" and config.path:
        weights = find_weights(config)
        if weights and weights.is_file() and sha256_of(weights) != sha256_of(path):
            raise UserError(
                f"autoencoders.{m}.path is {config.path}, but {latents.path} was encoded by other weights: leave the "
                "path empty, or encode with these"
            )
    identity = latents.autoencoder(m, config).identity if path else config.identity
    return FittedAutoencoder(config, path, identity, latents.manifest["modalities"][m]["fitted_on"])


def _check_identities(latents: Mapping[str, Latents], encoders: dict[str, dict[str, Encoder]]) -> None:
    """Raises `UserError` unless all data sets have one autoencoder and one frozen encoder for each modality."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for name, stored in latents.items():
        entries = [(m, "autoencoder", entry) for m, entry in stored.manifest["modalities"].items()]
        entries += [(m, "encoder of features", stored.manifest["features"][m]) for m in encoders[name]]
        for m, what, entry in entries:
            other, identity = first.setdefault((m, what), (name, entry["identity"]))
            if identity != entry["identity"]:
                raise UserError(
                    f"latents.{name}: its {m} was encoded by {entry['identity']}, that of {other} by {identity}: "
                    f"encode both with one {what} (one `selfflow encode` of an experiment that has both)"
                )


def _print_excluded(path: str, excluded: Collection[str], latents: Mapping[str, Latents]) -> None:
    """Prints the number of excluded ids in the data; raises `UserError` for ids that were never in it."""
    if not excluded:
        return
    present: set[str] = set()
    deletions = []
    for stored in latents.values():
        deletions += stored.manifest["deleted"]
        for split in stored.records:
            source = stored.open_split(split)
            present.update(id.decode() for id in source.index["id"][source.excluded])
    earlier = check_excluded(path, excluded, present, deletions)
    note = f"; {len(earlier)} were deleted" if earlier else ""
    print(f"exclude {path}: {len(excluded) - len(earlier)} of {len(excluded)} ids are in the data and never read{note}")
