# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] tags=["en"]
# # Noise, scores and the perfect denoiser

# %% [markdown] tags=["pt"]
# # Ruído, escores e o denoiser perfeito

# %%
import os

import matplotlib.pyplot as plt
import torch

from cosmos_ref.exercises import check

SIZE = os.environ.get("COSMOS_REF_SIZE", "cpu")
plt.style.use("cosmos_ref.exercises.tutorial")
torch.set_num_threads(1)

# %% [markdown] tags=["en"]
# ## Exercise

# %% [markdown] tags=["pt"]
# ## Exercício


# %%
def score_from_denoiser(x, D, sigma):
    raise NotImplementedError


check("01.score_from_denoiser", score_from_denoiser)

# %%
plt.plot([0, 1], [0, 1])
plt.xlabel(r"$\sigma$")
plt.show()
