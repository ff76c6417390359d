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
# # What sound teaches sight
#
# Does a network that hears collisions while it trains learn to *see* what bodies are made of? Material hardly shows in
# a single frame of these films: it shows in how bodies bounce, and sounds tell it plainly. Arms differ in the sound
# alone: they share the films, their order, the noise and the initialisation, seed by seed.
#
# | arm | sound |
# |---|---|
# | matched | of the clip |
# | shuffled | of another clip, drawn anew in each epoch: as many tokens, as much compute, the same sounds |
# | delayed | of the clip, 0.5 s too late: what it is made of is kept, when it sounds is not |
# | video | none |
# | matched_unaligned, shuffled_unaligned | as matched and shuffled, with alignment weight 0 |
#
# The numbers are those of files that come with the project; `experiments/sight_and_sound.py` says how the runs behind
# them were trained and probed. Where the runs are at hand, the end of this notebook looks into them.

# %% tags=["parameters"]
rows_paths = [f"../experiments/results/sight_and_sound/{name}.csv" for name in ("video", "audio", "shifted")]
runs_path = "../runs/sight_and_sound"
seed = 1

# %%
# %matplotlib inline
from pathlib import Path

from selfflow import open_run
from selfflow.representation.comparison import compare_methods, interaction, read_rows, select_rows
from selfflow.representation.figures.comparison import comparison_figure, loss_curves
from selfflow.representation.figures.layers import probe_curves
from selfflow.representation.probes.probe_run import best

rows = [row for path in rows_paths for row in read_rows(path)]

# %% [markdown]
# ## The primary number
#
# Fixed before any of these runs was trained: balanced accuracy of a logistic probe of the material on mean video
# tokens, from video alone, at tau 0.1, on the split test, the layer chosen on validation for each run; matched minus
# shuffled, paired by seed, over five seeds. In brackets: 95 % t intervals over seeds.

# %%
seen = {"target": "material", "source": "video", "split": "test", "tau": 0.1, "probe": "logistic"}
two = [row for row in select_rows(rows, **seen) if row.method in ("matched", "shuffled")]
primary = compare_methods(best(two), "shuffled")
for method in primary:
    print(method.told())

# %%
comparison_figure({"material from video\nbalanced accuracy": primary})

# %% [markdown]
# At every layer, validation choosing nothing. Bands are t intervals of each arm's mean: what seeds have in common is in
# them, so that they are wider than that of the paired difference.

# %%
probe_curves(two, columns=1)

# %% [markdown]
# ## Secondary numbers
#
# All arms held against shuffled sound. Arms but the first two have three seeds, and are exploratory.
# *Contacts* is how many there are in the span of a video token's frames, by ridge regression; *shifted* clips hold more
# and larger bodies than any that was trained on.

# %%
heard = {"target": "contact", "source": "video", "split": "test", "tau": 0.1}
questions = {
    "material from video\nbalanced accuracy": seen,
    "material from video, shifted\nbalanced accuracy": seen | {"split": "shifted"},
    "contacts from video\nR$^2$": heard,
    "material from sound\nbalanced accuracy": seen | {"source": "audio"},
}
answers = {title: compare_methods(best(select_rows(rows, **asked)), "shuffled") for title, asked in questions.items()}
comparison_figure(answers)

# %%
for title, methods in answers.items():
    print(title.replace("\n", ", "))
    for method in methods:
        print("  " + method.told())

# %% [markdown]
# **Does alignment compound it?** What matched sound adds to the material seen with the alignment loss, minus what it
# adds without, over the seeds of all four arms:

# %%
arms = ("matched", "shuffled"), ("matched_unaligned", "shuffled_unaligned")
print(interaction(compare_methods(best(select_rows(rows, **seen))), *arms).told())

# %% [markdown]
# **Does a film find its sound?** Among 16 sounds, half of them of its material, by minus the flow loss of the sound
# given the clean film: the share of films whose own sound came first (1/16 by lot), and of those for which one of their
# material did (1/2 by lot). The score holds how likely a sound is whatever the film, so that a network which looks at
# no film prefers the same few sounds and may lie below both: what arms tell is in their differences.

# %%
for target in ("sound", "sound's material"):
    print(target)
    for method in compare_methods(select_rows(rows, target=target, split="test"), "shuffled"):
        print("  " + method.told())

# %% [markdown]
# ## The runs themselves
#
# Flow losses of the arms of one seed, step by step.

# %%
found = {path.name: open_run(path) for path in sorted(Path(runs_path).glob(f"*_{seed}"))}
how = "train them with `selfflow sweep experiments/sight_and_sound.py --jobs 2`"
loss_curves(found) if found else print(f"{runs_path}: no runs; {how}")
