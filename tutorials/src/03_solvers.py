# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] tags=["en"]
# # 03 · Solvers
#
# The denoiser is trained; now we want a sample. We start from pure noise and walk down to no noise at all, asking the
# denoiser for directions on the way. A *solver* is the recipe for the walk: where to ask, and what to make of the
# answers. Every question is one pass through a model of seven billion parameters, so the art is to ask seldom.
#
# Two denoisers in this tutorial are perfect, because their data are so simple that the answer can be written down.
# Whatever goes wrong is therefore the solver's doing, and we can measure it to the last digit. As before: **the number
# first, then the cell** (all of them together take well under a minute).
#
# | symbol | meaning |
# |---|---|
# | $\sigma$, $\sigma'$ | the noise level now, and the next, lower one |
# | $x$ | the noisy sample at level $\sigma$ |
# | $D(x; \sigma)$ | the denoiser's estimate of the clean sample |
# | $N$ | number of noise levels in a schedule, not counting the final zero |
# | $s$ | standard deviation of the data |

# %% [markdown] tags=["pt"]
# # 03 · Resolvedores
#
# O denoiser está treinado; agora queremos uma amostra. Partimos de puro ruído e descemos até ruído nenhum, perguntando
# o caminho ao denoiser. Um *resolvedor* (ou método de integração) é a receita da caminhada: onde perguntar, e o que
# fazer com as respostas. Cada pergunta é uma passagem por um modelo de sete bilhões de parâmetros; a arte, portanto, é
# perguntar pouco.
#
# Neste tutorial dois denoisers são perfeitos, porque os seus dados são tão simples que a resposta pode ser escrita. O
# que der errado é, assim, obra do resolvedor, e podemos medi-lo até o último dígito. Como antes: **primeiro o número,
# depois a célula** (todas juntas levam bem menos de um minuto).
#
# | símbolo | significado |
# |---|---|
# | $\sigma$, $\sigma'$ | o nível de ruído agora, e o seguinte, mais baixo |
# | $x$ | a amostra ruidosa no nível $\sigma$ |
# | $D(x; \sigma)$ | a estimativa do denoiser para a amostra limpa |
# | $N$ | número de níveis de ruído de um cronograma, sem contar o zero final |
# | $s$ | desvio padrão dos dados |

# %%
import itertools
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection

from cosmos_ref.equations import exact, guidance, noise, solvers
from cosmos_ref.exercises import check

SIZE = os.environ.get("COSMOS_REF_SIZE", "cpu")
COUNTS, FINEST, SAMPLES = {
    "smoke": ((16, 32, 64), 256, 64),
    "cpu": ((16, 32, 64, 128, 256, 512), 4096, 1000),
}[SIZE]

plt.style.use("cosmos_ref.exercises.tutorial")
plt.rcParams["figure.dpi"] = 100
torch.set_num_threads(1)

# %% [markdown] tags=["en"]
# ## 1. The road: an ordinary differential equation
#
# Write $x = x_0 + \sigma n$. If we knew the clean part, $D$, then $(x - D)/\sigma$ would be the unit noise $n$, and
# lowering $\sigma$ a little takes away just so much of it:
#
# $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D(x; \sigma)}{\sigma}.$$
#
# This is the *probability-flow ODE*: if $x$ starts as a fair draw of the data with noise $\sigma$, it stays one at
# every level it passes.
#
# Take data from a Gaussian of mean 0 and standard deviation $s = 0.5$. Its perfect denoiser is
# $D = \frac{s^2}{\sigma^2 + s^2}\,x$, and the equation can be solved with pencil and paper: $x$ keeps its proportion
# to the spread of the noisy data,
#
# $$x(\sigma') = x(\sigma)\, \sqrt{\frac{\sigma'^2 + s^2}{\sigma^2 + s^2}}.$$
#
# **The number first.** From $x = 80$ at $\sigma = 80$, one standard deviation out, the road leads to
# $80 \cdot 0.5 / \sqrt{6400.25} = 0.499990$: one standard deviation of the data.

# %% [markdown] tags=["pt"]
# ## 1. A estrada: uma equação diferencial ordinária
#
# Escreva $x = x_0 + \sigma n$. Se soubéssemos a parte limpa, $D$, então $(x - D)/\sigma$ seria o ruído unitário $n$, e
# baixar $\sigma$ um pouco tira exatamente esse tanto dele:
#
# $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D(x; \sigma)}{\sigma}.$$
#
# Esta é a *EDO do fluxo de probabilidade*: se $x$ começa como um sorteio honesto dos dados com ruído $\sigma$,
# continua a sê-lo em todo nível por onde passa.
#
# Tome dados de uma gaussiana de média 0 e desvio padrão $s = 0{,}5$. O seu denoiser perfeito é
# $D = \frac{s^2}{\sigma^2 + s^2}\,x$, e a equação se resolve com lápis e papel: $x$ mantém a sua proporção com a
# largura dos dados ruidosos,
#
# $$x(\sigma') = x(\sigma)\, \sqrt{\frac{\sigma'^2 + s^2}{\sigma^2 + s^2}}.$$
#
# **Primeiro o número.** De $x = 80$ em $\sigma = 80$, a um desvio padrão do centro, a estrada leva a
# $80 \cdot 0{,}5 / \sqrt{6400{,}25} = 0{,}499990$: um desvio padrão dos dados.

# %%
S = 0.5


def levels_of(x, sigma):
    return torch.full(x.shape[:1], sigma, dtype=x.dtype)


def gaussian(x, sigma, std=S):
    return exact.gaussian_denoiser(x, levels_of(x, sigma), torch.zeros_like(x), std)


