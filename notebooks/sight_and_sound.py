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
# # Does audio teach vision?
#
# Does a network trained with the audio of collisions learn to *see* what bodies are made of? A single frame hardly
# shows the material: it shows in how bodies bounce, and audio reveals it plainly. Arms differ in their audio alone:
# they share videos, data order, noise and initialisation, seed by seed.
#
# | arm | audio |
# |---|---|
# | matched | of the clip |
# | shuffled | of another clip, redrawn in each epoch: equal tokens, compute and audio clips |
# | delayed | of the clip, 0.5 s late: its content is kept, its timing is not |
# | video | none |
# | matched_unaligned, shuffled_unaligned | as matched and shuffled, with alignment weight 0 |
#
# The numbers are read from CSV files of this repository; `experiments/sight_and_sound.py` gives the commands that
# trained and probed the runs. If the runs exist, the end of this notebook plots their losses.

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
# ## The primary outcome
#
# Fixed before any of these runs: balanced accuracy of a logistic probe of the material on mean video tokens, from video
# alone, at tau 0.1, on the split test, with the layer chosen on validation for each run; matched minus shuffled, paired
# by seed, over five seeds. In brackets: 95 % t intervals over seeds.

# %%
material = {"target": "material", "source": "video", "split": "test", "tau": 0.1, "probe": "logistic"}
matched_and_shuffled = [row for row in select_rows(rows, **material) if row.method in ("matched", "shuffled")]
primary = compare_methods(best(matched_and_shuffled), "shuffled")
for method in primary:
    print(method.summary())

# %%
comparison_figure({"material from video\nbalanced accuracy": primary})

# %% [markdown]
# At every layer, without selection. Bands are t intervals of each arm's mean: they contain the variance that seeds
# share, so that they are wider than the interval of the paired difference.

# %%
probe_curves(matched_and_shuffled, columns=1)

# %% [markdown]
# ## Secondary outcomes
#
# All arms compared with shuffled audio. Arms other than the first two have three seeds and are exploratory. *Contacts*
# is the number of contacts in the frames of a video token, by ridge regression; *shifted* clips hold more and larger
# bodies than the training clips.

# %%
contacts = {"target": "contact", "source": "video", "split": "test", "tau": 0.1}
questions = {
    "material from video\nbalanced accuracy": material,
    "material from video, shifted\nbalanced accuracy": material | {"split": "shifted"},
    "contacts from video\nR$^2$": contacts,
    "material from audio\nbalanced accuracy": material | {"source": "audio"},
}
answers = {}
for title, fields in questions.items():
    answers[title] = compare_methods(best(select_rows(rows, **fields)), "shuffled")
comparison_figure(answers)

# %%
for title, methods in answers.items():
    print(title.replace("\n", ", "))
    for method in methods:
        print("  " + method.summary())

# %% [markdown]
# **Does alignment add to it?** The gain from matched audio with the alignment loss, minus the gain without it, over the
# seeds of all four arms:

# %%
arms = ("matched", "shuffled"), ("matched_unaligned", "shuffled_unaligned")
print(interaction(compare_methods(best(select_rows(rows, **material))), *arms).summary())

# %% [markdown]
# **Does a video retrieve its audio?** Among 16 audio clips, half of them of its material, ranked by minus the flow loss
# of the audio given the clean video: the share of videos whose own audio ranks first (chance 1/16), and of those for
# which audio of their material does (chance 1/2). The score contains the likelihood of the audio alone, so that a
# network that ignores the video prefers the same few clips and may fall below chance: differences between arms are what
# counts.

# %%
for target in ("audio", "audio's material"):
    print(target)
    for method in compare_methods(select_rows(rows, target=target, split="test"), "shuffled"):
        print("  " + method.summary())

# %% [markdown]
# ## The runs
#
# Flow losses of the arms of one seed, step by step.

# %%
runs = {path.name: open_run(path) for path in sorted(Path(runs_path).glob(f"*_{seed}"))}
remedy = "train them with `selfflow sweep experiments/sight_and_sound.py --jobs 2`"
loss_curves(runs) if runs else print(f"{runs_path}: no runs; {remedy}")
