"""From an experiment to what its run reads: builds, fits and encodes what is not there yet."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

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
from selfflow.latents.ids import read_ids
from selfflow.latents.pretrained_weights import find_weights
from selfflow.latents.store import MANIFEST, Latents
from selfflow.modality import Modality
from selfflow.serialization import digest
from selfflow.storage.lock import wait_for_file
from selfflow.storage.mirror import fetch_folder
from selfflow.storage.paths import local_path
from selfflow.weights.read import sha256_of


def prepare_data(
    setup: FlowSetup, data_dir: Path, share: EncodeShare = EncodeShare(), own: Path | None = None
) -> tuple[BatchSource, dict[str, BuiltDataset]] | None:
    """What the mixture of an experiment is read from, and its data sets.

    Args:
      setup: of the experiment.
      data_dir: cache folder of data sets, autoencoders and latents.
      share: which part of the encoding is this process's.
      own: a run's copies of its autoencoders, which it goes on with, whatever lies at their paths by now.

    Returns:
      The feed and the data sets whose raw data is there; None where other hosts have not finished encoding.

    Raises:
      UserError: for what a user can correct in data, latents or experiment.
    """
    experiment, modalities = setup.experiment, setup.objective.modalities
    if own:
        experiment = _with_copies(experiment, own)
    excluded = read_ids(experiment.exclude) if experiment.exclude else set()
    used = sorted({component.data for component in experiment.mixture.values()})
    built = {name: build(experiment.data[name], data_dir) for name in used if name not in experiment.latents}
    latents: dict[str, Latents | None] = {
        name: _latents(experiment.latents[name], excluded) for name in used if name in experiment.latents
    }
    identity = cached_text_encoder(experiment.text).identity if experiment.text and built else None
    encoders = {name: _encoders(experiment, name) for name in used}
    known = encoder_identities({m: encoder for name in built for m, encoder in encoders[name].items()})
    for name, found in latents.items():
        found.check(experiment.autoencoders, modalities, experiment.text, identity)
        check_features(found, encoders[name], known)
    fitted = _fit(experiment, built, latents, excluded, data_dir, share)
    for name in used:
        if name not in latents:
            own = {m: f for m, f in fitted.items() if m in experiment.data[name].media_shapes()}
            more = {"encoders": encoders[name], "share": share, "exclude": excluded}
            latents[name] = encode(built[name], own, modalities, experiment.text, data_dir, **more)
    if not all(latents.values()):
        return None
    _check_identities(latents, encoders)
    _say_excluded(experiment.exclude, excluded, latents)
    return _feed(experiment, setup.modalities, latents), {
        name: b for name, b in built.items() if not b.settings.holds_latents
    }


def latents_hash(latents: Mapping[str, Latents]) -> str:
    """Identity of all that a run may read: latents, and features beside them."""
    hashes = {name: found.hash for name, found in latents.items()}
    features = {name: found.features for name, found in latents.items() if found.features}
    if len(hashes) == 1 and not features:
        return next(iter(hashes.values()))
    identity = [hashes, features] if features else hashes
    return digest(identity)


def dataset_provenance(experiment: Experiment, latents: Mapping[str, Latents]) -> dict[str, Any]:
    """What a run keeps in mind of its data sets, as JSON data: licences, and identities of records and encoders."""
    return {
        name: {
            "dataset": found.manifest["dataset"],
            "licence": experiment.data[name].licence,
            "fingerprint": found.manifest["fingerprint"],
            "latents": found.hash,
            "autoencoders": {m: made["identity"] for m, made in found.manifest["modalities"].items()},
            "text": (found.manifest["text"] or {}).get("identity"),
            "features": found.features,
        }
        for name, found in latents.items()
    }


def autoencoder_files(latents: Mapping[str, Latents]) -> dict[str, Path]:
    """The file of each modality's autoencoder; where several data sets have it, it is the same."""
    files = {m: found.autoencoder_path(m) for found in latents.values() for m in found.manifest["modalities"]}
    return {m: path for m, path in files.items() if path}


