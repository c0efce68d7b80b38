"""Drawings of equations, with impostors beside them. They hold symbols and numbers, no words.

A drawing is a function of the axes to draw on, the equation's function, and the impostors that it names.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.patches import Rectangle

from cosmos_ref.equations import exact

RIGHT, WRONG, FAINT, TEXT = "#0a0a01", ("#0a0a02", "#0a0a03"), "#0a0a04", "#0a0a05"
"""Not colours but names of colours: the page says what they look like in its theme."""
DASHES = ((0, (4, 2)), (0, (1, 1.5)))
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Picture:
    """How an equation is drawn, and what is said about the drawing."""

    draw: Callable
    wrong: tuple[str, ...]
    """Names of the impostors that it shows."""
    caption: dict[str, str]
    size: tuple[float, float]
    """Inches; the page scales it."""


PICTURES: dict[str, Picture] = {}


def picture(id: str, *wrong: str, en: str, pt: str, size: tuple[float, float] = (5.6, 2.5)) -> Callable:
    """Register the drawing of an equation."""

    def register(draw: Callable) -> Callable:
        PICTURES[id] = Picture(draw, wrong, {"en": en, "pt": pt}, size)
        return draw

    return register


def style(number: int) -> dict:
    """How to draw the equation (0) or an impostor (from 1 on)."""
    if number == 0:
        return {"color": RIGHT, "zorder": 3}
    return {"color": WRONG[number - 1], "linestyle": DASHES[number - 1], "zorder": 4}


def lines(axes, x, curves, **more) -> None:
    """The equation and its impostors over the same axis."""
    for number, y in enumerate(curves):
        axes.plot(x, y, **(style(number) | more))


def over_sigma(axes, functions, label: str, y: str = "log", arguments: tuple = (SIGMA_DATA,)) -> None:
    """Functions of sigma over all noise levels of the schedule."""
    sigma = torch.logspace(math.log10(2e-3), math.log10(80), 200, dtype=torch.float64)
    lines(axes, sigma, [function(sigma, *arguments) for function in functions])
    axes.set(xscale="log", yscale=y, xlabel=r"$\sigma$", ylabel=label)


def boxes(axes, rows: list[list[str]], fills: list[list[str]], labels: list[str]) -> None:
    """Rows of boxes with something written in each."""
    for y, (row, colours) in enumerate(zip(rows, fills, strict=True)):
        for x, (text, colour) in enumerate(zip(row, colours, strict=True)):
            patch = {"facecolor": colour, "alpha": 0.35} if colour else {"facecolor": "none"}
            axes.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88, 0.8, **patch, lw=0))
            axes.add_patch(Rectangle((x + 0.06, y + 0.1), 0.88, 0.8, facecolor="none", edgecolor=TEXT, lw=0.6))
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center")
        axes.text(-0.15, y + 0.5, labels[y], ha="right", va="center")
    axes.set(xlim=(-0.2, max(map(len, rows))), ylim=(len(rows), 0), aspect="equal")
    axes.axis("off")
    axes.figure.subplots_adjust(left=0.1 if any(labels) else 0.02, right=0.98, bottom=0, top=1)


def rms(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Root mean square."""
    return x.square().mean(dim).sqrt()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- preconditioning


@picture(
    "edm.c_skip",
    "c_skip_without_squares",
    en="\\(c_\\text{skip}\\) for \\(\\sigma_\\text{data} = 0.5\\):",
    pt="\\(c_\\text{skip}\\) com \\(\\sigma_\\text{data} = 0.5\\):",
)
def c_skip(axes, *functions):
    over_sigma(axes, functions, r"$c_\mathrm{skip}$", y="linear")


@picture(
    "edm.c_out",
    "c_out_without_root",
    en="\\(c_\\text{out}\\) grows with \\(\\sigma\\) until it is \\(\\sigma_\\text{data} = 0.5\\):",
    pt="\\(c_\\text{out}\\) cresce com \\(\\sigma\\) até ser \\(\\sigma_\\text{data} = 0.5\\):",
)
def c_out(axes, *functions):
    over_sigma(axes, functions, r"$c_\mathrm{out}$")


@picture(
    "edm.c_in",
    "c_in_without_root",
    "c_in_for_unit_data",
    en="\\(c_\\text{in}\\) for \\(\\sigma_\\text{data} = 0.5\\):",
    pt="\\(c_\\text{in}\\) com \\(\\sigma_\\text{data} = 0.5\\):",
)
def c_in(axes, *functions):
    over_sigma(axes, functions, r"$c_\mathrm{in}$")


@picture(
    "edm.c_noise",
    "c_noise_in_decades",
    en="What the network is told of \\(\\sigma\\):",
    pt="O que se diz à rede sobre \\(\\sigma\\):",
)
def c_noise(axes, *functions):
    over_sigma(axes, functions, r"$c_\mathrm{noise}$", y="linear", arguments=())