def road(x, sigma, sigma_next, std=S):
    return exact.gaussian_flow(x, levels_of(x, sigma), levels_of(x, sigma_next), torch.zeros_like(x), std)


start = torch.tensor([80.0], dtype=torch.float64)
print(f"{road(start, 80.0, 0.0).item():.6f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 3))
fine = np.linspace(1.5, 0, 100)
coarse = np.linspace(1.5, 0, 4)
for first in (-3.0, -1.5, 1.5, 3.0):
    x = torch.tensor([first], dtype=torch.float64)
    panel.plot(fine, [road(x, 1.5, sigma).item() for sigma in fine], color="k", lw=1)
    steps = [x]
    for sigma, sigma_next in itertools.pairwise(coarse.tolist()):
        steps.append(solvers.euler_step(steps[-1], gaussian(steps[-1], sigma), sigma, sigma_next))
    panel.plot(coarse, [step.item() for step in steps], "o--", color="C1", ms=5, lw=1.2)
panel.set(xlabel=r"$\sigma$", ylabel=r"$x$")
panel.invert_xaxis()
plt.show()

# %% [markdown] tags=["en"]
# Black: the road. Dashed: the simplest solver, Euler's, in three steps. It looks at the slope, walks straight on for a
# whole step, and looks again. The road bends, so it ends too far in.
#
# *Held by* `tests/equations/test_exact.py::test_the_flow_obeys_its_differential_equation` and
# `tests/equations/test_solvers.py::test_the_slope_is_tangent_to_the_gaussian_flow` · the equations:
# [solvers.ode_derivative](../docs/en/equations/solvers.md#eq-solvers.ode_derivative),
# [exact.gaussian_flow](../docs/en/equations/exact.md#eq-exact.gaussian_flow)

# %% [markdown] tags=["pt"]
# Em preto, a estrada. Tracejado, o resolvedor mais simples, o de Euler, em três passos. Ele olha a inclinação, anda em
# linha reta um passo inteiro, e olha de novo. A estrada faz curva, e ele acaba perto demais do centro.
#
# *Garantido por* `tests/equations/test_exact.py::test_the_flow_obeys_its_differential_equation` e
# `tests/equations/test_solvers.py::test_the_slope_is_tangent_to_the_gaussian_flow` · as equações:
# [solvers.ode_derivative](../../docs/pt/equations/solvers.md#eq-solvers.ode_derivative),
# [exact.gaussian_flow](../../docs/pt/equations/exact.md#eq-exact.gaussian_flow)

# %% [markdown] tags=["en"]
# ## 2. The milestones: Karras' schedule
#
# Where shall we ask? Evenly spaced in $\sigma$ would waste nearly all questions on noise. Evenly spaced in
# $\ln \sigma$ would spend half of them below $\sigma = 0.13$, where little is left to decide. Karras et al. take a
# middle course: evenly spaced in the seventh root,
#
# $$\sigma_i = \left(\sigma_\text{max}^{1/\rho} + \tfrac{i}{N-1} \left(\sigma_\text{min}^{1/\rho} - \sigma_\text{max}^{1/\rho}\right)\right)^{\rho}, \quad i = 0, \dots, N-1, \qquad \rho = 7,$$
#
# and then a zero: $N$ levels and a zero make $N$ steps.
#
# ### Exercise 1: the schedule
#
# Write `karras_sigmas(num_steps, sigma_min, sigma_max, rho)`: a tensor of $N + 1$ levels. It must meet the released
# sampler's levels in the tenth digit, so compute in float64.

# %% [markdown] tags=["pt"]
# ## 2. Os marcos: o cronograma de Karras
#
# Onde perguntar? A distâncias iguais em $\sigma$, quase todas as perguntas seriam gastas com ruído. A distâncias
# iguais em $\ln \sigma$, metade delas cairia abaixo de $\sigma = 0{,}13$, onde pouco resta a decidir. Karras et al.
# tomam um caminho do meio: distâncias iguais na raiz sétima,
#
# $$\sigma_i = \left(\sigma_\text{max}^{1/\rho} + \tfrac{i}{N-1} \left(\sigma_\text{min}^{1/\rho} - \sigma_\text{max}^{1/\rho}\right)\right)^{\rho}, \quad i = 0, \dots, N-1, \qquad \rho = 7,$$
#
# e depois um zero: $N$ níveis e um zero dão $N$ passos.
#
# ### Exercício 1: o cronograma
#
# Escreva `karras_sigmas(num_steps, sigma_min, sigma_max, rho)`: um tensor de $N + 1$ níveis. Ele deve concordar com os
# níveis do amostrador publicado até o décimo dígito; calcule, portanto, em float64.


# %%
def karras_sigmas(num_steps, sigma_min, sigma_max, rho):
    raise NotImplementedError


check("03.karras_sigmas", karras_sigmas)

# %% [markdown] tags=["en"]
# **The number first.** The released Cosmos sampler has $N = 35$, $\sigma_\text{max} = 80$,
# $\sigma_\text{min} = 0.0002$: its levels begin with 80, 67.126, 56.070, 46.614, 38.558 and end with 0.00295, 0.00134,
# 0.000553, 0.0002, 0.

# %% [markdown] tags=["pt"]
# **Primeiro o número.** O amostrador publicado do Cosmos tem $N = 35$, $\sigma_\text{max} = 80$,
# $\sigma_\text{min} = 0{,}0002$: os seus níveis começam com 80; 67,126; 56,070; 46,614; 38,558 e terminam com 0,00295;
# 0,00134; 0,000553; 0,0002; 0.


# %%
def karras(count, sigma_min=2e-4, rho=7.0, sigma_max=80.0):
    return noise.karras_sigmas(count, sigma_min, sigma_max, rho).tolist()


official = karras(35)
print(" ".join(f"{sigma:.3f}" for sigma in official[:5]), "…", " ".join(f"{sigma:.3g}" for sigma in official[-5:]))

in_log = [*np.geomspace(80, 2e-4, 35).tolist(), 0.0]

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 3))
for sigmas, label, marker in (
    (karras(35, rho=1.0), r"$\rho = 1$", "v"),
    (official, r"$\rho = 7$", "o"),
    (in_log, r"$\ln\sigma$", "s"),
):
    panel.semilogy(sigmas[:-1], marker, ms=4, label=label)
