# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] tags=["en"]
# # 02 · Preconditioning and the loss, every term earned
#
# A diffusion model has one job: shown a noisy sample, say what the clean one was. Any network from noisy to clean
# could be trained for that. Cosmos asks in a roundabout way. Its network sits between four coefficients,
# $c_\text{in}$, $c_\text{skip}$, $c_\text{out}$ and $c_\text{noise}$; its noise levels are drawn from a log-normal
# distribution; its error is multiplied by a weight $\lambda(\sigma)$; and a second, tiny network $u(\sigma)$ sits in
# the loss.
#
# Why all this? We begin with none of it, and let each term in only when a number says that it has earned its place.
# The rule of the game: **state the number first, then run the cell.** A number that comes out otherwise is worth more
# than one that comes out right. The cells need about a minute of computing on two CPU cores.
#
# | symbol | meaning |
# |---|---|
# | $x_0$ | a clean sample |
# | $n$ | Gaussian noise of mean 0 and variance 1, one number for each coordinate of $x_0$ |
# | $\sigma$ | the noise level |
# | $x = x_0 + \sigma n$ | the noisy sample |
# | $D(x; \sigma)$ | the denoiser: what it takes $x_0$ to be |
# | $F$ | the network inside the denoiser |
# | $L(\sigma)$ | mean square of $D - x_0$ at noise level $\sigma$ |

# %% [markdown] tags=["pt"]
# # 02 · Pré-condicionamento e a perda, cada termo merecido
#
# Um modelo de difusão tem uma única tarefa: diante de uma amostra ruidosa, dizer qual era a limpa. Qualquer rede que
# vá do ruidoso ao limpo poderia ser treinada para isso. O Cosmos pergunta de um jeito indireto. A sua rede fica entre
# quatro coeficientes, $c_\text{in}$, $c_\text{skip}$, $c_\text{out}$ e $c_\text{noise}$; os níveis de ruído são
# sorteados de uma distribuição log-normal; o erro é multiplicado por um peso $\lambda(\sigma)$; e uma segunda rede,
# minúscula, $u(\sigma)$, aparece na perda.
#
# Para que tudo isso? Começamos sem nada, e cada termo só entra quando um número diz que ele mereceu o lugar. A regra
# do jogo: **primeiro diga o número, depois execute a célula.** Um número que sai diferente vale mais que um que sai
# certo. As células pedem cerca de um minuto de cálculo em dois núcleos de CPU.
#
# | símbolo | significado |
# |---|---|
# | $x_0$ | uma amostra limpa |
# | $n$ | ruído gaussiano de média 0 e variância 1, um número para cada coordenada de $x_0$ |
# | $\sigma$ | o nível de ruído |
# | $x = x_0 + \sigma n$ | a amostra ruidosa |
# | $D(x; \sigma)$ | o denoiser: o que ele supõe que $x_0$ seja |
# | $F$ | a rede dentro do denoiser |
# | $L(\sigma)$ | média do quadrado de $D - x_0$ no nível de ruído $\sigma$ |

# %%
import math
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

from cosmos_ref.equations import edm, exact, forms, losses, noise
from cosmos_ref.exercises import check

SIZE = os.environ.get("COSMOS_REF_SIZE", "cpu")
STEPS, SAMPLES = {"smoke": (40, 2_000), "cpu": (2_000, 100_000)}[SIZE]

plt.style.use("cosmos_ref.exercises.tutorial")
plt.rcParams["figure.dpi"] = 100
torch.set_num_threads(1)

# %% [markdown] tags=["en"]
# ## A problem with a known answer
#
# Our data are points in the plane: five round blobs on a circle, each of standard deviation 0.1. For such data the
# *perfect* denoiser can be written down, it is `exact.mixture_denoiser`, so we shall always know how far the learned
# one is from the best there can be.
#
# **The number first.** The radius is chosen so that each coordinate has mean 0 and standard deviation
# $\sigma_\text{data} = 0.5$, the value that Cosmos gives its latents. Expect 0.50 twice.

# %% [markdown] tags=["pt"]
# ## Um problema de resposta conhecida
#
# Os nossos dados são pontos no plano: cinco manchas redondas num círculo, cada uma com desvio padrão 0,1. Para dados
# assim o denoiser *perfeito* pode ser escrito, é `exact.mixture_denoiser`, e por isso saberemos sempre a que distância
# o aprendido está do melhor possível.
#
# **Primeiro o número.** O raio foi escolhido para que cada coordenada tenha média 0 e desvio padrão
# $\sigma_\text{data} = 0{,}5$, o valor que o Cosmos dá aos seus latentes. Espere 0,50 duas vezes.

# %%
SIGMA_DATA, BLOB, BLOBS = 0.5, 0.1, 5
ANGLES = 2 * math.pi * torch.arange(BLOBS) / BLOBS + math.pi / 2
MEANS = math.sqrt(2 * (SIGMA_DATA**2 - BLOB**2)) * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
WEIGHTS = torch.full((BLOBS,), 1 / BLOBS)


def draw(count, generator):
    blob = torch.randint(BLOBS, (count,), generator=generator)
    return MEANS[blob] + BLOB * torch.randn(count, 2, generator=generator)


def perfect(x, sigma):
    return exact.mixture_denoiser(x, sigma, WEIGHTS, MEANS, BLOB)