def _with_copies(experiment: Experiment, own: Path) -> Experiment:
    configs = dict(experiment.autoencoders)
    for m, config in configs.items():
        copy = own / f"{m}.safetensors"
        if uses_pretrained(config) and config.kind != "diffusers" and copy.is_file():
            configs[m] = dataclasses.replace(config, path=str(copy))
    return dataclasses.replace(experiment, autoencoders=configs)


def _latents(path: str, excluded: Collection[str]) -> Latents:
    folder = local_path(path)
    fetch_folder(folder, MANIFEST)
    return Latents(folder, excluded)


def _encoders(experiment: Experiment, data: str) -> dict[str, Encoder]:
    """The encoders of those modalities that the mixture takes from a data set."""
    taken = {m for component in experiment.mixture.values() if component.data == data for m in component.modalities}
    return {m: encoder for m, encoder in experiment.alignment.target_encoders.items() if m in taken}


def _feed(
    experiment: Experiment, modalities: Mapping[str, Mapping[str, Modality]], latents: dict[str, Latents]
) -> BatchSource:
    caption = None
    if experiment.text:
        caption = (experiment.text.tokens, experiment.model.text)
        for name, found in latents.items():
            width = found.manifest["text"]["width"]
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
    elsewhere: Mapping[str, Latents],
    excluded: Collection[str],
    data_dir: Path,
    share: EncodeShare,
) -> dict[str, FittedAutoencoder]:
    """The autoencoders: those that latents from elsewhere were made by, the others fitted to the data."""
    fitted = {}
    for m, config in experiment.autoencoders.items():
        having = {name: b for name, b in built.items() if m in experiment.data[name].media_shapes()}
        given = next((found for found in elsewhere.values() if m in found.manifest["modalities"]), None)
        if given:
            made = given.manifest["modalities"][m]
            path = given.autoencoder_path(m)
            _check_weights(m, config, path, given)
            identity = given.autoencoder(m, config).identity if path else config.identity
            fitted[m] = FittedAutoencoder(config, path, identity, made["fitted_on"])
        elif having:
            if share.host and can_decode(config):
                notes = fitted_path(m, config, having, excluded, data_dir).with_suffix(".json")
                wait_for_file(notes, f"it fits the {m} autoencoder")
            fitted[m] = fit_autoencoder(m, config, having, excluded, data_dir)
    return fitted


def _check_weights(m: str, config: AnyAutoencoder, path: Path | None, latents: Latents) -> None:
    """Raises `UserError` if a user names weights that are there and did not make latents from elsewhere."""
    weights = (
        find_weights(config)
        if path and uses_pretrained(config) and config.kind != "diffusers" and config.path
        else None
    )
    if weights and weights.is_file() and sha256_of(weights) != sha256_of(path):
        raise UserError(
            f"autoencoders.{m}.path is {config.path}, but {latents.path} was made by other weights: leave the path "
            "empty, or encode with these"
        )


def _check_identities(latents: dict[str, Latents], encoders: dict[str, dict[str, Encoder]]) -> None:
    """One modality must mean the same in all data sets, and so must the features that it is aligned with."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for name, found in latents.items():
        identities = [(m, "autoencoder", made) for m, made in found.manifest["modalities"].items()]
        identities += [(m, "encoder of features", found.manifest["features"][m]) for m in encoders[name]]
        for m, what, made in identities:
            other, identity = seen.setdefault((m, what), (name, made["identity"]))
            if identity != made["identity"]:
                raise UserError(
                    f"latents.{name}: its {m} was encoded by {made['identity']}, that of {other} by {identity}: "
                    f"encode both with one {what} (one `selfflow encode` of an experiment that has both)"
                )


def _say_excluded(path: str, excluded: Collection[str], latents: dict[str, Latents]) -> None:
    if not excluded:
        return
    sources = [found.open_split(split) for found in latents.values() for split in found.records]
    known = {i.decode() for source in sources for i in source.index["id"][source.excluded]}
    missing = sorted(set(excluded) - known)
    shown = f"; not in the data: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}" if missing else ""
    print(
        f"exclude {path}: {len(excluded) - len(missing)} of {len(excluded)} ids are in the data and never read{shown}"
    )
