# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] tags=["en"]
# # 01 · Noise, scores and the perfect denoiser
#
# A diffusion model makes a video by answering one question over and over: *here is something noisy; what was it before the
# noise?* The function that answers is called a **denoiser**. Everything else, the network, the loss, the sampler, is there
# to get a good one and to use it well.
#
# In this notebook the "videos" are points in the plane. That sounds like cheating, and it is a wonderful way to cheat:
# with points everything can be drawn, and the perfect denoiser can be **written down**, so that we know the right answer
# before we train anything. Every formula here is the one that the big model uses, called from the same library.
#
# How to read: each step first **states a number**, then a cell computes it. Cover the output, make up your mind, run the
# cell. You need Python, vectors and the bell curve; about a minute of computing on two CPU cores.

# %% [markdown] tags=["pt"]
# # 01 · Ruído, escores e o denoiser perfeito
#
# Um modelo de difusão faz um vídeo respondendo muitas vezes a uma só pergunta: *aqui está algo com ruído; o que era antes
# do ruído?* A função que responde chama-se **denoiser** (quem retira o ruído). Todo o resto, a rede, a função de perda, o
# amostrador, existe para obter um bom denoiser e usá-lo bem.
#
# Neste caderno os "vídeos" são pontos no plano. Parece trapaça, e é uma trapaça maravilhosa: com pontos tudo se pode
# desenhar, e o denoiser perfeito pode ser **escrito**, de modo que conhecemos a resposta certa antes de treinar qualquer
# coisa. Cada fórmula daqui é a que o modelo grande usa, chamada da mesma biblioteca.
#
# Como ler: cada passo primeiro **diz um número**, depois uma célula o calcula. Cubra o resultado, decida o que espera,
# rode a célula. Bastam Python, vetores e a curva em sino; cerca de um minuto de cálculo em dois núcleos de CPU.

# %%
import itertools
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

from cosmos_ref.equations import edm, exact, forms, noise, solvers
from cosmos_ref.exercises import check

SIZE = os.environ.get("COSMOS_REF_SIZE", "cpu")
SIZES = {"smoke": (1000, 200, 20), "cpu": (100_000, 4000, 2000)}
POINTS, WALKERS, TRAINING_STEPS = SIZES[SIZE]

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
plt.style.use("cosmos_ref.exercises.tutorial")
plt.rcParams["figure.dpi"] = 90

# %% [markdown] tags=["en"]
# ## 1. A world of three blobs
#
# Our data are points $x_0$ from three round blobs. Blob $m$ is chosen with probability $w_m$; its points scatter around a
# centre $\mu_m$ with the same standard deviation $s = 0.25$ in every direction:
#
# $$w = \left(\tfrac12, \tfrac14, \tfrac14\right), \qquad
#   \mu_1 = (-1.5,\ 0), \quad \mu_2 = (1.5,\ 2), \quad \mu_3 = (1.5,\ -2).$$
#
# **The number first.** The mean is $(0, 0)$: check it with the weights. The mean square of the first coordinate is
# $1.5^2 + s^2 = 2.3125$, of the second $\tfrac12 \cdot 2^2 + s^2 = 2.0625$. Their average, 2.1875, is the variance of the
# data, and its root the number that the whole theory calls $\sigma_\text{data}$: **1.479**.

# %% [markdown] tags=["pt"]
# ## 1. Um mundo de três manchas
#
# Os nossos dados são pontos $x_0$ de três manchas redondas. A mancha $m$ é escolhida com probabilidade $w_m$; os seus
# pontos espalham-se em torno de um centro $\mu_m$ com o mesmo desvio padrão $s = 0{,}25$ em todas as direções:
#
# $$w = \left(\tfrac12, \tfrac14, \tfrac14\right), \qquad
#   \mu_1 = (-1{,}5;\ 0), \quad \mu_2 = (1{,}5;\ 2), \quad \mu_3 = (1{,}5;\ -2).$$
#
# **Primeiro o número.** A média é $(0, 0)$: confira com os pesos. A média do quadrado da primeira coordenada é
# $1{,}5^2 + s^2 = 2{,}3125$, a da segunda $\tfrac12 \cdot 2^2 + s^2 = 2{,}0625$. A média das duas, 2,1875, é a variância
# dos dados, e a sua raiz o número que toda a teoria chama $\sigma_\text{data}$: **1,479**.

# %%
weights = torch.tensor([0.5, 0.25, 0.25])
means = torch.tensor([[-1.5, 0.0], [1.5, 2.0], [1.5, -2.0]])
s = 0.25


def draw_data(count):
    blob = torch.multinomial(weights, count, True, generator=generator)
    around = s * torch.randn(count, 2, generator=generator)
    return means[blob] + around, blob


x0, blob = draw_data(POINTS)
sigma_data = (x0**2).mean().sqrt().item()
print(f"sigma_data = {sigma_data:.3f}")

# %% [markdown] tags=["en"]
# ## 2. Adding noise
#
# Noise is a draw $n$ from the standard bell curve, independently for each coordinate, times a **noise level** $\sigma$:
#
# $$x = x_0 + \sigma\, n, \qquad n \sim \mathcal N(0, I).$$
#
# **The number first.** Independent variances add: the noisy points have variance $\sigma_\text{data}^2 + \sigma^2$. For
# $\sigma = \tfrac12, 1, 2, 5$ that is **2.44, 3.19, 6.19, 27.19** (we only have a sample, which may miss them by a few parts
# in a thousand). At $\sigma = 5$ nearly everything is noise.