def noisy(sigma, count=SAMPLES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x0 = draw(count, generator)
    level = torch.full((count,), float(sigma))
    n = torch.randn(count, 2, generator=generator)
    return x0, n, noise.add_noise(x0, n, level), level


print("std(x₀) =", [f"{value:.2f}" for value in noisy(0)[0].std(dim=0).tolist()])

# %% tags=["figure"]
figure, panels = plt.subplots(1, 4, figsize=(9, 2.4), sharex=True, sharey=True)
for panel, sigma in zip(panels, (0, 0.1, 0.3, 0.8), strict=True):
    panel.scatter(*noisy(sigma, 1500)[2].T, s=2, alpha=0.5, linewidths=0)
    panel.set(title=rf"$\sigma = {sigma}$", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    panel.axis("off")
plt.show()

# %% [markdown] tags=["en"]
# ## 1. $c_\text{in}$: the input
#
# A sampler walks from $\sigma = 80$ down to almost 0, and the network must read $x$ on the whole way. Variances of
# independent things add, so $x$ has variance $\sigma^2 + \sigma_\text{data}^2$.
#
# **The number first.** The standard deviation of $x$ is 0.5 at $\sigma = 0.002$ and 80.0 at $\sigma = 80$: inputs that
# differ in size by 160, to the same weights. Divided by the root of that variance,
#
# $$c_\text{in}(\sigma) = \frac{1}{\sqrt{\sigma^2 + \sigma_\text{data}^2}},$$
#
# it is 1.00 everywhere.

# %% [markdown] tags=["pt"]
# ## 1. $c_\text{in}$: a entrada
#
# Um amostrador desce de $\sigma = 80$ até quase 0, e a rede tem de ler $x$ no caminho todo. Variâncias de coisas
# independentes somam-se, logo $x$ tem variância $\sigma^2 + \sigma_\text{data}^2$.
#
# **Primeiro o número.** O desvio padrão de $x$ é 0,5 em $\sigma = 0{,}002$ e 80,0 em $\sigma = 80$: entradas cujo
# tamanho varia 160 vezes, para os mesmos pesos. Dividido pela raiz daquela variância,
#
# $$c_\text{in}(\sigma) = \frac{1}{\sqrt{\sigma^2 + \sigma_\text{data}^2}},$$
#
# ele é 1,00 em toda parte.

# %%
LEVELS = torch.logspace(math.log10(2e-3), math.log10(80), 25)
raw = torch.stack([noisy(sigma)[2].std() for sigma in LEVELS])
scaled = edm.c_in(LEVELS, SIGMA_DATA) * raw
print(f"std(x):       {raw[0]:.1f} … {raw[-1]:.1f}")
print(f"std(c_in x):  {scaled.min():.2f} … {scaled.max():.2f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.loglog(LEVELS, 1 / edm.c_in(LEVELS, SIGMA_DATA), color="k", lw=1)
panel.loglog(LEVELS, raw, "o", ms=5, label=r"$\mathrm{std}(x)$")
panel.loglog(LEVELS, scaled, "s", ms=5, label=r"$\mathrm{std}(c_{in}\,x)$")
panel.set(xlabel=r"$\sigma$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_c_in_gives_the_network_input_unit_variance` · the equation:
# [edm.c_in](../docs/en/equations/edm.md#eq-edm.c_in)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_c_in_gives_the_network_input_unit_variance` · a equação:
# [edm.c_in](../../docs/pt/equations/edm.md#eq-edm.c_in)

# %% [markdown] tags=["en"]
# ## 2. $c_\text{skip}$: what needs no network
#
# At $\sigma = 0.002$ the noisy sample *is* the answer, but for a hair. A network that must output $x_0$ itself would
# have to copy its input to three digits, which networks are bad at. So let a straight line do what a straight line
# can: which multiple $c\,x$ is nearest to $x_0$? That is a projection, as in linear algebra, with the mean over
# samples for the dot product:
#
# $$c = \frac{\mathbb E[x \cdot x_0]}{\mathbb E[x \cdot x]}
#   = \frac{\sigma_\text{data}^2}{\sigma^2 + \sigma_\text{data}^2} = c_\text{skip}(\sigma).$$
#
# **The number first.** At $\sigma = 0.1$ it is $0.25 / 0.26 = 0.96$; at $\sigma = 0.5$, where noise and data are
# equally strong, 0.50; at $\sigma = 10$ it is 0.00: nothing in $x$ is worth keeping.

# %% [markdown] tags=["pt"]
# ## 2. $c_\text{skip}$: o que não precisa de rede
#
# Em $\sigma = 0{,}002$ a amostra ruidosa *é* a resposta, a menos de um fio de cabelo. Uma rede que tivesse de produzir
# o próprio $x_0$ precisaria copiar a entrada com três dígitos, coisa que redes fazem mal. Deixemos então que uma reta faça o que uma
# reta pode: qual múltiplo $c\,x$ está mais perto de $x_0$? É uma projeção, como na álgebra linear, com a média sobre
# as amostras no lugar do produto escalar:
#
# $$c = \frac{\mathbb E[x \cdot x_0]}{\mathbb E[x \cdot x]}
#   = \frac{\sigma_\text{data}^2}{\sigma^2 + \sigma_\text{data}^2} = c_\text{skip}(\sigma).$$
#
# **Primeiro o número.** Em $\sigma = 0{,}1$ ele é $0{,}25 / 0{,}26 = 0{,}96$; em $\sigma = 0{,}5$, onde ruído e dados
# têm a mesma força, 0,50; em $\sigma = 10$ é 0,00: nada em $x$ vale a pena guardar.


# %%
def projection(sigma):
    x0, _, x, _ = noisy(sigma)
    return (x * x0).mean() / (x * x).mean()


slopes = torch.stack([projection(sigma) for sigma in LEVELS])
for sigma in (0.1, 0.5, 10):
    print(f"σ = {sigma:<4}  E[x x₀]/E[x x] = {projection(sigma):.2f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.semilogx(LEVELS, edm.c_skip(LEVELS, SIGMA_DATA), color="k", lw=1, label=r"$c_{skip}$")
panel.semilogx(LEVELS, slopes, "o", ms=5, label=r"$E[x\,x_0] / E[x\,x]$")
panel.set(xlabel=r"$\sigma$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_c_skip_is_the_wiener_gain` · the equation:
# [edm.c_skip](../docs/en/equations/edm.md#eq-edm.c_skip)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_c_skip_is_the_wiener_gain` · a equação:
# [edm.c_skip](../../docs/pt/equations/edm.md#eq-edm.c_skip)

# %% [markdown] tags=["en"]
# ## 3. $c_\text{out}$: the target
#
# What is left for the network is the rest $x_0 - c_\text{skip}\,x$. A projection leaves a rest at a right angle to
# what it projected on, so Pythagoras gives its size:
#
# $$c_\text{out}(\sigma) = \frac{\sigma\,\sigma_\text{data}}{\sqrt{\sigma^2 + \sigma_\text{data}^2}}.$$
#
# Divide by it, and the network's target $F^* = (x_0 - c_\text{skip}\,x) / c_\text{out}$ has variance 1. The denoiser
# is then
#
# $$D(x; \sigma) = c_\text{skip}\,x + c_\text{out}\,F(c_\text{in}\,x;\ c_\text{noise}).$$
#
# **The number first.** The rest has standard deviation 0.098 at $\sigma = 0.1$ and 0.447 at $\sigma = 1$. The target
# has 1.00 at both, and its correlation with the network's input is 0.00: a line can tell the network nothing more.

# %% [markdown] tags=["pt"]
# ## 3. $c_\text{out}$: o alvo
#
# À rede fica o resto $x_0 - c_\text{skip}\,x$. Uma projeção deixa um resto perpendicular àquilo sobre que projetou, e
# Pitágoras dá o seu tamanho:
#
# $$c_\text{out}(\sigma) = \frac{\sigma\,\sigma_\text{data}}{\sqrt{\sigma^2 + \sigma_\text{data}^2}}.$$
#
# Dividido por ele, o alvo da rede, $F^* = (x_0 - c_\text{skip}\,x) / c_\text{out}$, tem variância 1. O denoiser é
# então
#
# $$D(x; \sigma) = c_\text{skip}\,x + c_\text{out}\,F(c_\text{in}\,x;\ c_\text{noise}).$$
#
# **Primeiro o número.** O resto tem desvio padrão 0,098 em $\sigma = 0{,}1$ e 0,447 em $\sigma = 1$. O alvo tem 1,00
# em ambos, e a sua correlação com a entrada da rede é 0,00: uma reta não tem mais nada a dizer à rede.


# %%
def rest_and_target(sigma):
    x0, _, x, level = noisy(sigma)
    rest = x0 - edm.c_skip(level, SIGMA_DATA)[:, None] * x
    return x, rest, edm.network_target(x0, x, level, SIGMA_DATA)


rests, targets = torch.tensor([[part.std().item() for part in rest_and_target(sigma)[1:]] for sigma in LEVELS]).T
for sigma in (0.1, 1.0):
    x, rest, target = rest_and_target(sigma)
    correlation = torch.corrcoef(torch.stack([x.flatten(), target.flatten()]))[0, 1]
    print(
        f"σ = {sigma}  std(x₀ - c_skip x) = {rest.std():.3f}  std(F*) = {target.std():.2f}  |r| = {abs(correlation):.2f}"
    )

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.loglog(LEVELS, edm.c_out(LEVELS, SIGMA_DATA), color="k", lw=1, label=r"$c_{out}$")
panel.loglog(LEVELS, rests, "o", ms=5, label=r"$\mathrm{std}(x_0 - c_{skip}\,x)$")
panel.loglog(LEVELS, targets, "s", ms=5, label=r"$\mathrm{std}(F^*)$")
panel.set(xlabel=r"$\sigma$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_c_out_gives_the_network_target_unit_variance` · the equations:
# [edm.c_out](../docs/en/equations/edm.md#eq-edm.c_out), [edm.denoise](../docs/en/equations/edm.md#eq-edm.denoise)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_c_out_gives_the_network_target_unit_variance` · as equações:
# [edm.c_out](../../docs/pt/equations/edm.md#eq-edm.c_out),
# [edm.denoise](../../docs/pt/equations/edm.md#eq-edm.denoise)

# %% [markdown] tags=["en"]
# ## 4. $c_\text{noise}$: telling the network where it is
#
# The best answer depends on $\sigma$, so the network must be told. Told $\sigma$ itself, it would see the 35 levels of
# the released sampler like the upper row below: two thirds of them piled up in the lowest tenth. A logarithm spreads
# them,
#
# $$c_\text{noise}(\sigma) = \tfrac14 \ln \sigma,$$
#
# and moves by the same amount whenever $\sigma$ halves. The factor $\tfrac14$ keeps it about as small as the other
# inputs.
#
# **The number first.** From $\sigma = 80$ down to $0.0002$, $c_\text{noise}$ goes from 1.0955 to -2.129.

# %% [markdown] tags=["pt"]
# ## 4. $c_\text{noise}$: dizer à rede onde ela está
#
# A melhor resposta depende de $\sigma$, logo é preciso dizê-lo à rede. Se lhe disséssemos o próprio $\sigma$, ela
# veria os 35 níveis do amostrador publicado como na linha de cima, abaixo: dois terços amontoados no décimo mais
# baixo. Um logaritmo os separa,
#
# $$c_\text{noise}(\sigma) = \tfrac14 \ln \sigma,$$
#
# e anda sempre o mesmo tanto quando $\sigma$ cai à metade. O fator $\tfrac14$ o deixa mais ou menos tão pequeno quanto
# as outras entradas.
#
# **Primeiro o número.** De $\sigma = 80$ até $0{,}0002$, $c_\text{noise}$ vai de 1,0955 a -2,129.

# %%
official = noise.karras_sigmas(35, sigma_min=2e-4, sigma_max=80.0, rho=7.0)[:-1]
told = edm.c_noise(official)
print(f"c_noise: {told[0]:.4f} … {told[-1]:.3f}")
print(f"σ < 8:   {(official < 8).sum()} / 35")

# %% tags=["figure"]
figure, panels = plt.subplots(2, 1, figsize=(8, 1.9))
for panel, values, name in zip(panels, (official, told), (r"$\sigma$", r"$c_{noise}$"), strict=True):
    panel.plot(values, torch.zeros(35), "|", ms=16, mew=1.5)
    panel.set(yticks=[], ylabel=name)
    panel.spines["left"].set_visible(False)
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_c_noise_at_the_ends_of_the_schedule` and
# `tests/equations/test_edm.py::test_c_noise_turns_ratios_of_sigma_into_steps_of_a_quarter_log` · the equation:
# [edm.c_noise](../docs/en/equations/edm.md#eq-edm.c_noise)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_c_noise_at_the_ends_of_the_schedule` e
# `tests/equations/test_edm.py::test_c_noise_turns_ratios_of_sigma_into_steps_of_a_quarter_log` · a equação:
# [edm.c_noise](../../docs/pt/equations/edm.md#eq-edm.c_noise)

# %% [markdown] tags=["en"]
# ## 5. $\lambda$: the weight, with the square
#
# Start the network at $F = 0$, as Cosmos does. Then $D = c_\text{skip}\,x$, and its error is the rest of section 3:
# $L(\sigma) = c_\text{out}^2$. That is 6400 times larger at strong noise than at $\sigma = 0.00625$; a plain mean over
# noise levels would hear nothing but the strong ones. So we multiply $L$ by a weight $\lambda(\sigma)$ under which
# every level starts at exactly 1.
#
# ### Exercise 1: the weight
#
# Which weight $\lambda$ has $\lambda\, c_\text{out}^2 = 1$? Write it with $\sigma$ and $\sigma_\text{data}$ (two
# numbers or tensors). `check` tries fifty cases and shows you the simplest that fails.

# %% [markdown] tags=["pt"]
# ## 5. $\lambda$: o peso, com o quadrado
#
# Comece com a rede em $F = 0$, como faz o Cosmos. Então $D = c_\text{skip}\,x$, e o erro é o resto da seção 3:
# $L(\sigma) = c_\text{out}^2$. Com muito ruído ele é 6400 vezes maior que em $\sigma = 0{,}00625$; uma média simples
# sobre os níveis só ouviria os mais altos. Por isso multiplicamos $L$ por um peso $\lambda(\sigma)$ com que todos os
# níveis começam exatamente em 1.
#
# ### Exercício 1: o peso
#
# Qual peso $\lambda$ satisfaz $\lambda\, c_\text{out}^2 = 1$? Escreva-o com $\sigma$ e $\sigma_\text{data}$ (dois
# números ou tensores). `check` tenta cinquenta casos e mostra o mais simples que falha.


# %%
def loss_weight(sigma, sigma_data):
    raise NotImplementedError


check("02.loss_weight", loss_weight)

# %% [markdown] tags=["en"]
# **The number first.** With the right weight, $\lambda L = 1.00 \pm 0.02$ at *every* $\sigma$, before any training.
#
# The text that this project grew from prints
# $\lambda = (\sigma^2 + \sigma_\text{data}^2) / (\sigma\,\sigma_\text{data})$, without the square. Then $\lambda L$ is
# not 1 but $\sigma\,\sigma_\text{data}$: expect 40 at $\sigma = 80$ and 0.001 at $\sigma = 0.002$.

# %% [markdown] tags=["pt"]
# **Primeiro o número.** Com o peso certo, $\lambda L = 1{,}00 \pm 0{,}02$ em *todo* $\sigma$, antes de qualquer
# treino.
#
# O texto de onde este projeto nasceu imprime
# $\lambda = (\sigma^2 + \sigma_\text{data}^2) / (\sigma\,\sigma_\text{data})$, sem o quadrado. Então $\lambda L$ não é
# 1, mas $\sigma\,\sigma_\text{data}$: espere 40 em $\sigma = 80$ e 0,001 em $\sigma = 0{,}002$.


# %%
def without_the_square(sigma, sigma_data):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data)


silent_error = []
for sigma in LEVELS:
    x0, _, x, level = noisy(sigma)
    D = edm.denoise(torch.zeros_like(x), x, level, SIGMA_DATA)
    silent_error.append(((D - x0) ** 2).mean())
silent_error = torch.stack(silent_error)
right = edm.loss_weight(LEVELS, SIGMA_DATA) * silent_error
wrong = without_the_square(LEVELS, SIGMA_DATA) * silent_error
print(f"(σ² + σ_data²) / (σ σ_data)²:  λL = {right.min():.2f} … {right.max():.2f}")
print(f"(σ² + σ_data²) / (σ σ_data) :  λL = {wrong.min():.3f} … {wrong.max():.1f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.loglog(LEVELS, LEVELS * SIGMA_DATA, color="k", lw=1)
panel.loglog(LEVELS, torch.ones(25), color="k", lw=1)
panel.loglog(LEVELS, right, "o", ms=5, label=r"$\lambda = (\sigma^2 + \sigma_{data}^2) / (\sigma \sigma_{data})^2$")
panel.loglog(LEVELS, wrong, "x", ms=6, mew=2, label=r"$(\sigma^2 + \sigma_{data}^2) / (\sigma \sigma_{data})$")
panel.set(xlabel=r"$\sigma$", ylabel=r"$\lambda L$,  $F = 0$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_every_noise_level_counts_the_same_at_initialisation` (the form without
# the square is one of the impostors that it rejects) · the equation:
# [edm.loss_weight](../docs/en/equations/edm.md#eq-edm.loss_weight)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_every_noise_level_counts_the_same_at_initialisation` (a forma sem
# o quadrado é um dos impostores que ele rejeita) · a equação:
# [edm.loss_weight](../../docs/pt/equations/edm.md#eq-edm.loss_weight)

# %% [markdown] tags=["en"]
# ### The same loss in four languages
#
# Other papers ask a network for other things: for the clean sample $x_0$, for the noise $\hat n = (x - D) / \sigma$
# (they write $\epsilon$), or for the "velocity" $v = \cos\varphi\, n - \sin\varphi\, x_0 / \sigma_\text{data}$ with
# $\tan\varphi = \sigma / \sigma_\text{data}$. Our $F$ is a fourth. Each answer determines the others, so it is one
# denoiser in four languages; only the weight must be translated too.
#
# ### Exercise 2: translate the weight
#
# With which weight is the error of the noise, $\lVert \hat n - n \rVert^2$, the same loss as
# $\lambda \lVert D - x_0 \rVert^2$?

# %% [markdown] tags=["pt"]
# ### A mesma perda em quatro línguas
#
# Outros artigos pedem outras coisas à rede: a amostra limpa $x_0$, o ruído $\hat n = (x - D) / \sigma$ (escrevem
# $\epsilon$), ou a "velocidade" $v = \cos\varphi\, n - \sin\varphi\, x_0 / \sigma_\text{data}$, com
# $\tan\varphi = \sigma / \sigma_\text{data}$. O nosso $F$ é uma quarta. Cada resposta determina as outras: é um só
# denoiser em quatro línguas; só que o peso também precisa de tradução.
#
# ### Exercício 2: traduza o peso
#
# Com que peso o erro do ruído, $\lVert \hat n - n \rVert^2$, é a mesma perda que $\lambda \lVert D - x_0 \rVert^2$?


# %%
def noise_weight(sigma, sigma_data):
    raise NotImplementedError


check("02.noise_weight", noise_weight)

# %% [markdown] tags=["en"]
# **The number first.** Take any estimate, say $D = 0.9\,x_0$ at $\sigma = 0.7$. The four weighted losses agree to six
# digits. (The popular unweighted noise loss is none of them: its weight is 1 at all levels.)

# %% [markdown] tags=["pt"]
# **Primeiro o número.** Tome uma estimativa qualquer, digamos $D = 0{,}9\,x_0$ em $\sigma = 0{,}7$. As quatro perdas
# ponderadas concordam em seis dígitos. (A popular perda do ruído sem peso não é nenhuma delas: o seu peso é 1 em todos
# os níveis.)

# %%
x0, n, x, level = noisy(0.7)
x0, n, level = x0.double(), n.double(), level.double()
x = noise.add_noise(x0, n, level)
D = 0.9 * x0
n_hat = forms.noise_estimate(D, x, level)
v_hat, v = (forms.velocity(*pair, level, SIGMA_DATA) for pair in ((D, n_hat), (x0, n)))
F, F_star = (edm.network_target(estimate, x, level, SIGMA_DATA) for estimate in (D, x0))

for name, error, weight in (
    ("x₀", D - x0, edm.loss_weight(level, SIGMA_DATA)),
    ("n ", n_hat - n, forms.noise_loss_weight(level, SIGMA_DATA)),
    ("v ", v_hat - v, torch.ones_like(level)),
    ("F ", F - F_star, torch.ones_like(level)),
):
    print(f"{name}  {(weight[:, None] * error**2).mean():.6f}")

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_edm.py::test_the_weighted_error_is_the_error_of_the_network` and
# `tests/equations/test_forms.py::test_one_error_in_four_languages_is_one_loss` · the equations:
# [forms.noise_loss_weight](../docs/en/equations/forms.md#eq-forms.noise_loss_weight),
# [forms.velocity](../docs/en/equations/forms.md#eq-forms.velocity)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_edm.py::test_the_weighted_error_is_the_error_of_the_network` e
# `tests/equations/test_forms.py::test_one_error_in_four_languages_is_one_loss` · as equações:
# [forms.noise_loss_weight](../../docs/pt/equations/forms.md#eq-forms.noise_loss_weight),
# [forms.velocity](../../docs/pt/equations/forms.md#eq-forms.velocity)

# %% [markdown] tags=["en"]
# ## 6. $\ln \sigma \sim \mathcal N(P_\text{mean}, P_\text{std}^2)$: where there is something to learn
#
# Now ask how far down training *can* bring $\lambda L$. The perfect denoiser $D^*$ knows. With hardly any noise it can
# do no better than the straight line, for there is nothing to remove; with overwhelming noise neither, for nothing can
# be seen. In between lies a valley, and only there can a network earn anything.
#
# **The number first.** For our blobs the floor $\lambda L^*$ is 1.00 at both ends and goes down to about a half near
# $\sigma = 0.15$. A log-normal $\sigma$ puts the training into the valley: NVIDIA's training code draws with
# $P_\text{mean} = 0$, $P_\text{std} = 1$ for video latents. Our valley lies lower, so we take $-1.2$ and $1.8$: $e^{-1.2} = 0.30$ is
# the median.

# %% [markdown] tags=["pt"]
# ## 6. $\ln \sigma \sim \mathcal N(P_\text{mean}, P_\text{std}^2)$: onde há o que aprender
#
# Até onde o treino *pode* baixar $\lambda L$? O denoiser perfeito $D^*$ sabe. Com quase nenhum ruído ele não supera a
# reta, pois não há o que remover; com ruído esmagador também não, pois não há o que ver. No meio fica um vale, e só
# ali uma rede pode ganhar alguma coisa.
#
# **Primeiro o número.** Para as nossas manchas o piso $\lambda L^*$ é 1,00 nas duas pontas e desce a cerca de um meio
# perto de $\sigma = 0{,}15$. Um $\sigma$ log-normal põe o treino no vale: o código de treino da NVIDIA sorteia com
# $P_\text{mean} = 0$, $P_\text{std} = 1$ para latentes de vídeo. O nosso vale fica mais abaixo, por isso usamos $-1{,}2$ e $1{,}8$:
# a mediana é $e^{-1{,}2} = 0{,}30$.


# %%
def weighted_error(denoiser, sigma, count=SAMPLES):
    x0, _, x, level = noisy(sigma, count)
    with torch.no_grad():
        return edm.loss_weight(sigma, SIGMA_DATA) * ((denoiser(x, level) - x0) ** 2).mean()


floor = torch.stack([weighted_error(perfect, sigma) for sigma in LEVELS])
P_MEAN, P_STD = -1.2, 1.8
print(f"λL*: min = {floor.min():.2f}, σ = {LEVELS[floor.argmin()]:.2f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.semilogx(LEVELS, floor, "k", lw=1.5, label=r"$\lambda L^*$")
for p_mean, p_std in ((0.0, 1.0), (P_MEAN, P_STD)):
    density = torch.exp(-(((LEVELS.log() - p_mean) / p_std) ** 2) / 2) / (p_std * math.sqrt(2 * math.pi))
    label = rf"$P_{{mean}} = {p_mean:g},\ P_{{std}} = {p_std:g}$"
    panel.fill_between(LEVELS, density, alpha=0.25, lw=0, label=label)
panel.set(xlabel=r"$\sigma$", ylim=(0, 1.1))
panel.legend(loc="upper right", bbox_to_anchor=(1.0, 0.85), fontsize=10)
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_noise.py::test_p_mean_and_p_std_can_be_read_off_a_histogram_of_log_sigma` and
# `tests/exercises/test_02.py::test_the_floor_is_one_at_both_ends_and_lowest_in_between` · the equations:
# [noise.log_normal_sigma](../docs/en/equations/noise.md#eq-noise.log_normal_sigma),
# [exact.mixture_denoiser](../docs/en/equations/exact.md#eq-exact.mixture_denoiser)

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_noise.py::test_p_mean_and_p_std_can_be_read_off_a_histogram_of_log_sigma` e
# `tests/exercises/test_02.py::test_the_floor_is_one_at_both_ends_and_lowest_in_between` · as equações:
# [noise.log_normal_sigma](../../docs/pt/equations/noise.md#eq-noise.log_normal_sigma),
# [exact.mixture_denoiser](../../docs/pt/equations/exact.md#eq-exact.mixture_denoiser)

# %% [markdown] tags=["en"]
# ## 7. Six trainings, one term more each time
#
# Now the numbers that count. The same small network (three layers, 64 wide) is trained six times with the same budget:
# first bare, then with one term more each time. `terms` is the list of those let in so far.
#
# What we measure is how much worse than perfect a denoiser is. $D^*$ is a projection too, on everything that can be
# said of $x_0$ from $x$; so Pythagoras holds once more, and the excess is a distance:
#
# $$L = L^* + \mathbb E\, \lVert D - D^* \rVert^2.$$
#
# **The number first.** In the left column, weak noise, the bare network is off by more than 10 (remember: doing
# nothing but $c_\text{skip}\,x$ scores about 0), and $c_\text{skip}$ and $c_\text{out}$ cut that about a thousand
# times. In the middle, in the valley, the log-normal $\sigma$ comes out best.

# %% [markdown] tags=["pt"]
# ## 7. Seis treinos, um termo a mais de cada vez
#
# Agora os números que contam. A mesma rede pequena (três camadas, largura 64) é treinada seis vezes com o mesmo
# orçamento: primeiro nua, depois com um termo a mais de cada vez. `terms` é a lista dos que já entraram.
#
# Medimos quanto um denoiser é pior que o perfeito. $D^*$ também é uma projeção, sobre tudo o que $x$ permite dizer de
# $x_0$; Pitágoras vale outra vez, e o excesso é uma distância:
#
# $$L = L^* + \mathbb E\, \lVert D - D^* \rVert^2.$$
#
# **Primeiro o número.** Na coluna da esquerda, ruído fraco, a rede nua erra por mais de 10 (lembre: não fazer nada
# além de $c_\text{skip}\,x$ dá cerca de 0), e $c_\text{skip}$ e $c_\text{out}$ cortam isso cerca de mil vezes. No
# meio, no vale, o $\sigma$ log-normal sai melhor.

# %%
TERMS = ["c_in", "c_skip, c_out", "λ", "c_noise", "ln σ ~ N"]


def new_network(generator, width=64):
    layers = [nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    return nn.Sequential(*layers)


def wrapped(network, terms):
    def denoiser(x, sigma):
        told = edm.c_noise(sigma) if "c_noise" in terms else sigma
        scaled = edm.c_in(sigma, SIGMA_DATA)[:, None] * x if "c_in" in terms else x
        F = network(torch.cat([scaled, told[:, None]], dim=1))
        return edm.denoise(F, x, sigma, SIGMA_DATA) if "c_skip, c_out" in terms else F

    return denoiser


def draw_sigma(count, terms, generator):
    if "ln σ ~ N" in terms:
        return noise.log_normal_sigma(torch.randn(count, generator=generator), P_MEAN, P_STD)
    low, high = LEVELS[0].log(), LEVELS[-1].log()
    return torch.exp(low + (high - low) * torch.rand(count, generator=generator))


def train(terms, weight=edm.loss_weight, steps=STEPS, seed=0, batch=512, rate=3e-3):
    generator = torch.Generator().manual_seed(seed)
    network = new_network(generator)
    denoiser = wrapped(network, terms)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        x0, sigma = draw(batch, generator), draw_sigma(batch, terms, generator)
        x = noise.add_noise(x0, torch.randn(batch, 2, generator=generator), sigma)
        error = ((denoiser(x, sigma) - x0) ** 2).mean(dim=1)
        loss = (weight(sigma, SIGMA_DATA) * error if "λ" in terms else error).mean()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser


def excess(denoiser, count=SAMPLES // 10):
    result = []
    for sigma in LEVELS:
        _, _, x, level = noisy(sigma, count, seed=2)
        with torch.no_grad():
            distance = ((denoiser(x, level) - perfect(x, level)) ** 2).mean()
        result.append(edm.loss_weight(sigma, SIGMA_DATA) * distance)
    return torch.stack(result)


WEAK, STRONG = LEVELS < 0.03, LEVELS > 3
BANDS = (WEAK, ~WEAK & ~STRONG, STRONG)


def row(name, values):
    print(f"{name:>15}" + "".join(f"{values[band].mean():>12.4f}" for band in BANDS))


print(f"{'λ (L - L*)':>15}{'σ < 0.03':>12}{'0.03 … 3':>12}{'σ > 3':>12}")
ladder = {}
for count in range(len(TERMS) + 1):
    name = "+ " + TERMS[count - 1] if count else "F(x, σ)"
    ladder[name] = excess(train(TERMS[:count]))
    row(name, ladder[name])

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(7.5, 3.4))
shades = plt.get_cmap("viridis")(torch.linspace(0, 0.9, len(ladder)).tolist())
for (name, values), shade in zip(ladder.items(), shades, strict=True):
    panel.loglog(LEVELS, values, color=shade, label=name)
panel.set(xlabel=r"$\sigma$", ylabel=r"$\lambda\,(L - L^*)$")
panel.legend(fontsize=10, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown] tags=["en"]
# Read the table row by row, and be strict with each term.
#
# * $c_\text{in}$ helps where noise is strong, and is no help in the left column, which may even come out worse: there
#   the trouble is not the input.
# * $c_\text{skip}$ and $c_\text{out}$ do away with that trouble. Nothing below comes near this step.
# * $\lambda$ and $c_\text{noise}$ gain another factor of a few where noise is weak.
# * The log-normal $\sigma$ moves effort from the ends, where all are good already, into the valley. It costs something
#   at the left: nothing is free.
#
# The right column was never in danger; the last two terms even cost it a few thousandths. A term that wins nothing on
# *your* problem may still be right on others, and the other way round; the table is how to find out.

# %% [markdown] tags=["pt"]
# Leia a tabela linha por linha, e seja severo com cada termo.
#
# * $c_\text{in}$ ajuda onde o ruído é forte, e em nada ajuda a coluna da esquerda, que pode até piorar: ali o problema
#   não é a entrada.
# * $c_\text{skip}$ e $c_\text{out}$ acabam com esse problema. Nada do que vem depois chega perto desse salto.
# * $\lambda$ e $c_\text{noise}$ ainda reduzem o erro algumas vezes onde o ruído é fraco.
# * O $\sigma$ log-normal tira esforço das pontas, onde todos já vão bem, e o põe no vale. Custa algo à esquerda: nada
#   é de graça.
#
# A coluna da direita nunca esteve em perigo; os dois últimos termos até lhe custam alguns milésimos. Um termo que nada
# ganha no *seu* problema pode estar certo em outros, e vice-versa; a tabela é o modo de descobrir.

# %% [markdown] tags=["en"]
# ## 8. $u$: the weight that training learns
#
# $\lambda$ makes all levels equal *at the beginning*. As training goes on they drift apart: in our valley $\lambda L$
# falls to 0.5 while the ends stay at 1; in a video model the gap is larger. So a second, tiny network $u(\sigma)$
# learns how large the error still is, and the loss becomes
#
# $$\mathcal L = \frac{\lambda(\sigma)}{e^{u(\sigma)}}\, L + u(\sigma).$$
#
# A large $u$ makes the first term vanish but costs $u$; a small $u$ is cheap but magnifies the error. Where is the
# balance?
#
# ### Exercise 3: the balance
#
# Call the weighted error $E = \lambda L$. Which $u$ makes $E\,e^{-u} + u$ smallest?

# %% [markdown] tags=["pt"]
# ## 8. $u$: o peso que o treino aprende
#
# $\lambda$ iguala os níveis *no começo*. Com o treino eles se afastam: no nosso vale $\lambda L$ cai a 0,5 enquanto as
# pontas ficam em 1; num modelo de vídeo a distância é maior. Por isso uma segunda rede, minúscula, $u(\sigma)$,
# aprende de que tamanho o erro ainda é, e a perda passa a ser
#
# $$\mathcal L = \frac{\lambda(\sigma)}{e^{u(\sigma)}}\, L + u(\sigma).$$
#
# Um $u$ grande faz sumir o primeiro termo, mas custa $u$; um $u$ pequeno é barato, mas amplia o erro. Onde está o
# equilíbrio?
#
# ### Exercício 3: o equilíbrio
#
# Chame de $E = \lambda L$ o erro ponderado. Que $u$ torna mínimo $E\,e^{-u} + u$?


# %%
def best_logvar(weighted_error):
    raise NotImplementedError


check("02.best_logvar", best_logvar)

# %% [markdown] tags=["en"]
# **The number first.** At the optimum $e^{u} = \lambda L$, so after training the dashed curve $e^{u(\sigma)}$ lies on
# the measured $\lambda L(\sigma)$, within a few percent where $\sigma$ was drawn often. The loss there is
# $1 + \ln(\lambda L)$. It turns *negative* as soon as $\lambda L < e^{-1} = 0.37$. People report that as a bug; it is
# the design.
#
# $u$ is what Cosmos has: one linear layer on random cosines of $c_\text{noise}$ (`losses.log_variance`), starting at
# zero.

# %% [markdown] tags=["pt"]
# **Primeiro o número.** No ótimo, $e^{u} = \lambda L$; depois do treino, portanto, a curva tracejada $e^{u(\sigma)}$
# fica sobre o $\lambda L(\sigma)$ medido, com diferença de poucos por cento onde $\sigma$ foi sorteado muitas vezes. A
# perda ali vale $1 + \ln(\lambda L)$. Ela fica *negativa* assim que $\lambda L < e^{-1} = 0{,}37$. Há quem relate isso
# como defeito; é de propósito.
#
# $u$ é como no Cosmos: uma camada linear sobre cossenos aleatórios de $c_\text{noise}$ (`losses.log_variance`), que
# começa em zero.


# %%
def train_with_uncertainty(steps=2 * STEPS, seed=0, batch=512, rate=3e-3):
    generator = torch.Generator().manual_seed(seed)
    network = new_network(generator)
    denoiser = wrapped(network, TERMS)
    frequencies = 2 * math.pi * torch.randn(32, generator=generator)
    phases = 2 * math.pi * torch.rand(32, generator=generator)
    weight = nn.Parameter(torch.zeros(32))
    optimizer = torch.optim.Adam([*network.parameters(), weight])
    for step in range(steps):
        x0, sigma = draw(batch, generator), draw_sigma(batch, TERMS, generator)
        x = noise.add_noise(x0, torch.randn(batch, 2, generator=generator), sigma)
        error = ((denoiser(x, sigma) - x0) ** 2).mean(dim=1)
        u = losses.log_variance(sigma, frequencies, phases, weight)
        loss = losses.uncertainty_weighted(error, edm.loss_weight(sigma, SIGMA_DATA), u).mean()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser, lambda sigma: losses.log_variance(sigma, frequencies, phases, weight.detach())


learned, u = train_with_uncertainty()
after = torch.stack([weighted_error(learned, sigma) for sigma in LEVELS])
often = (LEVELS.log() - P_MEAN).abs() < 1.5 * P_STD
print(f"mean |e^u / λL - 1|  = {(u(LEVELS).exp() / after - 1).abs()[often].mean():.3f}")
print(f"mean |L / L* - 1|    = {(after / floor - 1).abs()[often].mean():.3f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(7, 3.2))
panel.semilogx(LEVELS, right, "s", ms=4, color="C4", label=r"$\lambda L$,  $F = 0$")
panel.semilogx(LEVELS, floor, "k", lw=1.5, label=r"$\lambda L^*$")
panel.semilogx(LEVELS, after, "o", ms=5, color="C0", label=r"$\lambda L$")
panel.semilogx(LEVELS, u(LEVELS).exp(), "--", color="C1", label=r"$e^{u}$")
panel.set(xlabel=r"$\sigma$", ylim=(0, 1.25))
panel.legend(loc="lower left")
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_losses.py::test_the_best_uncertainty_is_the_weighted_error_itself` and
# `tests/equations/test_losses.py::test_at_the_best_uncertainty_every_noise_level_pulls_alike` · the equations:
# [losses.uncertainty_weighted](../docs/en/equations/losses.md#eq-losses.uncertainty_weighted),
# [losses.log_variance](../docs/en/equations/losses.md#eq-losses.log_variance)
#
# And here is the learned denoiser beside the perfect one: from points of a grid an arrow half-way to $D$. At low noise
# each point runs to its blob; at high noise all run to the middle.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_losses.py::test_the_best_uncertainty_is_the_weighted_error_itself` e
# `tests/equations/test_losses.py::test_at_the_best_uncertainty_every_noise_level_pulls_alike` · as equações:
# [losses.uncertainty_weighted](../../docs/pt/equations/losses.md#eq-losses.uncertainty_weighted),
# [losses.log_variance](../../docs/pt/equations/losses.md#eq-losses.log_variance)
#
# E aqui está o denoiser aprendido ao lado do perfeito: de cada ponto de uma grade, uma seta até meio caminho de $D$.
# Com pouco ruído cada ponto corre para a sua mancha; com muito ruído, todos para o meio.

# %%
ticks = torch.linspace(-1.3, 1.3, 11)
grid = torch.cartesian_prod(ticks, ticks)

# %% tags=["figure"]
figure, panels = plt.subplots(2, 3, figsize=(8, 5.2), sharex=True, sharey=True)
for line, (name, denoiser) in zip(panels, ((r"$D^*$", perfect), (r"$D$", learned)), strict=True):
    for panel, sigma in zip(line, (0.15, 0.4, 1.0), strict=True):
        with torch.no_grad():
            arrows = denoiser(grid, torch.full((len(grid),), sigma)) - grid
        panel.quiver(*grid.T, *arrows.T, color="C0", angles="xy", scale_units="xy", scale=2, width=0.006)
        panel.scatter(*MEANS.T, s=60, facecolors="none", edgecolors="C1", linewidths=1.5)
        panel.set(title=rf"{name},  $\sigma = {sigma}$", aspect="equal")
        panel.axis("off")
plt.show()

# %% [markdown] tags=["en"]
# ## 9. Break it
#
# **Without the square.** We train once more, all terms in place, but with the weight as the text we grew from prints
# it.
#
# **The number first.** The share of the loss that comes from $\sigma > 1$ should be the share of the draws from there,
# 25 %. With the wrong weight $\lambda L = \sigma\,\sigma_\text{data}$, and a log-normal's mass moves by $P_\text{std}$
# standard deviations: 87 %. Nearly nine tenths of the training's attention go where there is hardly anything to learn;
# expect the excess in the valley to grow several times, while the ends, nearly done anyway, do not suffer.

# %% [markdown] tags=["pt"]
# ## 9. Quebre-o
#
# **Sem o quadrado.** Treinamos mais uma vez, com todos os termos no lugar, mas com o peso como o imprime o texto de
# onde nascemos.
#
# **Primeiro o número.** A parte da perda que vem de $\sigma > 1$ deveria ser a parte dos sorteios dali, 25 %. Com o
# peso errado, $\lambda L = \sigma\,\sigma_\text{data}$, e a massa de uma log-normal se desloca $P_\text{std}$ desvios
# padrão: 87 %. Quase nove décimos da atenção do treino vão para onde quase nada há a aprender; espere que o excesso no
# vale cresça várias vezes, enquanto as pontas, quase prontas de qualquer modo, nada sofrem.

# %%
sigma = noise.log_normal_sigma(torch.randn(200_000, generator=torch.Generator().manual_seed(3)), P_MEAN, P_STD)
for name, weight in (("(σ σ_data)²", edm.loss_weight), ("σ σ_data", without_the_square)):
    contribution = weight(sigma, SIGMA_DATA) * edm.c_out(sigma, SIGMA_DATA) ** 2
    print(f"{name:>15}  σ > 1: {contribution[sigma > 1].sum() / contribution.sum():.0%}")

print()
print(f"{'λ (L - L*)':>15}{'σ < 0.03':>12}{'0.03 … 3':>12}{'σ > 3':>12}")
row("(σ σ_data)²", ladder["+ ln σ ~ N"])
broken = excess(train(TERMS, weight=without_the_square))
row("σ σ_data", broken)

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.loglog(
    LEVELS, ladder["+ ln σ ~ N"], "o-", ms=4, label=r"$(\sigma^2 + \sigma_{data}^2) / (\sigma \sigma_{data})^2$"
)
panel.loglog(LEVELS, broken, "x--", ms=6, label=r"$(\sigma^2 + \sigma_{data}^2) / (\sigma \sigma_{data})$")
panel.set(xlabel=r"$\sigma$", ylabel=r"$\lambda\,(L - L^*)$")
panel.legend(fontsize=10)
plt.show()

# %% [markdown] tags=["en"]
# *Held by* `tests/equations/test_impostors.py::test_no_impostor_passes[edm.loss_weight-loss_weight_of_the_seed]`: the
# wrong form is an impostor, and the laws reject it · [errata](../docs/en/errata.md#lambda-square)
#
# **Without $e^{-u}$.** The same text prints the total loss as $\lambda L + u$. Train nothing but $u$, at one level
# where $\lambda L = 0.5$, by plain gradient descent at rate 0.1.
#
# **The number first.** With $e^{-u}$, $u$ settles at $\ln 0.5 = -0.69$ and the loss at 0.31. Without it the slope is 1
# whatever happens: after 300 steps $u = -30$, the loss is $-29.5$, and it would go on for ever. A splendid learning
# curve, and nothing was learned: $\lambda L$ is 0.5 as before.

# %% [markdown] tags=["pt"]
# *Garantido por* `tests/equations/test_impostors.py::test_no_impostor_passes[edm.loss_weight-loss_weight_of_the_seed]`:
# a forma errada é um impostor, e as leis o rejeitam · [errata](../../docs/pt/errata.md#lambda-square)
#
# **Sem $e^{-u}$.** O mesmo texto imprime a perda total como $\lambda L + u$. Treine apenas $u$, num nível em que
# $\lambda L = 0{,}5$, por descida de gradiente simples com taxa 0,1.
#
# **Primeiro o número.** Com $e^{-u}$, $u$ para em $\ln 0{,}5 = -0{,}69$ e a perda em 0,31. Sem ele a inclinação é 1,
# aconteça o que acontecer: depois de 300 passos $u = -30$, a perda é $-29{,}5$, e continuaria para sempre. Uma curva
# de aprendizado esplêndida, e nada foi aprendido: $\lambda L$ continua em 0,5.


# %%
def descend(total_loss, steps=300, rate=0.1):
    u, curve = torch.zeros(1, requires_grad=True), []
    for _ in range(steps):
        loss = total_loss(torch.tensor([0.5]), torch.ones(1), u)
        (slope,) = torch.autograd.grad(loss.sum(), u)
        u = (u - rate * slope).detach().requires_grad_()
        curve.append(total_loss(torch.tensor([0.5]), torch.ones(1), u).item())
    return u.item(), curve


def without_the_division(L, loss_weight, logvar):
    return loss_weight * L + logvar


curves = {}
for name, total_loss in (("λL e⁻ᵘ + u", losses.uncertainty_weighted), ("λL + u", without_the_division)):
    end, curves[name] = descend(total_loss)
    print(f"{name:<12}  u = {end:.2f}   ℒ = {curves[name][-1]:.2f}")

# %% tags=["figure"]
figure, panel = plt.subplots(figsize=(6, 2.8))
panel.plot(curves["λL e⁻ᵘ + u"], label=r"$\lambda L\, e^{-u} + u$")
panel.plot(curves["λL + u"], "--", label=r"$\lambda L + u$")
panel.set(xlabel=r"$i$", ylabel=r"$\mathcal{L}$")
panel.legend()
plt.show()

# %% [markdown] tags=["en"]
# *Held by*
# `tests/equations/test_impostors.py::test_no_impostor_passes[losses.uncertainty_weighted-uncertainty_of_the_seed]`:
# again an impostor that the laws reject · [errata](../docs/en/errata.md#total-loss-exp)
#
# ## What to keep
#
# Three of the terms are projections and their lengths ($c_\text{skip}$, $c_\text{out}$, $c_\text{in}$), one is a ruler
# ($c_\text{noise}$), one says where to look ($P_\text{mean}, P_\text{std}$), and two keep the levels equal: $\lambda$
# at the beginning, $u$ ever after. None is there by taste. In the next tutorial the denoiser is given, and we ask how
# to walk with it from noise to a sample.

# %% [markdown] tags=["pt"]
# *Garantido por*
# `tests/equations/test_impostors.py::test_no_impostor_passes[losses.uncertainty_weighted-uncertainty_of_the_seed]`:
# outra vez um impostor que as leis rejeitam · [errata](../../docs/pt/errata.md#total-loss-exp)
#
# ## O que guardar
#
# Três dos termos são projeções e os seus comprimentos ($c_\text{skip}$, $c_\text{out}$, $c_\text{in}$), um é uma régua
# ($c_\text{noise}$), um diz para onde olhar ($P_\text{mean}, P_\text{std}$), e dois mantêm os níveis iguais: $\lambda$
# no começo, $u$ daí em diante. Nenhum está lá por gosto. No próximo tutorial o denoiser é dado, e perguntamos como
# caminhar com ele do ruído até uma amostra.
