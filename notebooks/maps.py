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
# # What tokens encode, and where audio attends
#
# Principal components of the tokens of a clip, drawn over its frames and under its audio; and attention from the audio
# of a contact to the video, compared with the true positions of the bodies. This needs Collisions, whose records hold
# them.

# %% tags=["parameters"]
run_path = "../runs/quickstart"
split = "test"
layers = [2, 4, 6]
tau = 0.1
shown = 1
contact = 0
component_clips = 128
contact_clips = 256

# %%
# %matplotlib inline
from selfflow import open_run
from selfflow.representation.features import features
from selfflow.representation.figures.maps import attention_figure, principal_figure, shares_figure, shares_table
from selfflow.representation.maps import attention_on_bodies

run = open_run(run_path)
data = run.data(split)
{m: stream.grid for m, stream in data.modalities.items()}

# %% [markdown]
# ## Components
#
# The first three principal components of a block's tokens as red, green and blue. They are computed over all tokens of
# many clips, after the mean of each position over clips is subtracted: otherwise they encode position. The number
# beside each block is the share of variance that the three explain.

# %%
components = features(run, data, layers, tau, pool="tokens", limit=component_clips)
principal_figure(data, components, shown)

# %% [markdown]
# ## One contact
#
# The query is the audio token at the time of the contact; colours over the frames show its attention to the video
# tokens, averaged over heads, as a multiple of a uniform share. Circles are the true positions of the bodies; those in
# contact are red.

# %%
attention_figure(run, data, shown, contact, tuple(layers), tau=tau)

# %% [markdown]
# ## Many contacts
#
# Over all contacts of many clips: of the attention to the video tokens just before and after the contact, how much
# falls on the tokens that contain its bodies? Uniform attention gives their share of the tokens. As a control, quiet
# times of the same clip are queried about the same video tokens: a body may attract attention for any audio.
# The middle panel shows the share of the attention to the video that falls on these frames. Intervals are over clips.

# %%
everywhere = range(1, run.experiment.model.depth + 1)
shares = attention_on_bodies(run, data, range(min(contact_clips, len(data))), everywhere, tau)
print(shares_table(shares))

# %% [markdown]
# The same for the network before training, with the gates of its blocks open:

# %%
untrained = attention_on_bodies(run, data, range(min(contact_clips, len(data))), everywhere, tau, weights="untrained")
print(shares_table(untrained))

# %%
shares_figure(shares, untrained)