panel.set(xlabel=r"$i$", ylabel=r"$\sigma_i$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_noise.py::test_karras_sigmas_of_the_official_sampler` and
# `tests/equations/test_noise.py::test_the_levels_are_evenly_spaced_after_taking_the_root_rho` · the equation:
# [noise.karras_sigmas](../docs/en/equations/noise.md#eq-noise.karras_sigmas)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_noise.py::test_karras_sigmas_of_the_official_sampler` e
# `tests/equations/test_noise.py::test_the_levels_are_evenly_spaced_after_taking_the_root_rho` · a equação:
# [noise.karras_sigmas](../../docs/pt/equations/noise.md#eq-noise.karras_sigmas)

# %% [markdown] tags=["en"]
# ## 3. Euler
#
# One step along the slope can be written in two ways:
#
# $$x' = x + (\sigma' - \sigma)\, \frac{x - D}{\sigma} = D + \frac{\sigma'}{\sigma}\,(x - D).$$
#
# The second is worth a look: the line from $D$ to $x$ is shortened by the factor $\sigma'/\sigma$, no more. A step to
# zero lands on $D$ itself.
#
# **The number first.** Over the 35 official steps Euler goes from 80 to **0.456869**, where 0.499990 is right: 8.6 %
# too narrow. diffusers' converted pipeline takes 36 levels down to 0.002 and ends at **0.461004**. With $\rho = 1$ it
# would be 0.10.

# %% [markdown] tags=["pt"]
# ## 3. Euler
#
# Um passo ao longo da inclinação pode ser escrito de dois modos:
#
# $$x' = x + (\sigma' - \sigma)\, \frac{x - D}{\sigma} = D + \frac{\sigma'}{\sigma}\,(x - D).$$
#
# O segundo merece um olhar: a reta de $D$ a $x$ é encurtada pelo fator $\sigma'/\sigma$, e nada mais. Um passo até
# zero chega ao próprio $D$.
#
# **Primeiro o número.** Nos 35 passos oficiais Euler vai de 80 a **0,456869**, onde o certo é 0,499990: 8,6 % estreito
# demais. O pipeline convertido do diffusers usa 36 níveis até 0,002 e termina em **0,461004**. Com $\rho = 1$ seria
# 0,10.


# %%
def euler(denoise, x, sigmas):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = solvers.euler_step(x, denoise(x, sigma), sigma, sigma_next)
    return x


print(f"35, 0        {euler(gaussian, start, official).item():.6f}")
print(f"36, σ_min    {euler(gaussian, start, karras(36, 2e-3)[:-1]).item():.6f}")
print(f"35, ρ = 1    {euler(gaussian, start, karras(35, rho=1.0)).item():.6f}")

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_solvers.py::test_euler_over_the_whole_schedule_ends_at_the_known_value` and
# `tests/equations/test_solvers.py::test_euler_with_the_last_level_repeated_ends_at_the_known_value`
#
# ### Exercise 2: the same step, in logarithms
#
# Put $h = \ln(\sigma / \sigma')$, the length of the step on a logarithmic ruler. Then $\sigma'/\sigma = e^{-h}$, and
# Euler's step is a weighted mean of $x$ and $D$.
#
# Write it with those two weights: `euler_in_log(x, D, h)`.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_solvers.py::test_euler_over_the_whole_schedule_ends_at_the_known_value` e
# `tests/equations/test_solvers.py::test_euler_with_the_last_level_repeated_ends_at_the_known_value`
#
# ### Exercício 2: o mesmo passo, em logaritmos
#
# Seja $h = \ln(\sigma / \sigma')$, o comprimento do passo numa régua logarítmica. Então $\sigma'/\sigma = e^{-h}$, e o
# passo de Euler é uma média ponderada de $x$ e $D$.
#
# Escreva-o assim, com esses dois pesos: `euler_in_log(x, D, h)`.


# %%
def euler_in_log(x, D, h):
    raise NotImplementedError


check("03.euler_in_log", euler_in_log)

# %% [markdown] tags=["en"]
# ## 4. Heun and RES: second order
#
# Euler believes that the slope at the start of a step holds for all of it. Two ways to do better:
#
# * **Heun** walks like Euler, asks for the slope on arrival, goes back and walks along the mean of the two. Two
#   questions a step.
# * **RES 2AB** remembers. On the logarithmic ruler $\ell = -\ln\sigma$ the road is $\mathrm dx/\mathrm d\ell = D - x$.
#   The part $-x$ is solved exactly, that is Euler's $e^{-h}$ above; and $D$ is drawn as the straight line through its
#   last two values. One question a step: the sampler in NVIDIA's training code, and probably of Cosmos' first release.
#
# ### Exercise 3: Heun
#
# Write `heun_step(denoise, x, sigma, sigma_next)`; `denoise(x, sigma)` gives $D$. `check` lets it run on Gaussians of
# drawn $s$ and measures its order: the slope of error against number of steps, on logarithmic paper, must lie in
# $[1.8, 2.2]$. Mind the step to zero.

# %% [markdown] tags=["pt"]
# ## 4. Heun e RES: segunda ordem
#
# Euler acredita que a inclinação do começo do passo vale para o passo inteiro. Dois modos de fazer melhor:
#
# * **Heun** anda como Euler, pergunta a inclinação na chegada, volta e anda pela média das duas. Duas perguntas por
#   passo.
# * **RES 2AB** se lembra. Na régua logarítmica $\ell = -\ln\sigma$ a estrada é $\mathrm dx/\mathrm d\ell = D - x$. A
#   parte $-x$ é resolvida exatamente, é o $e^{-h}$ de Euler, acima; e $D$ é traçado como a reta que passa pelos seus
#   dois últimos valores. Uma pergunta por passo: é o amostrador do código de treino da NVIDIA e, ao que parece, da
#   primeira publicação do Cosmos.
#
# ### Exercício 3: Heun
#
# Escreva `heun_step(denoise, x, sigma, sigma_next)`; `denoise(x, sigma)` dá $D$. `check` o deixa correr sobre
# gaussianas de $s$ sorteado e mede a sua ordem: a inclinação do erro contra o número de passos, em papel logarítmico,
# deve ficar em $[1{,}8;\ 2{,}2]$. Cuidado com o passo até zero.


# %%
def heun_step(denoise, x, sigma, sigma_next):
    raise NotImplementedError


check("03.heun_step", heun_step)

# %% [markdown] tags=["en"]
# **The number first.** RES 2AB over 35 steps, 80 down to 0.002, ends at **0.509686**: 1.9 % too wide, where Euler was
# 8.6 % too narrow, for the same number of questions. And Heun, allowed 35 questions too, gets only 18 steps out of
# them and ends at 0.532494, 6.5 % too wide. Second order is a promise about *small* steps; these are not small.
#
# The picture shows where on the way each of them leaves the road.

# %% [markdown] tags=["pt"]
# **Primeiro o número.** RES 2AB em 35 passos, de 80 a 0,002, termina em **0,509686**: 1,9 % largo demais, onde Euler
# ficou 8,6 % estreito demais, com o mesmo número de perguntas. E Heun, também com 35 perguntas, só tira delas 18
# passos e termina em 0,532494, 6,5 % largo demais. Segunda ordem é uma promessa sobre passos *pequenos*; estes não o
# são.
#
# A figura mostra em que ponto do caminho cada um deixa a estrada.


# %%
def heun(denoise, x, sigmas):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = solvers.heun_step(denoise, x, sigma, sigma_next)
    return x


def res_2ab(denoise, x, sigmas):
    D_previous = denoise(x, sigmas[0])
    x = solvers.euler_step(x, D_previous, sigmas[0], sigmas[1])
    for previous, sigma, sigma_next in zip(sigmas, sigmas[1:], sigmas[2:], strict=False):
        D = denoise(x, sigma)
        x = solvers.res_2ab_step(x, D, D_previous, sigma, sigma_next, previous)
        D_previous = D
    return x


RUNS = (("Euler", euler, official), ("Heun", heun, karras(18)), ("RES 2AB", res_2ab, karras(36, 2e-3)[:-1]))

for name, run, sigmas in RUNS:
    print(f"{name:<8} {run(gaussian, start, sigmas).item():.6f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6.5, 3))
panel.axhline(1, color="k", lw=1)
for name, run, sigmas in RUNS:
    shown = [count for count in range(2, len(sigmas) + 1) if sigmas[count - 1] > 0]
    ratios = [run(gaussian, start, sigmas[:count]) / road(start, 80.0, sigmas[count - 1]) for count in shown]
    panel.semilogx([sigmas[count - 1] for count in shown], torch.cat(ratios), "o-", ms=3, lw=1.2, label=name)
panel.set(xlabel=r"$\sigma$", ylabel=r"$x \,/\, x_{exact}$")
panel.invert_xaxis()
panel.legend(loc="upper left")
plt.show()

# %% [markdown] tags=["en"]
# All of it happens while $\sigma$ falls from about 5 to 0.1, through the size of the data. Before, all is noise and
# any solver is right; after, $D$ hardly changes.
#
# *Held by* `tests/equations/test_solvers.py::test_res_2ab_over_the_whole_schedule_ends_at_the_known_values` and
# `tests/exercises/test_03.py::test_heun_with_as_many_questions_is_wider_than_res_2ab` · the equations:
# [solvers.heun_step](../docs/en/equations/solvers.md#eq-solvers.heun_step),
# [solvers.res_2ab_step](../docs/en/equations/solvers.md#eq-solvers.res_2ab_step)

# %% [markdown] tags=["pt"]
# Tudo acontece enquanto $\sigma$ cai de cerca de 5 a 0,1, passando pelo tamanho dos dados. Antes, tudo é ruído e
# qualquer resolvedor acerta; depois, $D$ quase não muda.
#
# *Garantido por* `tests/equations/test_solvers.py::test_res_2ab_over_the_whole_schedule_ends_at_the_known_values` e
# `tests/exercises/test_03.py::test_heun_with_as_many_questions_is_wider_than_res_2ab` · as equações:
# [solvers.heun_step](../../docs/pt/equations/solvers.md#eq-solvers.heun_step),
# [solvers.res_2ab_step](../../docs/pt/equations/solvers.md#eq-solvers.res_2ab_step)

# %% [markdown] tags=["en"]
# ## 5. Order of accuracy
#
# A solver has order $p$ if its error shrinks like $1/N^p$ once $N$ is large: on logarithmic paper a straight line of
# slope $-p$. That can be measured. We do it on the Gaussian and on the five blobs of the last tutorial, whose road
# bends at every fork (there the reference is Heun with thousands of steps). To be fair, the axis counts questions,
# $N_D$, not steps.
#
# **The number first.** Slopes 1, 2 and 2. With 512 questions, RES 2AB is about a hundred times as accurate as Euler;
# with 16, about three times.

# %% [markdown] tags=["pt"]
# ## 5. Ordem de precisão
#
# Um resolvedor tem ordem $p$ se o seu erro encolhe como $1/N^p$ quando $N$ é grande: em papel logarítmico, uma reta de
# inclinação $-p$. Isso se mede. Fazemo-lo na gaussiana e nas cinco manchas do tutorial anterior, cuja estrada faz
# curva em cada bifurcação (ali a referência é Heun com milhares de passos). Para ser justo, o eixo conta perguntas,
# $N_D$, não passos.
#
# **Primeiro o número.** Inclinações 1, 2 e 2. Com 512 perguntas, RES 2AB é cerca de cem vezes mais preciso que Euler;
# com 16, cerca de três vezes.

# %%
BLOBS, BLOB = 5, 0.1
ANGLES = 2 * math.pi * torch.arange(BLOBS, dtype=torch.float64) / BLOBS + math.pi / 2
MEANS = math.sqrt(2 * (S**2 - BLOB**2)) * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def mixture(x, sigma, means=MEANS):
    weights = torch.full((len(means),), 1 / len(means), dtype=x.dtype)
    return exact.mixture_denoiser(x, levels_of(x, sigma), weights, means, BLOB)


def between(count):
    return karras(count + 1, sigma_min=0.02, sigma_max=10.0)[:-1]


cloud = 10 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PROBLEMS = {
    r"$\mathcal{N}(0, s^2)$": (gaussian, road(cloud, 10.0, 0.02)),
    r"$\sum_m w_m \mathcal{N}_m$": (mixture, heun(mixture, cloud, between(FINEST))),
}
errors, orders = {}, {}
for problem, (denoise, end) in PROBLEMS.items():
    for name, run, questions in (("Euler", euler, 1), ("Heun", heun, 2), ("RES 2AB", res_2ab, 1)):
        e = [(run(denoise, cloud, between(count // questions)) - end).square().mean().sqrt().item() for count in COUNTS]
        p = -np.polyfit(np.log(COUNTS[-3:]), np.log(e[-3:]), 1)[0]
        errors[problem, name], orders[problem, name] = e, p
        print(f"{name:<8} p = {p:.2f}   e({COUNTS[0]}) = {e[0]:.1e}   e({COUNTS[-1]}) = {e[-1]:.1e}")

# %% tags=["figure"]
figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for panel, problem in zip(panels, PROBLEMS, strict=True):
    for (title, name), e in errors.items():
        if title == problem:
            panel.loglog(COUNTS, e, "o-", ms=4, lw=1.2, label=f"{name}:  p = {orders[title, name]:.2f}")
    panel.set(title=problem, xlabel=r"$N_D$")
    panel.minorticks_off()
    panel.set_xticks(COUNTS, COUNTS)
    panel.legend(fontsize=10)
panels[0].set(ylabel=r"$|x - x_{exact}|$")
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_solvers.py::test_euler_converges_to_the_flow_of_a_mixture_with_order_one`,
# `tests/equations/test_solvers.py::test_heun_converges_to_the_flow_of_a_mixture_with_order_two` and
# `tests/equations/test_solvers.py::test_res_2ab_converges_to_the_flow_of_a_mixture_with_order_two`, and by their like
# for the Gaussian

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_solvers.py::test_euler_converges_to_the_flow_of_a_mixture_with_order_one`,
# `tests/equations/test_solvers.py::test_heun_converges_to_the_flow_of_a_mixture_with_order_two` e
# `tests/equations/test_solvers.py::test_res_2ab_converges_to_the_flow_of_a_mixture_with_order_two`, e pelas
# correspondentes para a gaussiana

# %% [markdown] tags=["en"]
# ## 6. Two films: where it is, and where it thinks it goes
#
# Left, $x$ on its way, scaled by $c_\text{in} = 1/\sqrt{\sigma^2 + s^2}$ so that it stays in view. Right, at the same
# moments, $D(x)$: what the denoiser takes the end to be.
#
# **The number first.** At $\sigma = 80$ all estimates lie within about 0.01 of the middle, the mean of the data: that
# is the best guess when nothing can be seen. As $\sigma$ passes the distances between blobs the estimate makes up its
# mind, and long before the end every path has its blob.

# %% [markdown] tags=["pt"]
# ## 6. Dois filmes: onde está, e aonde pensa que vai
#
# À esquerda, $x$ a caminho, dividido por $\sqrt{\sigma^2 + s^2}$ (isto é, vezes $c_\text{in}$) para continuar à vista.
# À direita, nos mesmos momentos, $D(x)$: o que o denoiser supõe ser o fim.
#
# **Primeiro o número.** Em $\sigma = 80$ todas as estimativas ficam a cerca de 0,01, no máximo, do meio, que é a
# média dos dados: o melhor palpite quando nada se vê. Quando $\sigma$ passa pelas distâncias entre as manchas, a estimativa se
# decide, e muito antes do fim cada caminho tem a sua mancha.

# %%
path = karras(120)
x = 80 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
places, estimates = [], []
for sigma, sigma_next in itertools.pairwise(path):
    D = mixture(x, sigma)
    places.append(x / math.hypot(sigma, S))
    estimates.append(D)
    x = solvers.euler_step(x, D, sigma, sigma_next)
places, estimates = torch.stack(places), torch.stack(estimates)
print(f"σ = 80: max |D| = {estimates[0].norm(dim=1).max():.3f}")

undecided = np.interp(np.log(path[:-1]), np.log([0.05, 3]), [0.9, 0])
shades = plt.get_cmap("plasma")(undecided)

# %% tags=["figure"]
figure, panels = plt.subplots(1, 2, figsize=(8, 4.2))
for panel, film, title, side in (
    (panels[0], places, r"$c_{in}\,x$", 2.5),
    (panels[1], estimates, r"$D(x; \sigma)$", 1.05),
):
    pieces = torch.stack([film[:-1], film[1:]], dim=2).flatten(0, 1)
    panel.add_collection(LineCollection(pieces.numpy(), colors=np.repeat(shades[:-1], film.shape[1], axis=0), lw=0.8))
    panel.scatter(*film[-1].T, s=8, color="k", zorder=3)
    panel.set(title=title, xlim=(-side, side), ylim=(-side, side), aspect="equal")
    panel.axis("off")
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_also_for_a_mixture`

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_exact.py::test_it_is_the_mean_of_all_clean_values_also_for_a_mixture`

# %% [markdown] tags=["en"]
# ## 7. Guidance, and two ways to count it
#
# Ask the denoiser twice: once with the text, $D_c$, once without, $D_u$. The difference is what the text contributes.
# *Guidance* goes further that way than the denoiser itself would:
#
# $$D = D_c + g\,(D_c - D_u) = D_u + w\,(D_c - D_u), \qquad w = 1 + g.$$
#
# NVIDIA's code counts $g$, most other code counts $w$; NVIDIA's default of 7 is what others call 8.
#
# Our "text" shall say *one of these two neighbouring blobs*.
#
# **The number first.** With $g = 0$ the samples lie around the two blobs, 0.69 from the middle on average. With
# $g = 7$ they are pushed out to about 0.90, two standard deviations beyond the blobs: what the text asks for,
# exaggerated, and hardly ever seen in the data. $w = 8$ gives the same points, to the last digit; $w = 7$, the mix-up,
# moves them by about 0.02. So small a shift is easy to overlook.

# %% [markdown] tags=["pt"]
# ## 7. Orientação, e dois modos de contá-la
#
# Pergunte duas vezes ao denoiser: uma com o texto, $D_c$, outra sem ele, $D_u$. A diferença é a contribuição do texto.
# A *orientação* (guidance) anda nessa direção mais longe do que o próprio denoiser andaria:
#
# $$D = D_c + g\,(D_c - D_u) = D_u + w\,(D_c - D_u), \qquad w = 1 + g.$$
#
# O código da NVIDIA conta $g$, quase todos os outros contam $w$; o 7 que a NVIDIA usa por padrão é o que os outros
# chamam de 8.
#
# O nosso "texto" diz: *uma destas duas manchas vizinhas*.
#
# **Primeiro o número.** Com $g = 0$ as amostras ficam em torno das duas manchas, a 0,69 do meio em média. Com $g = 7$
# são empurradas até cerca de 0,90, dois desvios padrão além das manchas: o que o texto pede, exagerado, e quase nunca
# visto nos dados. $w = 8$ dá os mesmos pontos, até o último dígito; $w = 7$, a confusão, os desloca cerca de 0,02. Um
# desvio tão pequeno passa facilmente despercebido.


# %%
def asked(x, sigma):
    return mixture(x, sigma, MEANS[:2])


def guided(g):
    return lambda x, sigma: guidance.cfg(asked(x, sigma), mixture(x, sigma), g)


def guided_the_other_way(w):
    return lambda x, sigma: guidance.cfg_from_unconditional(asked(x, sigma), mixture(x, sigma), w)


begin = 80 * torch.randn(SAMPLES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
samples = {g: euler(guided(g), begin, official) for g in (0, 1, 3, 7)}
for g, x in samples.items():
    print(f"g = {g}  mean |x| = {x.norm(dim=1).mean():.2f}")
for w in (8, 7):
    moved = (euler(guided_the_other_way(w), begin, official) - samples[7]).norm(dim=1).mean()
    print(f"g = 7, w = {w}: mean |Δx| = {moved:.3f}")

# %% tags=["figure"]
figure, panels = plt.subplots(1, 4, figsize=(9, 2.6), sharex=True, sharey=True)
for panel, (g, x) in zip(panels, samples.items(), strict=True):
    panel.scatter(*x.T, s=2, linewidths=0)
    panel.scatter(*MEANS.T, s=60, facecolors="none", edgecolors="C1", linewidths=1.5)
    panel.set(title=rf"$g = {g}$", xlim=(-1.4, 1.1), ylim=(-0.9, 1.5), aspect="equal")
    panel.axis("off")
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_guidance.py::test_the_other_convention_has_one_more` and
# `tests/equations/test_guidance.py::test_strength_zero_is_the_conditional_estimate` · the equations:
# [guidance.cfg](../docs/en/equations/guidance.md#eq-guidance.cfg),
# [guidance.cfg_from_unconditional](../docs/en/equations/guidance.md#eq-guidance.cfg_from_unconditional)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_guidance.py::test_the_other_convention_has_one_more` e
# `tests/equations/test_guidance.py::test_strength_zero_is_the_conditional_estimate` · as equações:
# [guidance.cfg](../../docs/pt/equations/guidance.md#eq-guidance.cfg),
# [guidance.cfg_from_unconditional](../../docs/pt/equations/guidance.md#eq-guidance.cfg_from_unconditional)

# %% [markdown] tags=["en"]
# ## 8. The last step, and $N$ or $N + 1$
#
# "35 steps" can mean 35 levels and a zero, or 36 levels and no zero. Three implementations of one model disagree:
#
# | | levels | $\sigma_\text{min}$ | then |
# |---|---|---|---|
# | released sampler | 35 | 0.0002 | 0 |
# | the sampler of training (RES) | 36 | 0.002 | one clean call |
# | diffusers' converted pipeline | 36 | 0.002 | 0.002 again |
#
# **The number first.** diffusers' 36th question is answered by a step of length zero: with it and without it Euler
# ends at 0.461004. A step to 0 in its place would end at 0.460996. To tell which schedule you have before you, look at
# its *second* level: 67.126 for the first row, 68.325 for the others.

# %% [markdown] tags=["pt"]
# ## 8. O último passo, e $N$ ou $N + 1$
#
# "35 passos" pode querer dizer 35 níveis e um zero, ou 36 níveis e zero nenhum. Três implementações de um mesmo modelo
# discordam:
#
# | | níveis | $\sigma_\text{min}$ | depois |
# |---|---|---|---|
# | amostrador publicado | 35 | 0,0002 | 0 |
# | amostrador do treino (RES) | 36 | 0,002 | uma chamada limpa |
# | pipeline convertido do diffusers | 36 | 0,002 | 0,002 outra vez |
#
# **Primeiro o número.** A 36ª pergunta do diffusers é respondida por um passo de comprimento zero: com ela e sem ela
# Euler termina em 0,461004. Um passo até 0 no seu lugar terminaria em 0,460996. Para saber que cronograma se tem
# diante dos olhos, basta o *segundo* nível: 67,126 na primeira linha, 68,325 nas outras.

# %%
levels = karras(36, 2e-3)[:-1]
for name, sigmas in (
    ("35, 0", official),
    ("36", levels),
    ("36, σ_min", [*levels, levels[-1]]),
    ("36, 0", [*levels, 0.0]),
):
    end = euler(gaussian, start, sigmas).item()
    print(f"{name:<10} σ₁ = {sigmas[1]:.3f}   N_D = {len(sigmas) - 1}   x = {end:.6f}")

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_solvers.py::test_euler_with_the_last_level_repeated_ends_at_the_known_value` and
# `tests/equations/test_noise.py::test_n_steps_go_from_sigma_max_to_sigma_min_and_then_to_zero`

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_solvers.py::test_euler_with_the_last_level_repeated_ends_at_the_known_value` e
# `tests/equations/test_noise.py::test_n_steps_go_from_sigma_max_to_sigma_min_and_then_to_zero`

# %% [markdown] tags=["en"]
# ## 9. Break it
#
# **Another schedule.** A port of Cosmos made poor videos: it took the *shifted-linear* schedule of flow-matching
# models instead of Karras'. There $t$ runs evenly from near 1 to 0, is shifted to $t' = k t / (1 + (k - 1) t)$ with
# $k = 5$, and $\sigma = t' / (1 - t')$.
#
# **The number first.** On our Gaussian Euler then ends at 0.443 instead of 0.457. Nothing alarming; a test with a
# tolerance of 5 % passes. So ask for finer detail: data of standard deviation $s = 0.01$. Karras' schedule keeps 85 %
# of it, the shifted one 7 %. Its last question is asked at $\sigma = 0.14$, and what is finer than that nobody ever
# asked about.

# %% [markdown] tags=["pt"]
# ## 9. Quebre-o
#
# **Outro cronograma.** Uma adaptação do Cosmos fazia vídeos ruins: usava o cronograma *linear deslocado* dos modelos
# de flow matching em vez do de Karras. Ali $t$ corre a distâncias iguais de quase 1 até 0, é deslocado para
# $t' = k t / (1 + (k - 1) t)$ com $k = 5$, e $\sigma = t' / (1 - t')$.
#
# **Primeiro o número.** Na nossa gaussiana Euler termina então em 0,443 em vez de 0,457. Nada de alarmante; um teste
# com tolerância de 5 % passa. Peça, pois, detalhes mais finos: dados de desvio padrão $s = 0{,}01$. O cronograma de
# Karras conserva 85 % dele, o deslocado 7 %. A sua última pergunta é feita em $\sigma = 0{,}14$, e sobre o que é mais
# fino que isso ninguém perguntou nada.


# %%
def shifted_linear(steps, shift=5.0, sigma_max=80.0):
    t_max = sigma_max / (shift + sigma_max)
    t = np.linspace(t_max, 0, steps + 1)
    t = shift * t / (1 + (shift - 1) * t)
    return (t / (1 - t)).tolist()


print(f"ρ = 7    x = {euler(gaussian, start, official).item():.6f}")
print(f"k = 5    x = {euler(gaussian, start, shifted_linear(35)).item():.6f}   σ₃₄ = {shifted_linear(35)[-2]:.2f}")

spreads = np.geomspace(1, 5e-3, 30).tolist()
kept = {}
for name, sigmas in (("ρ = 7", official), ("k = 5", shifted_linear(35))):
    kept[name] = []
    for std in (*spreads, 0.01):
        one = torch.tensor([math.hypot(80, std)], dtype=torch.float64)
        kept[name].append(euler(lambda x, sigma, std=std: gaussian(x, sigma, std), one, sigmas).item() / std)
    print(f"{name:<8} s = 0.01: x / s = {kept[name][-1]:.2f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 3))
panel.axhline(1, color="k", lw=1)
panel.semilogx(spreads, kept["ρ = 7"][:-1], label=r"$\rho = 7$")
panel.semilogx(spreads, kept["k = 5"][:-1], "--", label=r"$k t / (1 + (k - 1) t)$")
panel.set(xlabel=r"$s$", ylabel=r"$x / s$", ylim=(0, 1.1))
panel.invert_xaxis()
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/exercises/test_03.py::test_the_shifted_linear_schedule_loses_fine_detail`
#
# **The root upside down.** With $\rho$ for $1/\rho$ the levels are evenly spaced in $\sigma^7$.
#
# **The number first.** The second level becomes 79.66 instead of 67.126, the last but one 48.34; then comes a cliff.
# What ends there is the estimate at $\sigma = 48$: 0.005 instead of 0.5. All samples are the mean of the data, a grey
# video.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/exercises/test_03.py::test_the_shifted_linear_schedule_loses_fine_detail`
#
# **A raiz de cabeça para baixo.** Com $\rho$ no lugar de $1/\rho$, os níveis ficam a distâncias iguais em $\sigma^7$.
#
# **Primeiro o número.** O segundo nível passa a ser 79,66 em vez de 67,126, o penúltimo 48,34; depois vem um
# precipício. O que ali termina é a estimativa em $\sigma = 48$: 0,005 em vez de 0,5. Todas as amostras são a média dos
# dados, um vídeo cinzento.

# %%
inverted = np.clip(80.0**7 + np.linspace(0, 1, 35) * (2e-4**7 - 80.0**7), 0, None) ** (1 / 7)
inverted = [*inverted[:-1].tolist(), 0.0]
print(f"σ₁ = {inverted[1]:.2f}   σ₃₃ = {inverted[-2]:.2f}   x = {euler(gaussian, start, inverted).item():.3f}")

# %% [markdown] tags=["en"]
# *Held by* `tests/exercises/test_03.py::test_the_root_upside_down_ends_at_the_mean`
#
# **Single precision.** The same formula in float32.
#
# **The number first.** The first level is 79.99998 instead of 80, yet the sample changes in the seventh digit only.
# Harmless, and still a reason to compute schedules in float64: whoever compares two implementations digit by digit
# will look for that difference for a day.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/exercises/test_03.py::test_the_root_upside_down_ends_at_the_mean`
#
# **Precisão simples.** A mesma fórmula em float32.
#
# **Primeiro o número.** O primeiro nível é 79,99998 em vez de 80, mas a amostra só muda no sétimo dígito. Inofensivo,
# e ainda assim uma razão para calcular cronogramas em float64: quem compara duas implementações dígito por dígito vai
# procurar essa diferença um dia inteiro.

# %%
low, high = torch.tensor(2e-4) ** (1 / 7), torch.tensor(80.0) ** (1 / 7)
single = [*((high + torch.linspace(0, 1, 35) * (low - high)) ** 7).tolist(), 0.0]
print(f"float64  σ₀ = {official[0]:.5f}   x = {euler(gaussian, start, official).item():.9f}")
print(f"float32  σ₀ = {single[0]:.5f}   x = {euler(gaussian, start, single).item():.9f}")

# %% [markdown] tags=["en"]
# *Held by* `tests/exercises/test_03.py::test_a_schedule_in_float32_is_told_so`
#
# **A tolerance per step.** Another port tested its network call by call: each answer within 1 % of the original's. It
# passed, and the pictures were soft.
#
# **The number first.** Let every answer be too small by exactly 1 %. Each single call passes a tolerance of 1 %. The
# sample ends at 0.427 instead of 0.457: 6.6 % off. Errors of one sign add up; test the trajectory, not only the step.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/exercises/test_03.py::test_a_schedule_in_float32_is_told_so`
#
# **Uma tolerância por passo.** Outra adaptação testou a sua rede chamada por chamada: cada resposta a menos de 1 % da
# original. Passou, e as imagens saíram sem nitidez.
#
# **Primeiro o número.** Faça cada resposta pequena demais em exatamente 1 %. Cada chamada sozinha passa numa
# tolerância de 1 %. A amostra termina em 0,427 em vez de 0,457: 6,6 % de diferença. Erros do mesmo sinal se somam;
# teste a trajetória, e não só o passo.


# %%
def soft(x, sigma):
    return 0.99 * gaussian(x, sigma)


right, off = (euler(denoise, start, official).item() for denoise in (gaussian, soft))
print(f"x = {right:.3f}   {off:.3f}   {off / right - 1:+.1%}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
ends = range(2, len(official) + 1)
drift = [(euler(soft, start, official[:n]) / euler(gaussian, start, official[:n]) - 1).abs().item() for n in ends]
panel.axhline(0.01, color="k", lw=1)
panel.plot([n - 1 for n in ends], drift, "o-", ms=3, color="C1")
panel.set(xlabel=r"$i$", ylabel=r"$|\Delta x| / x$")
plt.show()

# %% [markdown] tags=["en"]
# Black, the tolerance per call; orange, what has become of the sample after $i$ steps.
#
# *Held by* `tests/exercises/test_03.py::test_one_percent_a_call_is_more_than_six_over_a_trajectory`
#
# ## What to keep
#
# One equation, $\mathrm dx/\mathrm d\sigma = (x - D)/\sigma$; a schedule that spends its questions where something is
# decided; a solver that trusts its answers a little further than Euler does. And a few fingerprints to carry in your
# pocket: the second level, 67.126, and the ends 0.456869, 0.461004 and 0.509686. Whoever ports a sampler and meets
# them has ported it right.

# %% [markdown] tags=["pt"]
# Em preto, a tolerância por chamada; em laranja, o que é feito da amostra depois de $i$ passos.
#
# *Garantido por* `tests/exercises/test_03.py::test_one_percent_a_call_is_more_than_six_over_a_trajectory`
#
# ## O que guardar
#
# Uma equação, $\mathrm dx/\mathrm d\sigma = (x - D)/\sigma$; um cronograma que gasta as perguntas onde algo se decide;
# um resolvedor que confia nas respostas um pouco mais adiante que Euler. E impressões digitais para levar no bolso: o
# segundo nível, 67,126; e os finais 0,456869; 0,461004 e 0,509686. Quem adapta um amostrador e as reencontra adaptou
# certo.
