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
# # The method, on clips
#
# The parts of a training step on held-out clips of a run: the noise level of every token, what student and teacher see
# of one clip, and the loss of every token, with the run's own weights. Noise level 0 is data and 1 is noise. Source:
# Chefer, Esser et al., arXiv 2603.06507.

# %% tags=["parameters"]
run_path = "../runs/quickstart"
split = "test"
clips = [0, 1, 2, 3, 4, 5, 6, 7]
shown = [0, 1]
draws = 4096
context = False
seed = 0

# %%
# %matplotlib inline
from selfflow import open_run
from selfflow.representation.figures.method import corruption_figure, loss_figure, marginals_figure
from selfflow.representation.views import tau_marginals, views

run = open_run(run_path)
data = run.data(split)
run.experiment.schedule

# %% [markdown]
# ## Noise
#
# A token $x_0$ is mixed with noise $\epsilon \sim \mathcal{N}(0, I)$ of its shape,
#
# $$x_\tau = (1 - \tau)\, x_0 + \tau\, \epsilon ,$$
#
# and the velocity to predict is $v = \epsilon - x_0$. With dual timesteps two levels $t, s \sim p(\tau)$ are drawn for
# each sample, independently and unsorted, once for all modalities or for each (`draw` above). A random set $M$ of its
# tokens gets $s$, the others $t$. Every token keeps $p(\tau)$ as its marginal, masked or not, as the histograms show.
# The teacher sees all tokens at $\min(t, s)$ (dashed).

# %%
layout = {m: stream.tokens for m, stream in data.modalities.items()}
marginals_figure({m: tau_marginals(run.experiment.schedule, m, n, draws) for m, n in layout.items()})

# %% [markdown]
# ## Two views
#
# The same clip, noise and positions twice: the student's tokens at their own levels, the teacher's all at the lower
# one. The panels show the noisy latents, decoded by the run's autoencoders. A run may be trained with context tokens,
# which stay at $\tau = 0$ in both views and are excluded from the loss: the parameter `context` draws them.

# %%
clip_views = views(run, data, clips, seed, context)
corruption_figure(clip_views, shown[0])

# %%
corruption_figure(clip_views, shown[1])

# %% [markdown]
# ## The loss
#
# The flow error of a token is $\lVert v_\theta(x_\tau, \tau) - (\epsilon - x_0) \rVert^2$ per element, and the
# alignment error $1 - \cos(h(f_l), \bar f_k)$: the student's features after block $l$, through the projector $h$,
# against those of its EMA copy after block $k$. Both are means over the tokens in the loss, and
#
# $$L = \sum_m w_m \,(L_{\mathrm{flow}, m} + \gamma\, L_{\mathrm{rep}, m}) .$$
#
# Compare the maps with $\tau$ and with the events of the clip.

# %%
run.experiment.alignment

# %%
loss_figure(clip_views, shown[0])

# %%
loss_figure(clip_views, shown[1])
