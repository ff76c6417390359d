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
# # What layers encode
#
# Runs compared with each other and with the untrained network, by layer and noise level: what probes read from them,
# how similar layers are, and whether they are healthy. Features are the residual stream after a block, averaged over
# the tokens of a modality; the model gets no label. They are stored in the run folder and computed once.

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
from selfflow.representation.features import features
from selfflow.representation.figures.layers import health_figure, probe_curves, probe_map, similarity_figure
from selfflow.representation.health import health_of_run
from selfflow.representation.probes.probe_run import Probing, best, probe_run
from selfflow.run.arms import arms_of

runs = [open_run(path) for path in run_paths]
names = arms_of(runs)
settings = Probing(tuple(targets), tau=tuple(taus), sources=tuple(sources), probe=probe, clips=clips)

# %% [markdown]
# ## Probes
#
# A linear probe is fitted on the split train, its regularisation is chosen on validation, and its score is that on
# test. The untrained network has the gates of its blocks open, since a closed gate passes its input on. Dotted: chance.

# %%
rows = [row for run, name in zip(runs, names) for row in probe_run(run, settings, method=name)]
rows += probe_run(runs[0], settings, method=f"{names[0]}, untrained", weights="untrained")
lowest = [row for row in rows if row.tau == min(taus)]
probe_curves(lowest, columns=len(sources))

# %%
probe_map(rows)

# %% [markdown]
# The layer and noise level chosen on validation for each target, and their test score:

# %%
for row in best(rows):
    print(
        f"{row.method:>24}  {row.target:>10} from {row.source:<12} block {row.layer}, tau {row.tau:<5g} {row.test:.3f}"
    )

# %% [markdown]
# ## Similarity
#
# Linear CKA (debiased, arXiv 1905.00414) compares all distances between clips, CKNNA (arXiv 2405.07987) only those
# between near neighbours. Both are 1 for equal features and about 0 for independent ones. Panels of one modality
# compare its layers; the panel of two asks whether clips with similar audio have similar video features. Both
# modalities are in one sequence here, so that some of the similarity may be due to attention between them.

# %%
similarity = {"data": "test", "tau": similar_tau, "limit": similar_clips}
joint = features(runs[0], **similarity)
similarity_figure({m: (joint, m) for m in joint.grids}, neighbours)

# %% [markdown]
# The same with each modality alone in its sequence, which excludes attention between them:

# %%
alone = {m: features(runs[0], **similarity, modalities=[m]) for m in joint.grids}
similarity_figure({m: (layers, m) for m, layers in alone.items()}, neighbours)

# %% [markdown]
# How similar the runs are, and how far training moved the features from their initialisation. Features of another
# encoder of the same clips are compared in the same way (`layer_similarity`).

# %%
m = next(iter(joint.grids))
networks = {name: features(run, **similarity, modalities=[m]) for name, run in zip(names, runs)}
networks["untrained"] = features(runs[0], **similarity, modalities=[m], weights="untrained")
similarity_figure({f"{name}, {m}": (layers, m) for name, layers in networks.items()}, neighbours)

# %% [markdown]
# ## Health
#
# The student's features against those of its EMA copy, at equal noise: cosines of pairs of blocks as they are, without
# the mean over clips at each position, and with the teacher's features of another clip, which position and level alone
# explain. Then the norm of the student's features and their effective rank (RankMe, arXiv 2210.02885). The last two
# fall where features collapse.

# %%
health_figure(health_of_run(runs[0], runs[0].data("test"), tuple(taus), limit=healthy_clips, batch_size=healthy_batch))
