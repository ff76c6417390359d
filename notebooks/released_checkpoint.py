# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Probing a released SiT
#
# The authors of Self-Flow released the weights of a SiT-XL/2, trained on ImageNet at 256 x 256. `import_released_sit`
# creates a run from them, and this notebook probes its layers. Without the files it does nothing.
#
# The network sees latents of the autoencoder that it was trained with, which for the released weights is the SD-VAE:
# images of 256 x 256 pixels become latents [32, 32, 4], multiplied by 0.18215. `--autoencoder.image sd-vae=PATH` of
# `selfflow encode` computes them. Write the latents of labelled images as
#
#     numpy.savez("latents.npz", latents=latents, labels=labels)   # float32 [n, H, W, C], integers [n]
#
# One half is used to fit probes, a quarter for validation and a quarter for test scores.

# %% tags=["parameters"]
checkpoint = "../downloads/selfflow_imagenet256.pt"
num_heads = None
latents = "../downloads/latents.npz"
run_path = "../runs/imagenet256"
layers = []
taus = [0.0, 0.1, 0.25, 0.5]
probe = "linear"

# %%
# %matplotlib inline
from pathlib import Path

from selfflow import open_run
from selfflow.interop.import_released import import_released_sit
from selfflow.representation.features.arrays import read_labelled
from selfflow.representation.figures.layers import probe_curves, probe_map
from selfflow.representation.probes.probe_run import Probing, best, probe_run

missing = [path for path in (checkpoint, latents) if not Path(path).is_file()]
if missing:
    print(f"{' and '.join(missing)}: no such file; nothing is probed. The text above says where they come from.")

# %% [markdown]
# ## Import
#
# The weights do not determine the number of heads; it is known for the published sizes.

# %%
if not missing:
    if not Path(run_path).exists():
        import_released_sit(Path(checkpoint), Path(run_path), num_heads)
    run = open_run(run_path)
    print(run.experiment.model)

# %% [markdown]
# ## Probes
#
# The model gets no class label. Balanced accuracy on the test part by block and noise level, beside the same network
# with untrained weights and open gates.

# %%
if not missing:
    data = read_labelled(latents)
    settings = Probing(("label",), tuple(layers), tuple(taus), probe=probe, clips=len(data["train"]))
    rows = probe_run(run, settings, method="released", data=data)
    rows += probe_run(run, settings, method="untrained", weights="untrained", data=data)

# %%
probe_curves(rows) if not missing else None

# %%
probe_map(rows) if not missing else None

# %%
for row in [] if missing else best(rows):
    print(f"{row.method}: block {row.layer}, tau {row.tau:g}: {row.test:.3f} (chance {row.chance:.3f})")
