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
rows_paths = [f"../experiments/sight_and_sound_{name}.csv" for name in ("video", "audio", "shifted")]
runs_path = "../runs/sight_and_sound"
seed = 1

# %%
# %matplotlib inline
from pathlib import Path

from selfflow import open_run
from selfflow.representation.comparison import compared, interaction, read_rows
from selfflow.representation.comparison_figures import comparison_figure, loss_curves
from selfflow.representation.figures import probe_curves
from selfflow.representation.probing import best

rows = [row for path in rows_paths for row in read_rows(path)]

# %% [markdown]
# ## The primary number
#
# Fixed before any of these runs was trained: balanced accuracy of a logistic probe of the material on mean video
# tokens, from video alone, at tau 0.1, on the split test, the layer chosen on validation for each run; matched minus
# shuffled, paired by seed, over five seeds. In brackets: 95 % t intervals over seeds.

# %%
material = best([row for row in rows if (row.target, row.source, row.split) == ("material", "video", "test")])
primary = compared([row for row in material if row.method in ("matched", "shuffled")], "shuffled")
for method in primary:
    print(method.told())

# %%
comparison_figure({"material from video": primary})

# %% [markdown]
# At every layer, validation choosing nothing. Bands are t intervals of each arm's mean: what seeds have in common is in
# them, so that they are wider than that of the paired difference.

# %%
probe_curves(
    [
        row
        for row in rows
        if (row.target, row.source, row.split) == ("material", "video", "test")
        and row.method in ("matched", "shuffled")
    ],
    columns=1,
)

# %% [markdown]
# ## Secondary numbers
#
# All arms held against shuffled sound. Arms but the first two have three seeds, and are exploratory.
# *Contact* is whether something sounds in the moment of a token; *shifted* clips hold more and larger bodies than any
# that was trained on.

# %%
asked = {
    "material from video": ("material", "video", "test"),
    "material from video, shifted": ("material", "video", "shifted"),
    "contact from video": ("contact", "video", "test"),
    "material from audio": ("material", "audio", "test"),
}
answers = {
    title: compared(best([row for row in rows if (row.target, row.source, row.split) == of]), "shuffled")
    for title, of in asked.items()
}
comparison_figure(answers)

# %%
for title, methods in answers.items():
    print(title)
    for method in methods:
        print("  " + method.told())

# %% [markdown]
# **Does alignment compound it?** What matched sound adds to the material seen with the alignment loss, minus what it
# adds without, over the seeds of all four arms:

# %%
arms = ("matched", "shuffled"), ("matched_unaligned", "shuffled_unaligned")
print(interaction(answers["material from video"], *arms).told())

# %% [markdown]
# **Does a film find its sound?** Among 16 sounds, half of them of its material, by minus the flow loss of the sound
# given the clean film: the share of films whose own sound came first (chance 1/16), and of those for which one of their
# material did (chance 1/2).

# %%
for target in ("sound", "sound's material"):
    print(target)
    for method in compared([row for row in rows if row.target == target], "shuffled"):
        print("  " + method.told())

# %% [markdown]
# ## The runs themselves
#
# Flow losses of the arms of one seed, step by step.

# %%
found = {path.name: open_run(path) for path in sorted(Path(runs_path).glob(f"*_{seed}"))}
how = "train them with `selfflow sweep experiments/sight_and_sound.py --jobs 2`"
loss_curves(found) if found else print(f"{runs_path}: no runs; {how}")