@picture(
    "edm.network_target",
    "target_with_misplaced_parentheses",
    "target_is_the_clean_sample",
    en="Root mean square of what the network must say, for data of \\(\\sigma_\\text{data} = 0.5\\). It is 1 "
    "throughout:",
    pt="Média quadrática do que a rede deve dizer, para dados com \\(\\sigma_\\text{data} = 0.5\\). É sempre 1:",
)
def network_target(axes, *functions):
    sigma = torch.logspace(math.log10(2e-3), math.log10(80), 60, dtype=torch.float64)
    x0, n = SIGMA_DATA * normal(1, 8192), normal(1, 8192, seed=1)
    x0 = x0.expand(len(sigma), -1)
    lines(axes, sigma, [rms(f(x0, x0 + sigma[:, None] * n, sigma, SIGMA_DATA)) for f in functions])
    axes.set(xscale="log", yscale="log", xlabel=r"$\sigma$", ylabel=r"$\|F\|$")


@picture(
    "edm.loss_weight",
    "loss_weight_of_the_seed",
    "loss_weight_is_snr",
    en="\\(\\lambda(\\sigma)\\) for \\(\\sigma_\\text{data} = 0.5\\). At high noise it levels off at "
    "\\(1/\\sigma_\\text{data}^2 = 4\\):",
    pt="\\(\\lambda(\\sigma)\\) com \\(\\sigma_\\text{data} = 0.5\\). Com muito ruído, estabiliza em "
    "\\(1/\\sigma_\\text{data}^2 = 4\\):",
)
def loss_weight(axes, *functions):
    over_sigma(axes, functions, r"$\lambda(\sigma)$")


# --- noise


@picture(
    "noise.add_noise",
    "add_noise_by_mixing",
    "add_noise_of_that_variance",
    en="Standard deviation of the noisy sample, for data of standard deviation 0.5:",
    pt="Desvio padrão da amostra ruidosa, para dados com desvio padrão 0.5:",
)
def add_noise(axes, *functions):
    sigma = torch.logspace(math.log10(2e-3), math.log10(80), 60, dtype=torch.float64)
    x0, n = SIGMA_DATA * normal(1, 8192), normal(1, 8192, seed=1)
    x0, n = x0.expand(len(sigma), -1), n.expand(len(sigma), -1)
    lines(axes, sigma, [rms(f(x0, n, sigma)) for f in functions])
    axes.set(xscale="log", yscale="log", xlabel=r"$\sigma$", ylabel=r"$\mathrm{std}(x)$")


