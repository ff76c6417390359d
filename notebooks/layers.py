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
# # What layers know
#
# Runs held against each other, and against the same network untrained, layer by layer and noise level by noise level:
# what probes read from them, how alike layers are, and whether they are healthy. Features are the residual stream
# behind a block, without a label given to the model, means over the tokens of a modality. They are kept in the run
# folder and are not computed again.

# %% tags=["parameters"]
run_paths = ["../runs/quickstart"]
targets = ["material", "count"]
taus = [0.0, 0.1, 0.25, 0.5, 0.75]
sources = ["video", "audio", "video+audio"]
probe = "logistic"
clips = 2048
similar_clips = 512
similar_tau = 0.1
healthy_clips = 128
healthy_batch = 16
neighbours = 10

# %%
# %matplotlib inline
from selfflow import open_run
from selfflow.representation.features.extract import features
from selfflow.representation.figures.layers import health_figure, probe_curves, probe_map, similarity_figure
from selfflow.representation.health import health_of_run
from selfflow.representation.probes.probe_run import Probing, best, probe_run
from selfflow.run.arms import arms_of

runs = [open_run(path) for path in run_paths]
names = arms_of(runs)
asked = Probing(tuple(targets), tau=tuple(taus), sources=tuple(sources), probe=probe, clips=clips)

# %% [markdown]
# ## Probes
#
# A linear probe is fitted on the split train, its strength is chosen on validation, and its score is that on test. The
# untrained network has the gates of its blocks open, since a closed one hands its tokens on. Dotted: chance.

# %%
rows = [row for run, name in zip(runs, names) for row in probe_run(run, asked, method=name)]
rows += probe_run(runs[0], asked, method=f"{names[0]}, untrained", weights="untrained")
lowest = [row for row in rows if row.tau == min(taus)]
probe_curves(lowest, columns=len(sources))

# %%
probe_map(rows)

# %% [markdown]
# The layer and noise level that validation chose for each question, and their score on test:

# %%
for row in best(rows):
    print(
        f"{row.method:>24}  {row.target:>10} from {row.source:<12} block {row.layer}, tau {row.tau:<5g} {row.test:.3f}"
    )

# %% [markdown]
# ## Likeness
#
# Linear CKA (debiased, arXiv 1905.00414) compares all distances between clips, CKNNA (arXiv 2405.07987) only those
# between near ones. Both are 1 for the same features and about 0 for independent ones. Panels of one modality compare
# its layers; the panel of two asks whether clips that sound alike look alike to the model. They are seen together here,
# so that some of their likeness may be what one has taken from the other.

# %%
likeness = {"data": "test", "tau": similar_tau, "limit": similar_clips}
together = features(runs[0], **likeness)
similarity_figure({m: (together, m) for m in together.grids}, neighbours)

# %% [markdown]
# The same where each modality is seen alone, so that nothing can have been taken from the other:

# %%
alone = {m: features(runs[0], **likeness, modalities=[m]) for m in together.grids}
similarity_figure({m: (found, m) for m, found in alone.items()}, neighbours)

# %% [markdown]
# How alike the runs are, and how far training led from where it began. What another encoder makes of the same clips is
# put beside them in the same way (`layer_similarity`).

# %%
m = next(iter(together.grids))
networks = {name: features(run, **likeness, modalities=[m]) for name, run in zip(names, runs)}
networks["untrained"] = features(runs[0], **likeness, modalities=[m], weights="untrained")
similarity_figure({f"{name}, {m}": (found, m) for name, found in networks.items()}, neighbours)

# %% [markdown]
# ## Health
#
# The student's features against its EMA copy's, at one noise level for both: cosines of pairs of blocks as they are,
# without what all clips share at a position, and with the teacher of another clip, which is what position and level
# alone explain. Then how long the student's features are, and over how many directions they spread (RankMe,
# arXiv 2210.02885). The last two fall where features collapse.

# %%
health_figure(health_of_run(runs[0], runs[0].data("test"), tuple(taus), limit=healthy_clips, batch_size=healthy_batch))
