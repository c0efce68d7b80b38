"""The page about a recipe: what each stage was, what it learned, what it makes."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from cosmos_ref.config import Config, latent_shape
from cosmos_ref.equations.costs import tokens
from cosmos_ref.page.html import Film, both, document, films, heading, paragraph, plot, switch, table, tiles
from cosmos_ref.page.plots import AMBER, BLUE, GREEN, running_mean, svg
from cosmos_ref.training.stages import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"video": BLUE, "image": GREEN}
PT = {"video": "vídeo", "image": "imagem"}


@dataclass(frozen=True)
class Result:
    """A finished stage."""

    stage: Stage
    records: Sequence[dict[str, Any]]
    """Lines of train.jsonl."""
    measures: dict[str, dict[str, list[float]]]
    """By domain: `sigma`, and there the error `before` and `after`, and the `uncertainty`."""
    films: Sequence[Film]
    are_new: bool
    """Whether the clips that were measured were not trained on."""

    @property
    def measured_on(self) -> tuple[str, str]:
        """What clips were measured, in English and Portuguese."""
        return ("held-out", "reservados") if self.are_new else ("training", "de treino")

    def mean(self, domain: str, when: str) -> float:
        """Weighted error on held-out clips, mean over the noise levels."""
        values = self.measures[domain][when]
        return sum(values) / len(values)

    @property
    def seconds(self) -> float:
        """Time that the updates took, all runs together."""
        return sum(record["seconds"] for record in self.records)


def summary(result: Result) -> str:
    """One line for the terminal: how far the error on held-out clips fell."""
    parts = [f"{d}s {result.mean(d, 'before'):.3f} -> {result.mean(d, 'after'):.3f}" for d in result.measures]
    return f"λL on {result.measured_on[0]} {', '.join(parts)} in {result.seconds:.0f} s of training"


def page(results: Sequence[Result], described: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    total = sum(result.seconds for result in results)
    first, last = results[0], results[-1]
    on, pt = last.measured_on
    parts = [
        f"<header>{switch()}<h1>{both('The whole recipe', 'A receita inteira')}</h1>"
        + paragraph(
            f"{len(results)} stages, as Cosmos was trained: each starts from the weights of the one before. "
            f"{on.capitalize()} clips are measured with the same noise at the start of a stage and after it.",
            f"{len(results)} etapas, como o Cosmos foi treinado: cada uma começa com os pesos da anterior. "
            f"Clipes {pt} são medidos com o mesmo ruído no início da etapa e depois dela.",
            "lead",
        )
        + "</header>",
        tiles(
            (f"{total / 60:.1f} min", "of training, all stages", "de treino, todas as etapas"),
            (
                f"{first.mean('video', 'before'):.2f} → {last.mean('video', 'after'):.2f}",
                f"λL on {on} videos, untrained and in the end",
                f"λL em vídeos {pt}, sem treino e no fim",
            ),
            (
                f"{sum(r['clips_per_second'] * r['seconds'] for x in results for r in x.records):,.0f}",
                "clips seen, images included",
                "clipes vistos, imagens incluídas",
            ),
        ),
        _overview(results),
        *(_stage(result, number) for number, result in enumerate(results, 2)),
        _made_with(described),
    ]
    return document("cosmos_ref: the whole recipe", "\n".join(parts))


def _overview(results: Sequence[Result]) -> str:
    head = [
        both("stage", "etapa"),
        both("clips", "clipes"),
        both("tokens", "tokens"),
        both("images", "imagens"),
        both("updates", "atualizações"),
        both("learning rate", "taxa de aprendizado"),
        both("λL before → after", "λL antes → depois"),
    ]
    return heading(1, "The stages", "As etapas") + table(
        head, [_row(result) for result in results], numbers_from=2, kind="wide"
    )


def _row(result: Result) -> list[str]:
    config = result.stage.config
    clip, train, data = config.clip, config.train, config.data
    errors = [
        f"{both(d, PT[d])} {result.mean(d, 'before'):.3f} → <b>{result.mean(d, 'after'):.3f}</b>"
        for d in result.measures
    ]
    cooled = both(", to 0", ", até 0") if train.cooling_steps else ""
    size = f"{clip.frames} × {clip.height} × {clip.width}"
    return [
        f"<b>{escape(result.stage.name)}</b>",
        f"{size}<br><small>{both('buckets', 'formatos')} {escape(data.buckets)}</small>",
        f"{_tokens(config):,}",
        f"{100 * data.image_share:.0f} %",
        f"{train.num_steps:,}",
        f"{train.learning_rate:.3g}{cooled}",
        "<br>".join(errors),
    ]


def _tokens(config: Config) -> int:
    return tokens(latent_shape(config, config.clip)[1:], config.model.patch_size)


def _stage(result: Result, number: int) -> str:
    video2world, (on, pt) = result.stage.config.model.video2world, result.measured_on
    shown = (
        (f"Left a clip ({on}), right what the model makes of its first frames.",
         f"À esquerda um clipe ({pt}); à direita, o que o modelo faz dos primeiros quadros.")
        if video2world
        else ("Clips from a sentence alone.", "Clipes só a partir de uma frase.")
    )  # fmt: skip
    return (
        heading(number, escape(result.stage.name), escape(result.stage.name))
        + '<div class="grid plots">'
        + plot(
            _curve(result),
            "<b>While it trains.</b> λL of every update, pale, and its running mean.",
            "<b>Durante o treino.</b> λL de cada atualização, claro, e sua média móvel.",
        )
        + plot(
            _over_sigma(result),
            f"<b>On {on} clips.</b> Dashed at the start of this stage, solid after it; dots are e<sup>u</sup>, what "
            "the model itself expects.",
            f"<b>Em clipes {pt}.</b> Tracejado no início desta etapa, contínuo depois; os pontos são "
            "e<sup>u</sup>, o que o próprio modelo espera.",
        )
        + "</div>"
        + paragraph(*shown)
        + films(result.films, "wide" if video2world else "")
    )


def _curve(result: Result) -> str:
    def draw(axes: "Axes") -> None:
        for domain in result.measures:
            seen = [r for r in result.records if r["domain"] == domain]
            steps, errors = [r["step"] for r in seen], [r["weighted_error"] for r in seen]
            axes.plot(steps, errors, color=COLOURS[domain], alpha=0.25, linewidth=0.8)
            axes.plot(steps, running_mean(errors), color=COLOURS[domain], linewidth=2, label=f"{domain}s")
        axes.set(xlabel="update", ylabel="λ L", yscale="log")

    return svg(f"curve {result.stage.name}", draw)


def _over_sigma(result: Result) -> str:
    def draw(axes: "Axes") -> None:
        for domain, rows in result.measures.items():
            colour, sigma = COLOURS[domain], rows["sigma"]
            axes.plot(sigma, rows["before"], color=colour, linestyle=(0, (4, 2)), marker="o", markersize=3)
            axes.plot(sigma, rows["after"], color=colour, marker="o", markersize=4, linewidth=2, label=f"{domain}s")
            axes.plot(sigma, rows["uncertainty"], color=AMBER, marker=".", linestyle="none")
        axes.set(xlabel="noise level σ", ylabel="λ L", xscale="log", yscale="log")

    return svg(f"sigma {result.stage.name}", draw)


def _made_with(described: dict[str, dict[str, Any]]) -> str:
    rows = [[escape(str(k)), escape(str(v))] for part in described.values() for k, v in part.items()]
    return f"<details><summary>{both('Machine and versions', 'Máquina e versões')}</summary>" + (
        table([], rows, numbers_from=2) + "</details>"
    )
