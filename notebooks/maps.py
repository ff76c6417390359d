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
# # What tokens know, and where sounds look
#
# Principal components of the tokens of a clip, drawn over its frames and under its sound; and attention from the sound
# of a contact to the film, held against where the bodies truly are. This needs Collisions, whose records tell it.

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
from selfflow.representation.features.extract import features
from selfflow.representation.figures.maps import attention_figure, principal_figure, shares_figure, shares_table
from selfflow.representation.maps import attention_on_bodies

run = open_run(run_path)
data = run.data(split)
{m: stream.grid for m, stream in data.modalities.items()}

# %% [markdown]
# ## Components
#
# The first three principal components of a block's tokens as red, green and blue. They are those of all tokens of
# many clips, after the mean of each position over clips is taken out: else they tell where a token stands. Beside each
# block stands the share of the variance that the three have.

# %%
found = features(run, data, layers, tau, pool="tokens", limit=component_clips)
principal_figure(data, found, shown)

# %% [markdown]
# ## One contact
#
# The audio token in whose time the contact falls asks; the colours over the frames are its attention to the video
# tokens, a mean over heads, as a multiple of an even share. Circles are the true places of the bodies, red those that
# touch.

# %%
attention_figure(run, data, shown, contact, tuple(layers), tau=tau)

# %% [markdown]
# ## Many contacts
#
# One clip proves nothing. Over all contacts of many clips: of the attention that goes to the video tokens just before
# and after the contact, how much falls on those that hold its bodies? Attention without preference gives their share of
# the tokens. Quiet moments of the same clip, asked about the same video tokens, tell whether a preference has to do
# with the contact: a body may draw attention whatever is heard. In the middle, the share of the attention to the film
# that falls on these frames. Intervals are over clips.

# %%
everywhere = range(1, run.experiment.model.depth + 1)
shares = attention_on_bodies(run, data, range(min(contact_clips, len(data))), everywhere, tau)
print(shares_table(shares))

# %% [markdown]
# The same of the network before training, with the gates of its blocks open:

# %%
untrained = attention_on_bodies(run, data, range(min(contact_clips, len(data))), everywhere, tau, weights="untrained")
print(shares_table(untrained))

# %%
shares_figure(shares, untrained)