@picture(
    "noise.log_normal_sigma",
    "log_normal_with_that_mean",
    "log_normal_of_edm",
    en="How often training sees a noise level, for \\(P_\\text{mean} = 0\\), \\(P_\\text{std} = 1\\):",
    pt="Com que frequência o treino vê um nível de ruído, para \\(P_\\text{mean} = 0\\), \\(P_\\text{std} = 1\\):",
)
def log_normal_sigma(axes, *functions):
    z = torch.linspace(-4, 4, 300, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    for number, function in enumerate(functions):
        sigma = function(z, 0.0, 1.0)
        axes.plot(sigma, density / np.gradient(np.log(sigma.numpy()), z.numpy()), **style(number))
    axes.set(xscale="log", xlabel=r"$\sigma$", ylabel=r"$p(\ln \sigma)$", xlim=(2e-3, 80), ylim=(0, None))


@picture(
    "noise.video_noise_shift",
    "shift_without_root",
    "shift_of_pixel_frames",
    en="Factor by which a video's noise is raised, over its latent frames:",
    pt="Fator pelo qual se eleva o ruído de um vídeo, conforme os seus quadros latentes:",
)
def video_noise_shift(axes, *functions):
    frames, one = range(1, 17), torch.ones((), dtype=torch.float64)
    lines(axes, frames, [[f(one, count) for count in frames] for f in functions], marker=".")
    axes.set(xlabel=r"$T_\mathrm{latent}$", ylabel=r"$\sigma' / \sigma$")


@picture(
    "noise.karras_sigmas",
    "karras_with_inverted_rho",
    "karras_linear",
    en="The 35 levels of the sampler from 80 to 0.002, \\(\\rho = 7\\) (the zero at the end has no place on "
    "this axis):",
    pt="Os 35 níveis do amostrador, de 80 a 0.002, \\(\\rho = 7\\) (o zero do fim não cabe neste eixo):",
)
def karras_sigmas(axes, *functions):
    lines(axes, range(35), [f(35, 0.002, 80.0, 7.0)[:35] for f in functions], marker=".", markersize=3)
    axes.set(yscale="log", xlabel=r"$i$", ylabel=r"$\sigma_i$")


# --- losses


@picture(
    "losses.denoising_error",
    "error_over_generated_frames",
    "error_of_the_batch",
    en="Error of a clip of 8 latent frames in which every generated frame has an error of 1, over the number "
    "of given "
    "frames; the batch is all of these clips together:",
    pt="Erro de um clipe de 8 quadros latentes em que cada quadro gerado tem erro 1, conforme o número de "
    "quadros dados; "
    "o lote são todos estes clipes juntos:",
)
def denoising_error(axes, *functions):
    given = torch.arange(8)
    mask = (torch.arange(8) < given[:, None]).double().reshape(8, 1, 8, 1, 1)
    x0 = torch.zeros(8, 2, 8, 2, 2, dtype=torch.float64)
    lines(axes, given, [f(x0 + 1, x0, mask) for f in functions], marker=".")
    axes.set(xlabel=r"$n$", ylabel=r"$L$", ylim=(0, 1.1))


@picture(
    "losses.uncertainty_weighted",
    "uncertainty_of_the_seed",
    "uncertainty_as_log_std",
    en="The loss over \\(u\\), for a weighted error \\(\\lambda L = 0.3\\). The dot is its minimum, at "
    "\\(u = \\ln 0.3\\); the seed's goes down without end:",
    pt="A perda conforme \\(u\\), para um erro ponderado \\(\\lambda L = 0.3\\). O ponto é o mínimo, em "
    "\\(u = \\ln 0.3\\); a do texto de origem desce sem fim:",
)
def uncertainty_weighted(axes, *functions):
    u = torch.linspace(-4, 3, 200, dtype=torch.float64)
    L = torch.full_like(u, 0.3)
    lines(axes, u, [f(L, torch.ones_like(u), u) for f in functions])
    at = torch.tensor([math.log(0.3)], dtype=torch.float64)
    axes.plot(at, functions[0](L[:1], torch.ones(1), at), "o", color=RIGHT, zorder=5)
    axes.set(xlabel=r"$u$", ylabel=r"$\mathcal{L}$", ylim=(-4, 6))


# --- solvers


def errors(run: Callable, steps: list[int]) -> list[float]:
    """Error at sigma 0.1 of a sampler that starts at 10, on Gaussian data, whose flow is known."""
    start, std = torch.tensor([[10.0]], dtype=torch.float64), 0.5

    def denoise(x, sigma):
        return exact.gaussian_denoiser(x, x.new_tensor(sigma), x.new_zeros(()), std)

    truth = exact.gaussian_flow(start, start.new_tensor(10.0), start.new_tensor(0.1), start.new_zeros(()), std)
    return [abs(run(denoise, start, np.geomspace(10, 0.1, n + 1).tolist()) - truth).item() for n in steps]


def orders(axes, runs: list[Callable]) -> None:
    """Error over the number of steps, with the slope of each line beside it."""
    steps = [8, 16, 32, 64, 128]
    for number, run in enumerate(runs):
        error = errors(run, steps)
        slope = np.polyfit(np.log(steps[2:]), np.log(error[2:]), 1)[0]
        axes.plot(steps, error, marker=".", **style(number))
        axes.annotate(
            f" {round(slope, 1) + 0.0:.1f}".replace("-", "\u2212"),
            (steps[-1], error[-1]),
            va="center",
            color=style(number)["color"],
        )
    axes.set(xscale="log", yscale="log", xlabel=r"$N$", ylabel=r"$|x_N - x(\sigma_N)|$", xticks=steps)
    axes.set_xticks(steps, labels=map(str, steps))
    axes.minorticks_off()
    axes.set_xlim(7, 180)


@picture(
    "solvers.ode_derivative",
    "derivative_points_away",
    en="Samples follow the slope from right to left: the noise falls, and each ends at one of the two points "
    "that are "
    "the data (at \\(\\pm 1\\)).",
    pt="As amostras seguem a inclinação da direita para a esquerda: o ruído diminui, e cada uma termina num "
    "dos dois "
    "pontos que são os dados (em \\(\\pm 1\\)).",
)
def ode_derivative(axes, *functions):
    levels = np.geomspace(4, 0.05, 200)
    for number, slope in enumerate(functions):
        x = torch.linspace(-6, 6, 13, dtype=torch.float64) if number == 0 else torch.tensor([-2.0, 2.0]).double()
        path = [x]
        for sigma, sigma_next in itertools.pairwise(levels):
            x = x + (sigma_next - sigma) * slope(x, torch.tanh(x / sigma**2), sigma)
            path.append(x)
        axes.plot(levels, torch.stack(path), **(style(number) | {"linewidth": 1.2}))
    axes.set(xlabel=r"$\sigma$", ylabel=r"$x$", ylim=(-6.5, 6.5), xlim=(0, 4))


def euler(step: Callable) -> Callable:
    def run(denoise, x, levels):
        for sigma, sigma_next in itertools.pairwise(levels):
            x = step(x, denoise(x, sigma), sigma, sigma_next)
        return x

    return run


@picture(
    "solvers.euler_step",
    "euler_with_the_drift_of_the_sde",
    en="Error over the number of steps, on data whose flow is known. Twice the steps, half the error (slope \u22121):",
    pt="Erro conforme o número de passos, em dados cujo fluxo é conhecido. O dobro dos passos, metade do erro "
    "(inclinação \u22121):",
)
def euler_step(axes, *functions):
    orders(axes, [euler(step) for step in functions])


def two_calls(step: Callable) -> Callable:
    """A sampler of steps that call the denoiser by themselves."""

    def run(denoise, x, levels):
        for sigma, sigma_next in itertools.pairwise(levels):
            x = step(denoise, x, sigma, sigma_next)
        return x

    return run


@picture(
    "solvers.heun_step",
    "heun_of_nvidia_naive",
    "heun_of_nvidia_edm",
    en="Error over the number of steps. Twice the steps, a quarter of the error (slope \u22122):",
    pt="Erro conforme o número de passos. O dobro dos passos, um quarto do erro (inclinação \u22122):",
)
def heun_step(axes, *functions):
    orders(axes, [two_calls(step) for step in functions])


@picture(
    "solvers.res_2mid_step",
    "res_2mid_weighed_as_the_end",
    "res_2mid_at_the_old_state",
    en="Error over the number of steps, each of two calls of the network (slope \u22122):",
    pt="Erro conforme o número de passos, cada um com duas chamadas da rede (inclinação \u22122):",
)
def res_2mid_step(axes, *functions):
    orders(axes, [two_calls(step) for step in functions])


@picture(
    "solvers.res_2ab_step",
    "res_2ab_with_c2_flipped",
    "res_2ab_without_memory",
    en="Error over the number of steps: second order at one call of the network a step (slope \u22122):",
    pt="Erro conforme o número de passos: segunda ordem com uma chamada da rede por passo (inclinação \u22122):",
)
def res_2ab_step(axes, *functions):
    def along(step):
        def run(denoise, x, levels):
            D_previous = denoise(x, levels[0])
            x = D_previous + (x - D_previous) * levels[1] / levels[0]
            for previous, sigma, sigma_next in zip(levels, levels[1:], levels[2:], strict=False):
                D = denoise(x, sigma)
                x = step(x, D, D_previous, sigma, sigma_next, previous)
                D_previous = D
            return x

        return run

    orders(axes, [along(step) for step in functions])


@picture(
    "guidance.cfg",
    "cfg_from_the_unconditional",
    "cfg_with_the_sign_turned",
    en="The guided estimate over \\(g\\), where the text says 1 and no text says 0. Without guidance it is "
    "what the text "
    "says:",
    pt="A estimativa guiada conforme \\(g\\), onde o texto diz 1 e a ausência de texto diz 0. Sem guia, é o "
    "que o texto "
    "diz:",
)
def cfg(axes, *functions):
    g, one = torch.linspace(0, 7, 50), torch.ones(1)
    lines(axes, g, [[f(one, 0 * one, strength).item() for strength in g.tolist()] for f in functions])
    axes.set(xlabel=r"$g$", ylabel=r"$D$", xticks=range(8))


@picture(
    "forms.noise_loss_weight",
    "unweighted_noise_loss",
    "noise_weight_without_square",
    en="What the error of the noise estimate must be weighted by to be the loss of Cosmos, for "
    "\\(\\sigma_\\text{data} = 0.5\\):",
    pt="Com que peso o erro da estimativa do ruído é a perda do Cosmos, com \\(\\sigma_\\text{data} = 0.5\\):",
)
def noise_loss_weight(axes, *functions):
    over_sigma(axes, functions, r"$\lambda_\epsilon(\sigma)$")


# --- conditioning


@picture(
    "conditioning.frame_mask",
    "mask_of_the_last_frames",
    en="The frame mask of clips of 8 latent frames with 0, 1, 2 and 3 given ones. Above:",
    pt="A máscara de clipes de 8 quadros latentes com 0, 1, 2 e 3 quadros dados. Em cima:",
    size=(4.2, 4.0),
)
def frame_mask(axes, *functions):
    rows, fills, labels = [], [], []
    for number, function in enumerate(functions):
        for n, mask in enumerate(function(torch.arange(4), 8).reshape(4, 8).tolist()):
            rows.append([f"{value:.0f}" for value in mask])
            fills.append([style(number)["color"] if value else "" for value in mask])
            labels.append(f"$n = {n}$")
        if number == 0:
            rows, fills, labels = [*rows, []], [*fills, []], [*labels, ""]
    boxes(axes, rows, fills, labels)


@picture(
    "conditioning.augment_frames",
    "augment_with_one_scale",
    "augment_without_scale",
    en="Standard deviation of a given frame as the network sees it, over the noise level of the sample, for "
    "\\(\\sigma_a = 0.05\\), \\(\\sigma_\\text{data} = 0.5\\):",
    pt="Desvio padrão de um quadro dado como a rede o vê, conforme o nível de ruído da amostra, para "
    "\\(\\sigma_a = 0.05\\), \\(\\sigma_\\text{data} = 0.5\\):",
)
def augment_frames(axes, *functions):
    sigma = torch.logspace(-1, math.log10(80), 40, dtype=torch.float64)
    given = (math.hypot(SIGMA_DATA, 0.05) * normal(1, 1, 1, 32, 32)).expand(len(sigma), -1, -1, -1, -1)
    mask, augment = torch.ones(len(sigma), 1, 1, 1, 1).double(), torch.full_like(sigma, 0.05)
    lines(axes, sigma, [rms(f(given, given, mask, sigma, augment, SIGMA_DATA).flatten(1)) for f in functions])
    axes.set(xscale="log", yscale="log", xlabel=r"$\sigma$", ylabel=r"$\mathrm{std}$")


# --- network


@picture(
    "patches.patchify",
    "patchify_with_channel_innermost",
    en="Where the eight numbers of the first token come from: two channels A and B of a 2\u00d72 patch. Above:",
    pt="De onde vêm os oito números do primeiro token: dois canais A e B de um pedaço de 2\u00d72. Em cima:",
    size=(5.6, 1.4),
)
def patchify(axes, *functions):
    x = torch.arange(8).reshape(1, 2, 1, 2, 2)
    names = [f"${c}_{{{m}{n}}}$" for c in "AB" for m in range(2) for n in range(2)]
    orders = [function(x, (1, 2, 2)).flatten().tolist() for function in functions]
    fills = [[style(number)["color"] if i < 4 else "" for i in order] for number, order in enumerate(orders)]
    boxes(axes, [[names[i] for i in order] for order in orders], fills, ["", ""])


@picture(
    "embeddings.position_embedding",
    "position_with_eps_inside",
    "position_of_unit_length",
    en="Size of the embedding over the size of the sum that it is made of, \\(\\epsilon = 10^{-6}\\), width 64:",
    pt="Tamanho do embedding conforme o tamanho da soma de que é feito, \\(\\epsilon = 10^{-6}\\), largura 64:",
)
def position_embedding(axes, *functions):
    size = torch.logspace(-9, 1, 100, dtype=torch.float64)
    e = size[:, None] * normal(1, 64) / rms(normal(1, 64))
    lines(axes, size, [rms(f(e, 0 * e, 0 * e, 1e-6)) for f in functions])
    axes.set(xscale="log", yscale="log", xlabel=r"$\|e_t + e_h + e_w\| / \sqrt{D}$", ylabel=r"$\|e\| / \sqrt{D}$")


@picture(
    "rope.ntk_frequencies",
    "ntk_is_interpolation",
    "ntk_without_exponent",
    en="How much ratio 2 stretches the wavelengths of an axis of 44 channels: the shortest not at all, the "
    "longest twice:",
    pt="Quanto a razão 2 estica os comprimentos de onda de um eixo de 44 canais: o mais curto nada, o mais "
    "longo o dobro:",
)
def ntk_frequencies(axes, *functions):
    plain, stretched = ([f(44, ratio, 10000.0, torch.float64) for f in functions] for ratio in (1.0, 2.0))
    lines(axes, range(22), [a / b for a, b in zip(plain, stretched, strict=True)], marker=".")
    axes.set(ylim=(0.9, 2.1), xlabel=r"$i$", ylabel=r"$\theta_i(1) / \theta_i(2)$")


@picture(
    "rope.angles_3d",
    "angles_with_fps_inverted",
    en="The fastest angle of time over the latent frame, at 12 and at 24 frames a second. At 12 the frames are "
    "twice as far apart:",
    pt="O ângulo mais rápido do tempo conforme o quadro latente, a 12 e a 24 quadros por segundo. A 12, os quadros "
    "estão duas vezes mais longe uns dos outros:",
)
def angles_3d(axes, *functions):
    frames = torch.arange(9)
    positions = torch.stack([frames, 0 * frames, 0 * frames], dim=1)
    fps = torch.tensor([12.0, 24.0])
    for number, function in enumerate(functions):
        angles = function(positions, fps, 128, (1.0, 1.0, 1.0), 10000.0, 24.0)[:, :, 0]
        axes.plot(frames, angles.T, **style(number))
        for rate, line in zip(fps, angles, strict=True):
            if number == 0 or rate == 12:
                axes.annotate(f" {rate:.0f}", (8, line[-1]), va="center", color=style(number)["color"])
    axes.set(xlabel=r"$t$", ylabel=r"$\alpha_0$")


@picture(
    "rope.rotate",
    "rotate_without_minus",
    en="A pair of channels turned by growing angles keeps its length; in the impostor it grows:",
    pt="Um par de canais rodado por ângulos crescentes conserva o comprimento; no impostor, cresce:",
    size=(4.4, 2.8),
)
def rotate(axes, *functions):
    angle = torch.linspace(0, 1.4 * math.pi, 80, dtype=torch.float64)
    pair = torch.tensor([1.0, 0.3], dtype=torch.float64).expand(1, 1, 80, 2)
    cos, sin = (f(angle)[None, :, None].expand(1, 80, 2) for f in (torch.cos, torch.sin))
    for number, function in enumerate(functions):
        first, second = function(pair, cos, sin)[0, 0].T
        axes.plot(first, second, **style(number))
    axes.plot(1, 0.3, "o", color=TEXT, markersize=4, zorder=5)
    axes.set(xlabel=r"$x_1$", ylabel=r"$x_2$", aspect="equal")


@picture(
    "attention.softmax_attention",
    "attention_without_scale",
    "attention_divided_by_the_width",
    en="The largest weight among 64 keys, for normal queries and keys, over the width of a head. Divided by "
    "its root, "
    "attention is as sharp in a wide head as in a narrow one:",
    pt="O maior peso entre 64 chaves, para consultas e chaves normais, conforme a largura da cabeça. Dividida "
    "pela raiz, "
    "a atenção é tão nítida numa cabeça larga como numa estreita:",
)
def softmax_attention(axes, *functions):
    widths = [2, 4, 8, 16, 32, 64, 128]
    q, k = normal(1, 1, 256, 128), normal(1, 1, 64, 128, seed=1)
    v = torch.eye(64, dtype=torch.float64)[None, None]
    lines(
        axes,
        widths,
        [[f(q[..., :w], k[..., :w], v).amax(-1).mean() for w in widths] for f in functions],
        marker=".",
    )
    axes.set(xscale="log", xlabel=r"$K$", ylabel=r"$\max_m A_m$", ylim=(0, 1))
    axes.set_xticks(widths, labels=map(str, widths))
    axes.minorticks_off()


@picture(
    "attention.rms_norm",
    "rms_norm_with_eps_outside",
    "rms_norm_without_root",
    en="Size of the output over the size of the input, \\(\\epsilon = 10^{-6}\\):",
    pt="Tamanho da saída conforme o tamanho da entrada, \\(\\epsilon = 10^{-6}\\):",
)
def rms_norm(axes, *functions):
    size = torch.logspace(-7, 2, 100, dtype=torch.float64)
    x = size[:, None] * normal(1, 64) / rms(normal(1, 64))
    lines(axes, size, [rms(f(x, torch.ones(64, dtype=torch.float64), 1e-6)) for f in functions])
    axes.set(xscale="log", yscale="log", ylim=(1e-2, 1e2), xlabel=r"$\|x\| / \sqrt{K}$", ylabel=r"$\|y\| / \sqrt{K}$")


@picture(
    "modulation.modulate",
    "modulate_without_one",
    "modulate_shift_first",
    en="A token before and after, for scale 0.5 and shift 1; the faint line leaves it as it is, as scale 0 "
    "and shift 0 "
    "do:",
    pt="Um token antes e depois, para escala 0.5 e deslocamento 1; a linha clara deixa-o como está, como "
    "fazem escala 0 "
    "e deslocamento 0:",
)
def modulate(axes, *functions):
    x = torch.linspace(-3, 3, 31, dtype=torch.float64).reshape(1, 31, 1)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    axes.plot(x.flatten(), x.flatten(), color=FAINT)
    lines(axes, x.flatten(), [f(x, one, 0.5 * one).flatten() for f in functions])
    axes.set(xlabel=r"$x$", ylabel=r"$x'$")


@picture(
    "buckets.reflected_index",
    "index_with_the_border_repeated",
    "index_on_a_ring",
    en="Which pixels fill a line of 9 from one of 5. From above:",
    pt="Que pixels preenchem uma linha de 9 a partir de uma de 5. De cima para baixo:",
    size=(5.6, 2.0),
)
def reflected_index(axes, *functions):
    rows = [function(5, 9).tolist() for function in functions]
    fills = [["" if 2 <= i < 7 else style(n)["color"] for i in range(9)] for n in range(len(rows))]
    boxes(axes, [[str(i) for i in row] for row in rows], fills, ["", "", ""])


# --- tokenizers


@picture(
    "causal.causal_pad",
    "causal_pad_with_zeros",
    "causal_pad_mirrored",
    en="What a convolution over three frames sees of a clip of five. From above:",
    pt="O que uma convolução sobre três quadros vê de um clipe de cinco. De cima para baixo:",
    size=(4.9, 2.1),
)
def causal_pad(axes, *functions):
    x = torch.arange(1, 6).reshape(1, 1, 5, 1, 1)
    rows = [function(x, 2).flatten().tolist() for function in functions]
    fills = [[style(n)["color"] if i < 2 else "" for i in range(7)] for n in range(len(rows))]
    boxes(axes, [[f"$x_{i - 1}$" if i else "0" for i in row] for row in rows], fills, ["", "", ""])


@picture(
    "wavelets.haar_3d",
    "haar_orthonormal",
    en="A picture (left) and its four bands: the mean, and the differences across, down and along both. Above, the low "
    "band is as bright as the picture; below, twice as bright:",
    pt="Uma imagem (à esquerda) e as suas quatro bandas: a média e as diferenças na horizontal, na vertical e nas "
    "duas. Em cima, a banda baixa é tão clara como a imagem; em baixo, duas vezes mais clara:",
    size=(5.0, 2.2),
)
def haar_3d(axes, *functions):
    size, step = 32, 36
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    clip = (0.2 + 0.5 * ((x**2 + y**2) < 0.5) + 0.2 * (x > y) - 0.1 * (torch.arange(size) % 4 < 2)).double()
    sheet = torch.full((2 * (step + 5) - 9, 5 * step - 4), float("nan"), dtype=torch.float64)
    for row, function in enumerate(functions):
        bands = function(clip.reshape(1, 1, 1, size, size), (0, 1, 1))[0, :, 0]
        tiles = [clip, *torch.nn.functional.interpolate(bands[None], size=size)[0]]
        top = row * (step + 5)
        for column, tile in enumerate(tiles):
            sheet[top : top + size, column * step : column * step + size] = tile
        axes.plot([step, 5 * step - 5], [top + size + 2] * 2, **style(row))
    axes.imshow(sheet, cmap="gray", vmin=-0.6, vmax=1.6, interpolation="nearest")
    axes.set_ylim(2 * (step + 5) - 4, -1)
    axes.axis("off")
    axes.figure.subplots_adjust(left=0, right=1, bottom=0, top=1)


@picture(
    "whitening.principal_axes",
    "axes_in_the_order_of_eigh",
    en="The first principal axis of a cloud of points:",
    pt="O primeiro eixo principal de uma nuvem de pontos:",
    size=(4.4, 2.8),
)
def principal_axes(axes, *functions):
    points = normal(300, 2) @ torch.tensor([[1.6, 0.7], [0.0, 0.4]], dtype=torch.float64)
    axes.plot(*points.T, ".", color=FAINT, markersize=3)
    for number, function in enumerate(functions):
        (axis,) = function(points.T @ points / len(points), 1)
        axes.plot(*torch.stack([-3 * axis, 3 * axis]).T, **style(number))
    axes.set(aspect="equal", xlim=(-5, 5), ylim=(-3, 3))
    axes.axis("off")


@picture(
    "quantization.fsq_bound",
    "bound_without_offset",
    "bound_clamped",
    en="The range of a dimension of 8 levels. The faint lines are the integers that are its levels, from \u22124 to 3:",
    pt="O intervalo de uma dimensão de 8 níveis. As linhas claras são os inteiros que são os seus níveis, de "
    "\u22124 a 3:",
)
def fsq_bound(axes, *functions):
    z = torch.linspace(-5, 5, 200, dtype=torch.float64)
    for level in range(-4, 4):
        axes.axhline(level, color=FAINT, linewidth=0.8)
    lines(axes, z, [f(z[:, None], (8,), 1e-3)[:, 0] for f in functions])
    axes.set(xlabel=r"$z$", ylabel=r"$b(z)$", yticks=range(-4, 5, 2))


@picture(
    "quantization.fsq_quantize",
    "quantize_downwards",
    "quantize_by_the_half_width",
    en="The code of a dimension of 8 levels, from \u22121 on, over what the encoder says:",
    pt="O código de uma dimensão de 8 níveis, a partir de \u22121, conforme o que o codificador diz:",
)
def fsq_quantize(axes, *functions):
    z = torch.linspace(-3, 3, 1200, dtype=torch.float64)
    lines(axes, z, [f(z[:, None], (8,), 1e-3)[:, 0] for f in functions], linewidth=1.3)
    axes.set(xlabel=r"$z$", ylabel=r"$c$")


# --- training, evaluation, costs


@picture(
    "schedules.warmup",
    "warmup_by_cosine",
    "warmup_without_end",
    en="Factor of the learning rate over the first 4,000 steps, 2,500 of them warm-up:",
    pt="Fator da taxa de aprendizagem nos primeiros 4.000 passos, 2.500 deles de aquecimento:",
)
def warmup(axes, *functions):
    steps = range(0, 4001, 20)
    lines(axes, steps, [[f(step, 2500, 1e-6) for step in steps] for f in functions])
    axes.set(xlabel=r"$i$", ylabel=r"$\eta_i$")


@picture(
    "schedules.cooling_down",
    "cooling_from_the_first_step",
    "cooling_by_cosine",
    en="Factor of the learning rate over 10,000 steps, of which the last 3,000 cool down:",
    pt="Fator da taxa de aprendizagem em 10.000 passos, dos quais os últimos 3.000 são de resfriamento:",
)
def cooling_down(axes, *functions):
    steps = range(0, 10_001, 20)
    lines(axes, steps, [[f(step, 7000, 10_000) for step in steps] for f in functions])
    axes.set(xlabel=r"$i$", ylabel=r"$\eta_i$")


@picture(
    "schedules.ema_gamma",
    "gamma_by_rule_of_thumb",
    en="The exponent over the relative width \\(s\\) of the average:",
    pt="O expoente conforme a largura relativa \\(s\\) da média:",
)
def ema_gamma(axes, *functions):
    widths = np.geomspace(0.01, 0.25, 60)
    lines(axes, widths, [[f(width) for width in widths] for f in functions])
    axes.set(xscale="log", yscale="log", xlabel=r"$s$", ylabel=r"$\gamma$")
    axes.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2], labels=["0.01", "0.02", "0.05", "0.1", "0.2"])
    axes.minorticks_off()


