"""The page that a training ends with: what it learned, noise level by noise level, and what it cost."""

import dataclasses
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_ref.config import Config
from cosmos_ref.model.sizes import parameter_count
from cosmos_ref.page.html import both, document, heading, paragraph, plot, switch, table, tiles, write_page
from cosmos_ref.page.plots import AMBER, BLUE, GREEN, GREY, running_mean, svg
from cosmos_ref.training.metrics import SIGMA_BUCKETS, sigma_edges
from cosmos_ref.training.progress import thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOMAINS = {"video": (BLUE, "videos"), "image": (GREEN, "images")}
Records = Sequence[dict[str, Any]]


def write_report(config: Config, records: Records, path: Path) -> Path:
    """Write the page of a run.

    Args:
        config: what was trained.
        records: lines of `train.jsonl`.
        path: where the page goes.
    """
    return write_page(path, document(f"cosmos_ref: training {config.name}", page(config, records)))


def page(config: Config, records: Records) -> str:
    """The body of the page."""
    return "\n".join([_header(config, records), _learning(config, records), _cost(records), _settings(config)])


def over_sigma(config: Config, records: Records, domain: str) -> list[tuple[float, float, float]]:
    """For each range of noise levels that occurred in the last quarter: its middle, mean of lambda L, and of e^u."""
    edges = sigma_edges(config, "image" if domain == "image" else "video")
    step = edges[1] / edges[0]
    middles = [edges[0] * step ** (i - 0.5) for i in range(SIGMA_BUCKETS)]
    late = [record for record in records[-max(1, len(records) // 4) :] if record["domain"] == domain]
    rows = []
    for i, middle in enumerate(middles, 1):
        seen = [record for record in late if f"{domain}_clips_{i}" in record]
        if clips := sum(record[f"{domain}_clips_{i}"] for record in seen):
            error, expected = (
                sum(record[f"{domain}_{name}_{i}"] * record[f"{domain}_clips_{i}"] for record in seen) / clips
                for name in ("error", "expected")
            )
            rows.append((middle, error, expected))
    return rows


def _header(config: Config, records: Records) -> str:
    seconds = sum(record["seconds"] for record in records)
    clips = sum(record["clips_per_second"] * record["seconds"] for record in records)
    tokens = sum(record["tokens_per_second"] * record["seconds"] for record in records)
    late = records[-max(1, len(records) // 10) :]
    error = sum(record["weighted_error"] for record in late) / len(late)
    name = escape(config.name)
    mfu = [record["mfu"] for record in records if "mfu" in record]
    wait = sum(record["data_wait"] * record["seconds"] for record in records) / seconds
    share = sum(mfu) / max(1, len(mfu))
    utilised = [(f"{100 * share:.1f} %", "of the device's peak (MFU)", "do pico do dispositivo (MFU)")]
    return (
        f"<header>{switch()}<h1>{both(f'Training {name}', f'Treino de {name}')}</h1>"
        + paragraph(
            f"{len(records)} of {config.train.num_steps} updates of a model with "
            f"{thousands(parameter_count(config))} parameters.",
            f"{len(records)} de {config.train.num_steps} atualizações de um modelo com "
            f"{thousands(parameter_count(config))} parâmetros.",
            "lead",
        )
        + "</header>"
        + tiles(
            (
                f"{error:.3f}",
                "λL, mean of the last tenth; 1 is a network that says nothing",
                "λL, média do último décimo; 1 é uma rede que não diz nada",
            ),
            (f"{clips:,.0f}", "clips seen, images included", "clipes vistos, imagens incluídas"),
            (f"{thousands(tokens / seconds)}", "tokens a second", "tokens por segundo"),
            (f"{_time(seconds)}", "in updates", "em atualizações"),
            *(utilised if mfu else []),
            (f"{100 * wait:.1f} %", "of the time waiting for clips", "do tempo à espera de clipes"),
        )
    )


def _learning(config: Config, records: Records) -> str:
    def errors(axes: "Axes") -> None:
        for domain, (colour, label) in DOMAINS.items():
            seen = [record for record in records if record["domain"] == domain]
            if not seen:
                continue
            steps, values = [r["step"] for r in seen], [r["weighted_error"] for r in seen]
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, running_mean(values), color=colour, linewidth=2, label=label)
        axes.set(xlabel="update", ylabel="λ L", yscale="log")

    def loss(axes: "Axes") -> None:
        _curve(axes, records, "loss", AMBER)
        axes.set(xlabel="update", ylabel="λ L / e^u + u")

    def by_sigma(axes: "Axes") -> None:
        for domain, (colour, label) in DOMAINS.items():
            if rows := over_sigma(config, records, domain):
                sigma, error, expected = zip(*rows, strict=True)
                axes.plot(sigma, error, color=colour, marker="o", markersize=5, linewidth=2, label=f"λL, {label}")
                dashes = (0, (4, 2))
                axes.plot(sigma, expected, color=colour, linestyle=dashes, linewidth=1.5, label=f"e^u, {label}")
        axes.set(xlabel="noise level σ", xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")

    return (
        heading(1, "What was learned", "O que foi aprendido")
        + '<div class="grid plots">'
        + plot(
            svg("error", errors),
            "<b>Weighted error.</b> λL of every update, pale, and its running mean.",
            "<b>Erro ponderado.</b> λL de cada atualização, claro, e sua média móvel.",
        )
        + plot(
            svg("sigma", by_sigma),
            "<b>By noise level.</b> λL in the last quarter of the training, and dashed what u(σ) expects it to be: "
            "where the two agree, all noise levels weigh the same.",
            "<b>Por nível de ruído.</b> λL no último quarto do treino e, tracejado, o que u(σ) espera: onde os dois "
            "coincidem, todos os níveis de ruído pesam o mesmo.",
        )
        + plot(
            svg("loss", loss),
            "<b>Loss.</b> What is lowered; it may fall below zero, since u does.",
            "<b>Perda.</b> O que se reduz; pode ficar abaixo de zero, porque u fica.",
        )
        + plot(
            svg("gradient", lambda axes: _gradient(axes, config, records)),
            "<b>Norm of the gradient</b>, before it is limited (dashed).",
            "<b>Norma do gradiente</b>, antes de ser limitada (tracejado).",
        )
        + plot(
            svg("rate", lambda axes: _rate(axes, records)),
            "<b>Learning rate.</b>",
            "<b>Taxa de aprendizado.</b>",
        )
        + "</div>"
    )


def _cost(records: Records) -> str:
    def speed(axes: "Axes") -> None:
        _curve(axes, records, "tokens_per_second", BLUE)
        axes.set(xlabel="update", ylabel="tokens / s")
        axes.set_ylim(bottom=0)

    def memory(axes: "Axes") -> None:
        axes.plot([r["step"] for r in records], [r["memory_gib"] for r in records], color=GREY, linewidth=2)
        axes.set(xlabel="update", ylabel="GiB")
        axes.set_ylim(bottom=0)

    return (
        heading(2, "What it cost", "O que custou")
        + '<div class="grid plots">'
        + plot(
            svg("speed", speed),
            "<b>Throughput</b> of all processes together.",
            "<b>Vazão</b> de todos os processos juntos.",
        )
        + plot(
            svg("memory", memory),
            "<b>Memory.</b> The most that the first process has held so far.",
            "<b>Memória.</b> O máximo que o primeiro processo ocupou até então.",
        )
        + "</div>"
    )


def _settings(config: Config) -> str:
    rows = [
        [f"<code>{section}.{name}</code>", f"<code>{escape(json.dumps(value))}</code>"]
        for section, fields in dataclasses.asdict(config).items()
        if isinstance(fields, dict)
        for name, value in fields.items()
    ]
    return heading(3, "Settings", "Configuração") + table([], rows, numbers_from=2)


def _curve(axes: "Axes", records: Records, name: str, colour: str) -> None:
    steps, values = [record["step"] for record in records], [record[name] for record in records]
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, running_mean(values), color=colour, linewidth=2)


def _gradient(axes: "Axes", config: Config, records: Records) -> None:
    _curve(axes, records, "grad_norm", BLUE)
    axes.axhline(config.train.max_grad_norm, color=GREY, linestyle=(0, (4, 2)))
    axes.set(xlabel="update", yscale="log")


def _rate(axes: "Axes", records: Records) -> None:
    axes.plot([r["step"] for r in records], [r["lr"] for r in records], color=GREEN, linewidth=2)
    axes.set(xlabel="update")
    axes.set_ylim(bottom=0)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