# %% [markdown] tags=["pt"]
# ## 2. Acrescentar ruído
#
# Ruído é um sorteio $n$ da curva em sino padrão, independente em cada coordenada, vezes um **nível de ruído** $\sigma$:
#
# $$x = x_0 + \sigma\, n, \qquad n \sim \mathcal N(0, I).$$
#
# **Primeiro o número.** Variâncias independentes somam-se: os pontos com ruído têm variância
# $\sigma_\text{data}^2 + \sigma^2$. Para $\sigma = \tfrac12, 1, 2, 5$ isso dá **2,44; 3,19; 6,19; 27,19** (só temos uma
# amostra, que pode errar por alguns milésimos do valor). Em $\sigma = 5$ quase tudo é ruído.


# %%
def at(sigma, x):
    return torch.full((len(x),), float(sigma))


def draw_noisy(x0, sigma):
    n = torch.randn(x0.shape, generator=generator)
    return noise.add_noise(x0, n, at(sigma, x0))


for sigma in (0.5, 1, 2, 5):
    variance = (draw_noisy(x0, sigma) ** 2).mean()
    print(f"sigma = {sigma:<4} variance = {variance:.2f}")

# %% tags=["figure"]
COLOURS = ["#3461e4", "#e2711d", "#1b998b"]
figure, panels = plt.subplots(1, 5, figsize=(10, 2.4), sharex=True, sharey=True)
for panel, sigma in zip(panels, (0, 0.25, 0.5, 1, 2), strict=True):
    x = draw_noisy(x0[:800], sigma)
    panel.scatter(*x.T, s=4, c=[COLOURS[m] for m in blob[:800]])
    panel.set(title=rf"$\sigma = {sigma}$", xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
plt.show()

# %% [markdown] tags=["en"]
# The colour remembers which blob a point came from. To the right you could no longer tell: that is what the denoiser is up
# against.
#
# *Held by* `tests/equations/test_noise.py::test_noise_added_twice_is_noise_added_once_at_the_root_of_the_squares` ·
# the equation: [noise.add_noise](../docs/en/equations/noise.md#eq-noise.add_noise)
#
# ## 3. The same in densities
#
# Adding noise to *points* smears their *density*, like ink on wet paper. A blob that had variance $s^2$ gets variance
# $s^2 + \sigma^2$; its centre and its weight stay. So the density of the noisy points is again three blobs, only wider:
#
# $$p(x; \sigma) = \sum_m w_m\ \mathcal N\!\left(x;\ \mu_m,\ (s^2 + \sigma^2)\, I\right).$$
#
# **The number first.** Ink may spread, but none is lost: summed over the plane, $p$ is **1.000** at every level.

# %% [markdown] tags=["pt"]
# A cor lembra de que mancha veio cada ponto. À direita já não daria para dizer: é isso que o denoiser tem de enfrentar.
#
# *Garantido por* `tests/equations/test_noise.py::test_noise_added_twice_is_noise_added_once_at_the_root_of_the_squares` ·
# a equação: [noise.add_noise](../../docs/pt/equations/noise.md#eq-noise.add_noise)
#
# ## 3. O mesmo em densidades
#
# Acrescentar ruído a *pontos* borra a sua *densidade*, como tinta em papel molhado. Uma mancha que tinha variância $s^2$
# passa a ter $s^2 + \sigma^2$; o centro e o peso ficam. Logo a densidade dos pontos com ruído é feita outra vez de três
# manchas, só que mais largas:
#
# $$p(x; \sigma) = \sum_m w_m\ \mathcal N\!\left(x;\ \mu_m,\ (s^2 + \sigma^2)\, I\right).$$
#
# **Primeiro o número.** A tinta espalha-se, mas não se perde: somada sobre o plano, $p$ dá **1,000** em qualquer nível.


# %%
def grid(half_width, count):
    line = torch.linspace(-half_width, half_width, count)
    return line, torch.cartesian_prod(line, line)


def log_density(x, sigma):
    return exact.mixture_log_density(x, at(sigma, x), weights, means, s)


line, plane = grid(16, 321)
cell = (line[1] - line[0]) ** 2
for sigma in (0.1, 0.5, 1, 2, 3):
    total = log_density(plane, sigma).exp().sum() * cell
    print(f"sigma = {sigma:<4} sum = {total:.3f}")

# %% tags=["figure"]
line, plane = grid(4, 161)
figure, panels = plt.subplots(1, 5, figsize=(10, 2.4), sharex=True, sharey=True)
for panel, sigma in zip(panels, (0.1, 0.5, 1, 1.5, 2.5), strict=True):
    p = log_density(plane, sigma).exp().reshape(161, 161).T
    panel.imshow(p, origin="lower", extent=(-4, 4, -4, 4), interpolation="bilinear")
    panel.set_title(rf"$p(x;\ \sigma = {sigma})$")
plt.show()

# %% [markdown] tags=["en"]
# Three hills flow into one: as $\sigma$ grows, the world forgets its details, and at last even how many blobs there were.
# Generating means going through this row from right to left.
#
# *Held by* `tests/equations/test_exact.py::test_the_density_adds_up_to_one` and
# `tests/equations/test_exact.py::test_noise_smears_the_clean_density`
#
# ## 4. The perfect denoiser of one blob
#
# Which answer $D(x; \sigma)$ is best? If mistakes are counted by their squared length, the best answer is the **average of
# all clean points that could have become $x$**, each counted by how plausible it is:
#
# $$D^*(x; \sigma) = \mathbb E[x_0 \mid x].$$
#
# For a single blob this is a tug of war. The observation $x$ says "I was here", with uncertainty $\sigma^2$; the blob says
# "points live around $\mu$", with uncertainty $s^2$. The compromise is
#
# $$D^*(x; \sigma) = \mu + \frac{s^2}{s^2 + \sigma^2}\, (x - \mu).$$
#
# **The number first.** If both are equally uncertain, $\sigma = s$, we stop **half-way**. For $\mu = (-1.5, 0)$ and
# $x = (-0.5, 0)$ the answer is $(-1, 0)$. For $\sigma = 3 s$ we go a tenth of the way: $(-1.4, 0)$.

# %% [markdown] tags=["pt"]
# Três colinas fundem-se numa só: à medida que $\sigma$ cresce, o mundo esquece os detalhes e, por fim, até quantas manchas
# havia. Gerar é percorrer esta fila da direita para a esquerda.
#
# *Garantido por* `tests/equations/test_exact.py::test_the_density_adds_up_to_one` e
# `tests/equations/test_exact.py::test_noise_smears_the_clean_density`
#
# ## 4. O denoiser perfeito de uma mancha
#
# Que resposta $D(x; \sigma)$ é a melhor? Se os erros contam pelo quadrado do comprimento, a melhor resposta é a **média de
# todos os pontos limpos que poderiam ter-se tornado $x$**, cada um contado pela sua plausibilidade:
#
# $$D^*(x; \sigma) = \mathbb E[x_0 \mid x].$$
#
# Para uma só mancha, é um cabo de guerra. A observação $x$ diz "eu estava aqui", com incerteza $\sigma^2$; a mancha diz
# "os pontos vivem em torno de $\mu$", com incerteza $s^2$. O compromisso é
#
# $$D^*(x; \sigma) = \mu + \frac{s^2}{s^2 + \sigma^2}\, (x - \mu).$$
#
# **Primeiro o número.** Se as duas incertezas são iguais, $\sigma = s$, paramos **a meio caminho**. Para
# $\mu = (-1{,}5;\ 0)$ e $x = (-0{,}5;\ 0)$ a resposta é $(-1;\ 0)$. Para $\sigma = 3 s$ andamos um décimo do caminho:
# $(-1{,}4;\ 0)$.

# %%
x = torch.tensor([[-0.5, 0.0]])
for sigma in (s, 3 * s):
    D = exact.gaussian_denoiser(x, at(sigma, x), means[:1], s)
    print(f"sigma = {sigma:<5} D = ({D[0, 0]:.4f}, {D[0, 1]:.4f})")

# %% tags=["figure"]
x = torch.linspace(-3, 0, 50)[:, None]
figure, panel = plt.subplots(figsize=(5.4, 3.2))
for sigma in (0.05, 0.25, 0.75, 5):
    D = exact.gaussian_denoiser(x, at(sigma, x), means[:1, :1], s)
    panel.plot(x, D, label=rf"$\sigma = {sigma}$")
panel.axhline(-1.5, color="#5c6472", linewidth=0.8, linestyle=":")
panel.set(xlabel="$x$", ylabel=r"$D^*(x;\ \sigma)$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# Little noise: believe the observation (slope 1). Much noise: believe the blob (slope 0). The slope
# $s^2 / (s^2 + \sigma^2)$ will come back in the next notebook under the name $c_\text{skip}$.
#
# *Held by* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_that_could_have_become_x` ·
# the equation: [exact.gaussian_denoiser](../docs/en/equations/exact.md#eq-exact.gaussian_denoiser)
#
# ## 5. The perfect denoiser of three blobs
#
# Now $x$ may come from any blob. The probability that it came from blob $m$ is called the blob's **responsibility** $r_m$:
# its weight times how well it explains $x$, divided by the sum over all blobs. That is a softmax:
#
# $$r = \operatorname{softmax}_m\!\left(\ln w_m - \frac{\lVert x - \mu_m \rVert^2}{2\,(s^2 + \sigma^2)}\right),$$
#
# $$D^*(x; \sigma) = \sum_m r_m \left(\mu_m + \frac{s^2}{s^2 + \sigma^2}\, (x - \mu_m)\right).$$
#
# **The number first.** Take $x = (1.5, 0)$, exactly between the two blobs on the right. At $\sigma = 0.25$ each of them
# gets $r = \tfrac12$, so the best answer is their middle: $D^* = (1.5, 0)$, **a place where there are no data at all**.
# Remember this: a perfect denoiser does not give you a likely point, it gives you an *average*. At $\sigma = 100$ it
# knows nothing, and answers with the mean of everything: $(0, 0)$.

# %% [markdown] tags=["pt"]
# Pouco ruído: acredite na observação (inclinação 1). Muito ruído: acredite na mancha (inclinação 0). A inclinação
# $s^2 / (s^2 + \sigma^2)$ voltará no próximo caderno com o nome $c_\text{skip}$.
#
# *Garantido por* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_that_could_have_become_x` ·
# a equação: [exact.gaussian_denoiser](../../docs/pt/equations/exact.md#eq-exact.gaussian_denoiser)
#
# ## 5. O denoiser perfeito de três manchas
#
# Agora $x$ pode vir de qualquer mancha. A probabilidade de ter vindo da mancha $m$ chama-se a **responsabilidade** $r_m$
# dessa mancha: o seu peso vezes o quanto ela explica $x$, dividido pela soma sobre todas. Isso é uma softmax:
#
# $$r = \operatorname{softmax}_m\!\left(\ln w_m - \frac{\lVert x - \mu_m \rVert^2}{2\,(s^2 + \sigma^2)}\right),$$
#
# $$D^*(x; \sigma) = \sum_m r_m \left(\mu_m + \frac{s^2}{s^2 + \sigma^2}\, (x - \mu_m)\right).$$
#
# **Primeiro o número.** Tome $x = (1{,}5;\ 0)$, exatamente entre as duas manchas da direita. Em $\sigma = 0{,}25$ cada uma
# fica com $r = \tfrac12$, logo a melhor resposta é o meio: $D^* = (1{,}5;\ 0)$, **um lugar onde não há dado algum**.
# Guarde isto: um denoiser perfeito não dá um ponto provável, dá uma *média*. Em $\sigma = 100$ não sabe nada, e responde
# com a média de tudo: $(0;\ 0)$.


# %%
def perfect(x, sigma):
    return exact.mixture_denoiser(x, at(sigma, x), weights, means, s)


x = torch.tensor([[1.5, 0.0]])
for sigma in (0.25, 100):
    D = perfect(x, sigma)
    print(f"sigma = {sigma:<5} D = ({D[0, 0]:.4f}, {D[0, 1]:.4f})")

# %% tags=["figure"]
line, plane = grid(3.5, 13)
figure, panels = plt.subplots(1, 3, figsize=(10, 3.5), sharex=True, sharey=True)
for panel, sigma in zip(panels, (0.25, 1, 4), strict=True):
    way = perfect(plane, sigma) - plane
    nearest = torch.cdist(perfect(plane, sigma), means).argmin(dim=1)
    colours = [COLOURS[m] for m in nearest]
    panel.quiver(*plane.T, *way.T, angles="xy", scale_units="xy", scale=1, color=colours, width=0.005)
    panel.scatter(*means.T, s=60, color="black", zorder=3)
    panel.set(title=rf"$x \to D^*(x;\ \sigma = {sigma})$", aspect="equal")
plt.show()

# %% [markdown] tags=["en"]
# Every arrow starts at a noisy point $x$ and ends at the perfect answer; its colour is the blob nearest to that answer. On
# the left all arrows run into their own blob, with sharp borders. On the right they all run to the middle of everything.
#
# *Held by* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_also_for_a_mixture` ·
# the equation: [exact.mixture_denoiser](../docs/en/equations/exact.md#eq-exact.mixture_denoiser)
#
# ### Exercise 1: write it
#
# `x` has shape `B K` (B points of K coordinates), `sigma` is one number for all of them, `weights` has shape `M`, `means`
# shape `M K`, and `std` is the number $s$. Return the perfect answers, shape `B K`. The check tries many mixtures; if you
# are wrong, it shows the simplest case on which you are, and a hint. Do not forget points that are far from every blob.

# %% [markdown] tags=["pt"]
# Cada seta parte de um ponto com ruído $x$ e acaba na resposta perfeita; a cor é a da mancha mais próxima dessa resposta.
# À esquerda todas correm para a sua mancha, com fronteiras nítidas. À direita correm todas para o meio de tudo.
#
# *Garantido por* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_also_for_a_mixture` ·
# a equação: [exact.mixture_denoiser](../../docs/pt/equations/exact.md#eq-exact.mixture_denoiser)
#
# ### Exercício 1: escreva-o
#
# `x` tem forma `B K` (B pontos de K coordenadas), `sigma` é um número só para todos, `weights` tem forma `M`, `means` tem
# forma `M K`, e `std` é o número $s$. Devolva as respostas perfeitas, forma `B K`. A verificação experimenta muitas
# misturas; se algo estiver errado, mostra o caso mais simples em que está, e uma dica. Não se esqueça dos pontos que estão
# longe de todas as manchas.


# %%
def my_mixture_denoiser(x, sigma, weights, means, std):
    raise NotImplementedError


check("01.mixture_denoiser", my_mixture_denoiser)

# %% [markdown] tags=["en"]
# ## 6. Nobody does better
#
# Let us make it compete, at $\sigma = 1$, with three denoisers that are easy to think of. Errors are mean squares per
# coordinate.
#
# **The numbers first.**
#
# | denoiser | error | at $\sigma = 1$ |
# |---|---|---|
# | $D = x$: do nothing | the noise itself, $\sigma^2$ | **1.00** |
# | $D = 0$: always say the mean | $\sigma_\text{data}^2$ | **2.19** |
# | $D = c\,x$ with the best factor $c = \sigma_\text{data}^2 / (\sigma_\text{data}^2 + \sigma^2)$ | $\sigma^2 \sigma_\text{data}^2 / (\sigma_\text{data}^2 + \sigma^2)$ | **0.69** |
# | the perfect one | must be below all of them | ? |

# %% [markdown] tags=["pt"]
# ## 6. Ninguém faz melhor
#
# Vamos fazê-lo competir, em $\sigma = 1$, com três denoisers que vêm logo à cabeça. Os erros são médias de quadrados por
# coordenada.
#
# **Primeiro os números.**
#
# | denoiser | erro | em $\sigma = 1$ |
# |---|---|---|
# | $D = x$: não fazer nada | o próprio ruído, $\sigma^2$ | **1,00** |
# | $D = 0$: dizer sempre a média | $\sigma_\text{data}^2$ | **2,19** |
# | $D = c\,x$ com o melhor fator $c = \sigma_\text{data}^2 / (\sigma_\text{data}^2 + \sigma^2)$ | $\sigma^2 \sigma_\text{data}^2 / (\sigma_\text{data}^2 + \sigma^2)$ | **0,69** |
# | o perfeito | tem de ficar abaixo de todos | ? |


# %%
def nothing(x, sigma):
    return x


def always_the_mean(x, sigma):
    return torch.zeros_like(x)


def best_factor(x, sigma):
    return edm.c_skip(at(sigma, x), sigma_data)[:, None] * x


rivals = {
    "D = x": nothing,
    "D = 0": always_the_mean,
    "D = c x": best_factor,
    "D = D*": perfect,
}


def error(denoiser, sigma):
    return ((denoiser(draw_noisy(x0, sigma), sigma) - x0) ** 2).mean().item()


for name, denoiser in rivals.items():
    print(f"{name:<10}{error(denoiser, 1.0):.2f}")

# %% tags=["figure"]
levels = torch.logspace(-1.3, 1.3, 27).tolist()
figure, panel = plt.subplots(figsize=(6.2, 3.8))
for name, denoiser in rivals.items():
    panel.loglog(levels, [error(denoiser, sigma) for sigma in levels], label=f"${name}$".replace("*", "^*"))
panel.set(xlabel=r"$\sigma$", ylabel=r"$E\,(D - x_0)^2$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# The best factor follows the better of the two simple answers. The perfect denoiser is below it by a factor of four around
# $\sigma = 0.5$: there, knowing *that there are three blobs* pays most. At both ends there is nothing to know. A network
# earns its keep in the gap between these two curves, and this is where training will spend its time (notebook 02).
#
# *Held by* `tests/equations/test_exact.py::test_its_error_tells_nothing_about_the_noisy_sample`
#
# ## 7. The score
#
# The **score** is the direction in which the noisy density rises fastest, $\nabla_x \ln p(x; \sigma)$. It looks like
# something hard: who knows the density of all videos? But whoever can denoise already has it (Tweedie's formula):
#
# $$\nabla_x \ln p(x; \sigma) = \frac{D^*(x; \sigma) - x}{\sigma^2}.$$
#
# In words: *uphill is where the clean points are*. We let PyTorch differentiate the formula of the density, and compare it
# with the denoiser, which has never seen a derivative.
#
# **The number first.** They agree to the last digits of float64: the largest relative difference is **below $10^{-12}$**.

# %% [markdown] tags=["pt"]
# O melhor fator acompanha a melhor das duas respostas simples. O denoiser perfeito fica quatro vezes abaixo dele perto de
# $\sigma = 0{,}5$: é aí que mais vale saber *que há três manchas*. Nas duas pontas não há o que saber. Uma rede ganha o seu
# sustento no espaço entre essas duas curvas, e é aí que o treino passará o seu tempo (caderno 02).
#
# *Garantido por* `tests/equations/test_exact.py::test_its_error_tells_nothing_about_the_noisy_sample`
#
# ## 7. O escore
#
# O **escore** é a direção em que a densidade com ruído sobe mais depressa, $\nabla_x \ln p(x; \sigma)$. Parece difícil: quem
# conhece a densidade de todos os vídeos? Mas quem sabe retirar o ruído já o tem (fórmula de Tweedie):
#
# $$\nabla_x \ln p(x; \sigma) = \frac{D^*(x; \sigma) - x}{\sigma^2}.$$
#
# Em palavras: *para cima é onde estão os pontos limpos*. Deixamos o PyTorch derivar a fórmula da densidade e comparamos com
# o denoiser, que nunca viu uma derivada.
#
# **Primeiro o número.** Concordam até os últimos algarismos de float64: a maior diferença relativa fica **abaixo de
# $10^{-12}$**.

# %%
for sigma in (0.1, 1.0, 10.0):
    x = draw_noisy(x0[:1000], sigma).requires_grad_()
    (slope,) = torch.autograd.grad(log_density(x, sigma).sum(), x)
    tweedie = forms.score(perfect(x, sigma), x, at(sigma, x))
    difference = ((slope - tweedie).abs().max() / slope.abs().max()).item()
    print(f"sigma = {sigma:<5} {'<' if difference < 1e-12 else '>'} 1e-12")

# %% tags=["figure"]
line, fine = grid(3.5, 141)
_, coarse = grid(3.2, 12)
figure, panels = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True)
for panel, sigma in zip(panels, (0.3, 0.7, 1.2, 2.5), strict=True):
    p = log_density(fine, sigma).exp().reshape(141, 141).T
    arrows = forms.score(perfect(coarse, sigma), coarse, at(sigma, coarse))
    arrows = arrows / arrows.norm(dim=1, keepdim=True)
    panel.imshow(p, origin="lower", extent=(-3.5, 3.5, -3.5, 3.5), interpolation="bilinear")
    panel.quiver(*coarse.T, *arrows.T, color="white", width=0.006, scale=20, pivot="mid")
    panel.set_title(rf"$\nabla \ln p(x;\ \sigma = {sigma})$")
plt.show()

# %% [markdown] tags=["en"]
# The arrows of section 5 and of this figure are the same up to their length (here all are drawn equally long). With little
# noise they point to the nearest blob, with much noise to the middle.
#
# *Held by* `tests/equations/test_exact.py::test_the_denoiser_climbs_the_density` ·
# the equation: [forms.score](../docs/en/equations/forms.md#eq-forms.score)
#
# ### Exercise 2: the score from a denoiser
#
# Given `x`, the answer `D` of a denoiser, and `sigma`, return the score.

# %% [markdown] tags=["pt"]
# As setas da seção 5 e as desta figura são as mesmas, a menos do comprimento (aqui todas têm o mesmo). Com pouco ruído
# apontam para a mancha mais próxima; com muito, para o meio.
#
# *Garantido por* `tests/equations/test_exact.py::test_the_denoiser_climbs_the_density` ·
# a equação: [forms.score](../../docs/pt/equations/forms.md#eq-forms.score)
#
# ### Exercício 2: o escore a partir de um denoiser
#
# Dados `x`, a resposta `D` de um denoiser e `sigma`, devolva o escore.


# %%
def my_score(x, D, sigma):
    raise NotImplementedError


check("01.score_from_denoiser", my_score)

# %% [markdown] tags=["en"]
# ## 8. From noise to data
#
# How do we *generate*? Not by asking once: from pure noise the perfect answer is $(0, 0)$, an average. We ask, take a small
# step, ask again. If $\sigma$ falls a little, a noisy point should move a little, away from its noise. This is the
# **probability-flow equation**:
#
# $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D(x; \sigma)}{\sigma}.$$
#
# The right side is the denoiser's estimate of the unit noise $n$ in $x$. Start from pure noise at $\sigma = 20$, walk down to
# $\sigma = 0$ in 18 steps (what a good step is, is the subject of notebook 03), and the points have the density of the
# data.
#
# **The numbers first.** The walkers should end in the three blobs in proportions **0.50, 0.25, 0.25** (give or take 0.02
# with 4000 of them), at a mean distance from the nearest centre of $s \sqrt{\pi / 2} =$ **0.313** (give or take 0.01).

# %% [markdown] tags=["pt"]
# ## 8. Do ruído aos dados
#
# Como se *gera*? Não é perguntando uma vez: a partir de ruído puro a resposta perfeita é $(0, 0)$, uma média. Perguntamos,
# damos um passo pequeno, perguntamos de novo. Se $\sigma$ desce um pouco, um ponto com ruído deve mover-se um pouco,
# afastando-se do seu ruído. É a **equação do fluxo de probabilidade**:
#
# $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D(x; \sigma)}{\sigma}.$$
#
# O lado direito é a estimativa que o denoiser faz do ruído unitário $n$ em $x$. Parta de ruído puro em $\sigma = 20$, desça
# até $\sigma = 0$ em 18 passos (o que é um bom passo é o tema do caderno 03), e os pontos têm a densidade dos dados.
#
# **Primeiro os números.** Os caminhantes devem acabar nas três manchas em proporções **0,50; 0,25; 0,25** (com folga de 0,02
# para 4000 deles), a uma distância média do centro mais próximo de $s \sqrt{\pi / 2} =$ **0,313** (com folga
# de 0,01).

# %%
levels = noise.karras_sigmas(18, sigma_min=0.02, sigma_max=20.0, rho=7.0).tolist()


def generate(denoiser, count=WALKERS):
    path = [levels[0] * torch.randn(count, 2, generator=generator)]
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.heun_step(denoiser, path[-1], sigma, sigma_next)
        path.append(x)
    return torch.stack(path)


def describe(x):
    distance, nearest = torch.cdist(x, means).min(dim=1)
    shares = nearest.bincount(minlength=3) / len(x)
    shares = ", ".join(f"{share:.2f}" for share in shares)
    return f"{shares}   distance = {distance.mean():.3f}"


path = generate(perfect)
print(describe(path[-1]))

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
for step, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
    scale, scale_next = (edm.c_in(torch.tensor(level), sigma_data) for level in (sigma, sigma_next))
    a, b = path[step, :90] * scale, path[step + 1, :90] * scale_next
    colour = plt.cm.plasma(0.9 * step / (len(levels) - 2))
    left.plot([a[:, 0], b[:, 0]], [a[:, 1], b[:, 1]], color=colour, linewidth=1)
left.set(title=r"$x(\sigma)\,/\,\sqrt{\sigma^2 + \sigma_{data}^2}$", aspect="equal")
right.scatter(*path[-1, :1500].T, s=3, color="#3461e4")
right.scatter(*means.T, s=60, color="black")
right.set(title=r"$x(0)$", aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
plt.show()

# %% [markdown] tags=["en"]
# On the left 90 paths, shrunk to one size at every level, from noise (dark) to data (bright). At first they run straight:
# from far away, all data look like one blob. Then, within a few steps around $\sigma \approx 1$, each decides for a blob.
#
# *Held by* `tests/equations/test_solvers.py::test_heun_meets_the_gaussian_flow` and
# `tests/equations/test_solvers.py::test_the_slope_is_the_noise` · the equation:
# [solvers.ode_derivative](../docs/en/equations/solvers.md#eq-solvers.ode_derivative)
#
# ## 9. Learn it
#
# Nobody can write down the blobs of all videos. So we forget the formula, keep only samples, and train a small network
# $F_\theta$ to denoise them. It is wrapped as in the big model, $D_\theta = c_\text{skip}\, x + c_\text{out}\, F_\theta$,
# and every noise level gets its weight $\lambda(\sigma)$; the next notebook earns each of these terms. For now only two
# facts are needed:
#
# **The numbers first.** The last layer starts at zero, so $F_\theta = 0$ before training, and the weights are such that the loss
# is then **1.00**. And since the perfect denoiser errs too, no network, however large, will get below *its* loss. We compute
# this floor before we train; it is about **0.60**.

# %% [markdown] tags=["pt"]
# À esquerda 90 trajetórias, reduzidas ao mesmo tamanho em cada nível, do ruído (escuro) aos dados (claro). No início vão
# em linha reta: de longe, todos os dados parecem uma só mancha. Depois, em poucos passos perto de $\sigma \approx 1$, cada uma
# decide-se por uma mancha.
#
# *Garantido por* `tests/equations/test_solvers.py::test_heun_meets_the_gaussian_flow` e
# `tests/equations/test_solvers.py::test_the_slope_is_the_noise` · a equação:
# [solvers.ode_derivative](../../docs/pt/equations/solvers.md#eq-solvers.ode_derivative)
#
# ## 9. Aprender
#
# Ninguém pode escrever as manchas de todos os vídeos. Então esquecemos a fórmula, guardamos só amostras e treinamos uma rede
# pequena $F_\theta$ para lhes retirar o ruído. Vai embrulhada como no modelo grande,
# $D_\theta = c_\text{skip}\, x + c_\text{out}\, F_\theta$, e cada nível de ruído tem o seu peso $\lambda(\sigma)$; o próximo
# caderno justifica cada um destes termos. Por agora bastam dois fatos:
#
# **Primeiro os números.** A última camada começa em zero, logo $F_\theta = 0$ antes do treino, e os pesos são tais que a perda
# vale então **1,00**. E como o denoiser perfeito também erra, nenhuma rede, por maior que seja, ficará abaixo da perda *dele*.
# Calculamos esse piso antes de treinar; é cerca de **0,60**.


# %%
def training_batch(count):
    clean, _ = draw_data(count)
    z = torch.randn(count, generator=generator)
    sigma = noise.log_normal_sigma(z, p_mean=-0.4, p_std=1.2)
    n = torch.randn(clean.shape, generator=generator)
    return clean, sigma, noise.add_noise(clean, n, sigma)


def weighted_error(D, clean, sigma):
    error = ((D - clean) ** 2).mean(dim=1)
    return (edm.loss_weight(sigma, sigma_data) * error).mean()


def perfect_error(x, clean, sigma):
    D = exact.mixture_denoiser(x, sigma, weights, means, s)
    return weighted_error(D, clean, sigma).item()


torch.manual_seed(0)
F = nn.Sequential(
    *(nn.Linear(3, 64), nn.SiLU()),
    *(nn.Linear(64, 64), nn.SiLU()),
    *(nn.Linear(64, 64), nn.SiLU()),
    nn.Linear(64, 2),
)
nn.init.zeros_(F[-1].weight)
nn.init.zeros_(F[-1].bias)


def D_theta(x, sigma):
    scaled = edm.c_in(sigma, sigma_data)[:, None] * x
    output = F(torch.cat([scaled, edm.c_noise(sigma)[:, None]], dim=1))
    return edm.denoise(output, x, sigma, sigma_data)


clean, sigma, x = training_batch(POINTS)
before = weighted_error(D_theta(x, sigma), clean, sigma).item()
print(f"D_theta = {before:.2f}   D* = {perfect_error(x, clean, sigma):.2f}")

# %%
optimizer = torch.optim.Adam(F.parameters(), lr=3e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
for _ in range(TRAINING_STEPS):
    clean, sigma, x = training_batch(512)
    loss = weighted_error(D_theta(x, sigma), clean, sigma)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()


@torch.no_grad()
def learned(x, sigma):
    return D_theta(x, at(sigma, x))


clean, sigma, x = training_batch(POINTS)
with torch.no_grad():
    after = weighted_error(D_theta(x, sigma), clean, sigma).item()
print(f"D_theta = {after:.3f}   D* = {perfect_error(x, clean, sigma):.3f}")

# %%
print("D*      ", describe(path[-1]))
print("D_theta ", describe(generate(learned)[-1]))

# %% tags=["figure"]
line, plane = grid(3.5, 121)
figure, panels = plt.subplots(2, 3, figsize=(8, 5.4), sharex=True, sharey=True)
for column, sigma in enumerate((0.3, 1, 2.5)):
    for row, (name, denoiser) in enumerate((("D^*", perfect), (r"D_\theta", learned))):
        answer = denoiser(plane, sigma)[:, 1].reshape(121, 121).T
        panel = panels[row, column]
        panel.imshow(
            answer,
            origin="lower",
            extent=(-3.5, 3.5, -3.5, 3.5),
            vmin=-2.3,
            vmax=2.3,
            cmap="RdBu",
            interpolation="bilinear",
        )
        panel.scatter(*means.T, s=25, color="black")
        panel.set_title(rf"${name}(x;\ \sigma = {sigma})_2$")
plt.show()

# %% [markdown] tags=["en"]
# Above the formula, below a network that has never seen it: the colour is the second coordinate of the answer (blue up, red
# down). They differ where there are hardly any noisy points to learn from, in the corners at small $\sigma$, and nearly
# nowhere else. The two lines printed above say the same about the samples.
#
# *Held by* `tests/equations/test_edm.py::test_every_noise_level_counts_the_same_at_initialisation` (the 1.00) and
# `tests/equations/test_edm.py::test_the_weighted_error_is_the_error_of_the_network`
#
# ## 10. Break it
#
# The text from which this project was grown has, in a table, the sentence that $D_\theta$ "estimates the noise". Its own
# equations say otherwise: $D_\theta$ estimates the *clean sample*, and it is $(x - D)/\sigma$ that estimates the noise. One
# word in a table; what does it cost? Let us build the denoiser that the table describes, a perfect one, and put it where the
# sampler expects $D$:
#
# **The number first.** Were this harmless, the distance would stay at 0.313. It becomes **about 1.9**: six times as far, and
# the proportions are gone.

# %% [markdown] tags=["pt"]
# Em cima a fórmula, embaixo uma rede que nunca a viu: a cor é a segunda coordenada da resposta (azul para cima, vermelho para
# baixo). Diferem onde quase não há pontos com ruído de que aprender, nos cantos com $\sigma$ pequeno, e quase em mais lugar
# nenhum. As duas linhas impressas acima dizem o mesmo das amostras.
#
# *Garantido por* `tests/equations/test_edm.py::test_every_noise_level_counts_the_same_at_initialisation` (o 1,00) e
# `tests/equations/test_edm.py::test_the_weighted_error_is_the_error_of_the_network`
#
# ## 10. Quebre-o
#
# O texto de que este projeto cresceu traz, numa tabela, a frase de que $D_\theta$ "estima o ruído". As suas próprias equações
# dizem outra coisa: $D_\theta$ estima a *amostra limpa*, e é $(x - D)/\sigma$ que estima o ruído. Uma palavra numa tabela;
# quanto custa? Vamos construir o denoiser que a tabela descreve, e um perfeito, e pô-lo onde o amostrador espera $D$:
#
# **Primeiro o número.** Se fosse inofensivo, a distância ficaria em 0,313. Passa a **cerca de 1,9**: seis vezes mais longe, e
# as proporções perdem-se.


# %%
def noise_estimator(x, sigma):
    return forms.noise_estimate(perfect(x, sigma), x, at(sigma, x))


broken = generate(noise_estimator)
print("D*      ", describe(path[-1]))
print("broken  ", describe(broken[-1]))

# %% tags=["figure"]
figure, panels = plt.subplots(1, 2, figsize=(8, 3.9), sharex=True, sharey=True)
for panel, name, walk in zip(panels, (r"$D = D^*$", r"$D = \hat n$"), (path, broken), strict=True):
    panel.scatter(*walk[-1, :1500].T, s=3, color="#3461e4")
    panel.scatter(*means.T, s=60, color="black")
    panel.set(title=name, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
plt.show()

# %% [markdown] tags=["en"]
# No crash, no warning, tensors of the right shape, and everything lands where there are no data. A test of shapes would have
# passed; the law did not.
#
# *Held by* `tests/equations/test_solvers.py::test_the_slope_is_the_noise` and
# `tests/equations/test_solvers.py::test_an_euler_step_to_zero_is_the_estimate`
#
# ### Exercise 3: mend it
#
# A network that estimates the noise is not useless: many models are trained that way. Given `x`, its estimate `n` of the unit
# noise, and `sigma`, return the denoised estimate that the sampler wants.

# %% [markdown] tags=["pt"]
# Nenhum erro, nenhum aviso, tensores com a forma certa, e tudo cai onde não há dados. Um teste de formas teria passado; a lei
# não passou.
#
# *Garantido por* `tests/equations/test_solvers.py::test_the_slope_is_the_noise` e
# `tests/equations/test_solvers.py::test_an_euler_step_to_zero_is_the_estimate`
#
# ### Exercício 3: conserte-o
#
# Uma rede que estima o ruído não é inútil: muitos modelos são treinados assim. Dados `x`, a estimativa `n` do ruído unitário e
# `sigma`, devolva a estimativa sem ruído que o amostrador quer.


# %%
def my_denoised(x, n, sigma):
    raise NotImplementedError


check("01.denoised_from_noise", my_denoised)

# %% [markdown] tags=["en"]
# ## What to keep
#
# - Noise of level $\sigma$ adds $\sigma^2$ to the variance, and smears the density.
# - The perfect denoiser is an average, $\mathbb E[x_0 \mid x]$. It believes $x$ at small $\sigma$, the data at large $\sigma$.
# - Denoising is knowing the score: $\nabla \ln p = (D - x) / \sigma^2$.
# - Following $(x - D)/\sigma$ from large $\sigma$ to zero turns noise into data.
# - A network learns it from samples alone, down to a floor that the noise itself sets.
#
# Next: [preconditioning and the loss](02_preconditioning_and_loss.ipynb), where $c_\text{skip}$, $c_\text{out}$, $\lambda$ and $u$ have to earn their place.

# %% [markdown] tags=["pt"]
# ## O que guardar
#
# - Ruído de nível $\sigma$ soma $\sigma^2$ à variância e borra a densidade.
# - O denoiser perfeito é uma média, $\mathbb E[x_0 \mid x]$. Acredita em $x$ com $\sigma$ pequeno, nos dados com $\sigma$ grande.
# - Saber retirar o ruído é conhecer o escore: $\nabla \ln p = (D - x) / \sigma^2$.
# - Seguir $(x - D)/\sigma$ de um $\sigma$ grande até zero transforma ruído em dados.
# - Uma rede aprende-o só de amostras, até um piso que o próprio ruído fixa.
#
# A seguir: [o pré-condicionamento e a perda](02_preconditioning_and_loss.ipynb), onde $c_\text{skip}$, $c_\text{out}$, $\lambda$ e $u$ têm de merecer o seu lugar.