@picture(
    "schedules.ema_beta",
    "beta_constant",
    "beta_with_gamma",
    en="How much of each step is in the average after 10,000 steps, for \\(\\gamma = 6.94\\) (width 0.1). The "
    "power "
    "function grows with the training; a constant forgets all but the last steps:",
    pt="Quanto de cada passo está na média após 10.000 passos, para \\(\\gamma = 6.94\\) (largura 0.1). A "
    "função de "
    "potência cresce com o treino; uma constante esquece tudo menos os últimos passos:",
)
def ema_beta(axes, *functions):
    count = 10_000
    for number, function in enumerate(functions):
        beta = np.array([function(step, 6.94) for step in range(count)])
        kept = np.cumprod(beta[:0:-1])[::-1]
        weight = (1 - beta) * np.append(kept, 1.0)
        axes.plot(np.arange(count)[50::50], weight[50::50], **style(number))
    axes.set(yscale="log", ylim=(1e-9, 3e-3), xlabel=r"$i$", ylabel=r"$w_i$")


@picture(
    "metrics.psnr",
    "psnr_with_peak_one",
    "psnr_doubled",
    en="PSNR over the root mean square error, for pixels in \\([-1, 1]\\):",
    pt="PSNR conforme a raiz do erro quadrático médio, para pixels em \\([-1, 1]\\):",
)
def psnr(axes, *functions):
    error = torch.logspace(-3, 0, 50, dtype=torch.float64)
    a = torch.zeros(50, 1, 1, 1, 1, dtype=torch.float64)
    lines(
        axes,
        error,
        [[f(a[i], a[i] + error[i], 2.0) for i in range(50)] for f in functions],
    )
    axes.set(xscale="log", xlabel=r"$\sqrt{\mathrm{mean}((a - b)^2)}$", ylabel="dB")


@picture(
    "costs.leading_flops",
    "leading_flops_of_the_paper",
    "leading_flops_without_attention",
    en="Operations of a block for each token, in units of \\(D^2\\), for \\(D = 4096\\); the faint line marks 720p:",
    pt="Operações de um bloco por token, em unidades de \\(D^2\\), com \\(D = 4096\\); a linha clara marca 720p:",
)
def leading_flops(axes, *functions):
    tokens = np.geomspace(1000, 100_000, 60).astype(int)
    axes.axvline(56_320, color=FAINT)
    lines(axes, tokens, [[f(int(L), 4096, 1) / (int(L) * 4096**2) for L in tokens] for f in functions])
    axes.set(xscale="log", ylim=(0, None), xlabel=r"$L$", ylabel=r"$\mathrm{FLOP} / (L D^2)$")


# --- what is known exactly


@picture(
    "exact.gaussian_flow",
    "flow_of_a_point",
    "flow_without_root",
    en="A sample on its way from \\(\\sigma = 2\\) to 0, for data of mean 0 and standard deviation 0.5:",
    pt="Uma amostra no caminho de \\(\\sigma = 2\\) a 0, para dados de média 0 e desvio padrão 0.5:",
)
def gaussian_flow(axes, *functions):
    sigma = torch.linspace(0, 2, 200, dtype=torch.float64)
    x = torch.full((200, 1), 2.0, dtype=torch.float64)
    start, mean = torch.full_like(sigma, 2), torch.zeros(1, dtype=torch.float64)
    lines(axes, sigma, [f(x, start, sigma, mean, SIGMA_DATA) for f in functions])
    axes.set(xlabel=r"$\sigma$", ylabel=r"$x$", xlim=(0, 2), ylim=(0, 2.1))


@picture(
    "exact.mixture_denoiser",
    "mixture_of_the_nearest",
    "mixture_of_prior_weights",
    en="The perfect denoiser of two blobs (at \u22121 and 1, standard deviation 0.2) over its input, at "
    "\\(\\sigma = 0.7\\). Between the blobs it is unsure; the faint line leaves the input as it is:",
    pt="O denoiser perfeito de duas manchas (em \u22121 e 1, desvio padrão 0.2) conforme a sua entrada, em "
    "\\(\\sigma = 0.7\\). Entre as manchas, tem dúvidas; a linha clara deixa a entrada como está:",
)
def mixture_denoiser(axes, *functions):
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    weights, means = torch.tensor([0.5, 0.5]).double(), torch.tensor([[-1.0], [1.0]]).double()
    axes.plot(x, x, color=FAINT)
    lines(axes, x, [f(x[:, None], torch.full_like(x, 0.7), weights, means, 0.2) for f in functions])
    axes.set(xlabel=r"$x$", ylabel=r"$D^*(x)$", ylim=(-1.6, 1.6))
