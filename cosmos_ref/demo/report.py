"""The report: one HTML file with everything in it, from the demo's films, plots and numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from cosmos_ref.page.html import (
    Film,
    both,
    document,
    film,
    films,
    heading,
    paragraph,
    plot,
    power_of_ten,
    switch,
    table,
    tiles,
)

TITLE = "cosmos_ref: from noise to a world"

STAGES = {
    "simulate a world": "simular um mundo",
    "tokenize and reconstruct": "tokenizar e reconstruir",
    "measure the untrained model": "medir o modelo não treinado",
    "train": "treinar",
    "measure the trained model": "medir o modelo treinado",
    "generate from given frames": "gerar a partir de quadros dados",
    "generate from text": "gerar a partir de texto",
    "export to ONNX and generate again": "exportar para ONNX e gerar de novo",
}
"""The demo's stages in Portuguese."""


@dataclass(frozen=True)
class Report:
    """Everything the page shows; `metrics` is what metrics.json holds."""

    world: Film
    reconstruction: Film
    video2world: Sequence[Film]
    text2world: Sequence[Film]
    exported: Sequence[Film]
    loss_curve: str
    error_over_sigma: str
    error_over_frames: str
    metrics: dict[str, Any]


def page(report: Report) -> str:
    """The whole page."""
    sections = [_world, _tokenizer, _training, _video2world, _text2world, _export, _run]
    body = "\n".join(section(report, number) for number, section in enumerate(sections, 1))
    return document(TITLE, f"{_header(report.metrics)}\n{body}")


def _header(m: dict[str, Any]) -> str:
    errors, cores = m["video2world"]["centre_error"], m["machine"]["cpu_cores"]
    plural = "" if cores == 1 else "s"
    return (
        f"<header>{switch()}<h1>{both('From noise to a world', 'Do ruído a um mundo')}</h1>"
        + paragraph(
            f"A world model in the way of Cosmos, trained from scratch by this run on {cores} CPU core{plural} in "
            f"{m['training']['seconds']:.0f} seconds. Parts 1 to 3 show what it learned from, parts 4 to 6 what it "
            "made.",
            f"Um modelo de mundo à maneira do Cosmos, treinado do zero por esta execução em {cores} núcleo{plural} "
            f"de CPU em {m['training']['seconds']:.0f} segundos. As partes 1 a 3 mostram com que aprendeu; 4 a 6, o "
            "que fez.",
            "lead",
        )
        + "</header>"
        + tiles(
            (
                f"{100 * m['video2world']['visible_share']:.0f} %",
                "of the marbles that should be seen in generated frames are there",
                "das bolinhas que deviam ser vistas nos quadros gerados estão lá",
            ),
            (
                f"{errors['model']:.1f} px",
                f"mean centre error; copying the last frame has {errors['copy']:.1f} px",
                f"de erro médio do centro; copiar o último quadro dá {errors['copy']:.1f} px",
            ),
            (
                f"{m['denoising']['improvement']:.1f}×",
                "lower weighted error on held-out clips than before training",
                "menos erro ponderado em clipes nunca vistos do que antes do treino",
            ),
            (
                power_of_ten(m["export"]["final_relative_error"]),
                "relative difference between PyTorch and ONNX Runtime after all sampling steps",
                "de diferença relativa entre PyTorch e ONNX Runtime após todos os passos",
            ),
            (f"{m['total_seconds']:.0f} s", "for everything on this page", "para tudo o que há nesta página"),
        )
    )


def _world(report: Report, number: int) -> str:
    return (
        heading(number, "A world to learn from", "Um mundo para aprender")
        + paragraph(
            "Marbles in a box, simulated exactly: they fall or float, bounce, collide, hide behind a wall, get pushed. "
            "Since we made this world, we know what is true in it, and can measure how wrong a generated clip is.",
            "Bolinhas numa caixa, simuladas com exatidão: caem ou flutuam, quicam, colidem, somem atrás de uma parede, "
            "são empurradas. Como fizemos este mundo, sabemos o que nele é verdade e medimos o erro de um clipe "
            "gerado.",
        )
        + film(report.world, "single")
    )


def _tokenizer(report: Report, number: int) -> str:
    r = report.metrics["reconstruction"]
    return (
        heading(number, "From pixels to latents and back", "Dos pixels aos latentes e de volta")
        + paragraph(
            "The model does not work on pixels but on a smaller description of them. Here a video file is read, "
            f"encoded into {r['compression']:.0f} times fewer numbers, and decoded again. This tokenizer is not "
            "trained: it is wavelets followed by principal components. What is lost here, no generated clip can win "
            "back.",
            "O modelo não trabalha com pixels, e sim com uma descrição menor deles. Aqui um arquivo de vídeo é lido, "
            f"codificado em {r['compression']:.0f} vezes menos números e decodificado. Este tokenizador não é "
            "treinado: são wavelets seguidas de componentes principais. O que se perde aqui, nenhum clipe gerado "
            "recupera.",
        )
        + film(report.reconstruction, "single")
        + tiles(
            (
                f"{r['psnr']:.1f} dB",
                f"PSNR of the clip above, <code>{escape(r['file'])}</code>",
                f"PSNR do clipe acima, <code>{escape(r['file'])}</code>",
            ),
            (
                f"{r['held_out_psnr']:.1f} dB",
                "PSNR of held-out clips at the size the model is trained on",
                "PSNR de clipes nunca vistos, no tamanho em que o modelo é treinado",
            ),
        )
    )


def _training(report: Report, number: int) -> str:
    t, d = report.metrics["training"], report.metrics["denoising"]
    return (
        heading(number, "Learning to denoise", "Aprendendo a tirar ruído")
        + paragraph(
            "Training shows the model a clip with noise of strength σ added and asks for the clip without it. "
            "λL is the squared error, weighted so that every noise level counts the same; a network that says "
            "nothing has 1.",
            "O treino mostra ao modelo um clipe com ruído de intensidade σ e pede o clipe sem ele. "
            "λL é o erro quadrático, ponderado para que todo nível de ruído conte igual; uma rede que nada diz tem 1.",
        )
        + '<div class="grid plots">'
        + plot(
            report.loss_curve,
            "<b>While it trains.</b> λL of every batch (grey) and its running mean (blue). It is noisy, because every "
            "batch draws its own noise levels.",
            "<b>Durante o treino.</b> λL de cada lote (cinza) e sua média móvel (azul). Oscila porque cada lote "
            "sorteia os seus níveis de ruído.",
        )
        + plot(
            report.error_over_sigma,
            "<b>Before and after, on clips it never saw,</b> with the same noise. Fine detail is decided at small σ, "
            "where things are and go at large σ. e<sup>u</sup> is what the model itself expects λL to be: where it "
            "trained much, the dashes lie on the blue line.",
            "<b>Antes e depois, em clipes nunca vistos,</b> com o mesmo ruído. O detalhe se decide em σ pequeno; "
            "onde as coisas estão e para onde vão, em σ grande. e<sup>u</sup> é o λL que o próprio modelo espera: "
            "onde treinou muito, os traços ficam sobre a linha azul.",
        )
        + "</div>"
        + tiles(
            (f"{t['clips']:,}", f"clips seen in {t['steps']:,} steps", f"clipes vistos em {t['steps']:,} passos"),
            (f"{t['clips_per_cpu_second']:.0f}", "clips per CPU-second", "clipes por segundo de CPU"),
            (
                f"{d['mean_before']:.2f} → {d['mean_after']:.2f}",
                "λL on held-out clips, averaged over the noise levels of training",
                "λL em clipes nunca vistos, média sobre os níveis de ruído do treino",
            ),
            (f"{t['parameters'] / 1e6:.2f} M", "parameters", "parâmetros"),
        )
    )


def _video2world(report: Report, number: int) -> str:
    v = report.metrics["video2world"]
    return (
        heading(number, "How does it go on? Video2World", "Como continua? Video2World")
        + paragraph(
            f"The model sees the first {v['given_frames']} frames (blue edge) of a scene it was never trained on, "
            "and a caption, and generates the rest (orange edge). Left is what really happened.",
            f"O modelo vê os {v['given_frames']} primeiros quadros (borda azul) de uma cena em que não treinou, e uma "
            "legenda, e gera o resto (borda laranja). À esquerda, o que de fato aconteceu.",
        )
        + films(report.video2world, "wide")
        + '<div class="grid plots">'
        + plot(
            report.error_over_frames,
            f"<b>How far off?</b> Distance between the generated and the true centre of the marble, in pixels, mean of "
            f"{v['scenes']} held-out scenes. A useful model must beat the frozen last frame; beating the straight line "
            "takes bounces and gravity.",
            f"<b>A que distância?</b> Distância entre o centro gerado e o verdadeiro da bolinha, em pixels, média de "
            f"{v['scenes']} cenas nunca vistas. Um modelo útil tem de superar o último quadro congelado; superar a "
            "linha reta exige quicadas e gravidade.",
        )
        + "</div>"
    )


def _text2world(report: Report, number: int) -> str:
    t = report.metrics["text2world"]
    return (
        heading(number, "From a sentence: Text2World", "A partir de uma frase: Text2World")
        + paragraph(
            "No frames given: from pure noise and a sentence. Guidance pushes the clip towards what the sentence says. "
            f"Of {t['clips']} clips, {100 * t['colour_accuracy']:.0f} % show exactly the colour asked for; "
            "in a model this small it is right more often than the shape.",
            "Nenhum quadro dado: só ruído e uma frase. A orientação (guidance) empurra o clipe para o que a frase diz. "
            f"De {t['clips']} clipes, {100 * t['colour_accuracy']:.0f} % mostram exatamente a cor pedida; "
            "num modelo tão pequeno ela acerta mais vezes que a forma.",
        )
        + films(report.text2world)
    )


def _export(report: Report, number: int) -> str:
    e = report.metrics["export"]
    rows = [
        [escape(row["what"]), f"{row['max_abs']:.1e}", f"{row['relative']:.1e}", f"{row['limit']:.0e}"]
        for row in (*e["single_calls"], e["sampling"])
    ]
    return (
        heading(number, "The same model outside PyTorch", "O mesmo modelo fora do PyTorch")
        + paragraph(
            "The denoiser is exported to ONNX and the whole generation runs again in ONNX Runtime, from the same "
            "noise, without PyTorch. Left PyTorch, right ONNX Runtime: you should see no difference.",
            "O denoiser é exportado para ONNX e toda a geração roda de novo no ONNX Runtime, do mesmo ruído, sem "
            "PyTorch. À esquerda PyTorch, à direita ONNX Runtime: não se deve ver diferença.",
        )
        + films(report.exported, "wide")
        + table(
            [
                both("what", "o quê"),
                both("largest difference", "maior diferença"),
                both("relative", "relativa"),
                both("limit", "limite"),
            ],
            rows,
            numbers_from=1,
        )
        + paragraph(
            "Relative: the largest absolute difference over the largest absolute value. "
            f"The denoiser has {e['megabytes']:.1f} MB and takes any number of frames, height, width and words. "
            f"Sampling took {e['seconds_pytorch']:.1f} s in PyTorch and {e['seconds_onnxruntime']:.1f} s in ONNX "
            "Runtime.",
            "Relativa: a maior diferença absoluta sobre o maior valor absoluto. "
            f"O denoiser tem {e['megabytes']:.1f} MB e aceita qualquer número de quadros, altura, largura e palavras. "
            f"A amostragem levou {e['seconds_pytorch']:.1f} s no PyTorch e {e['seconds_onnxruntime']:.1f} s no ONNX "
            "Runtime.",
        )
    )


def _run(report: Report, number: int) -> str:
    m = report.metrics
    longest = max(m["seconds"].values())
    stages = [
        [
            both(name, STAGES.get(str(name), str(name))),
            f"{seconds:.1f} s",
            f'<div class="bar" style="width:{100 * seconds / longest:.1f}%"></div>',
        ]
        for name, seconds in m["seconds"].items()
    ]
    machine = [
        [both("processor", "processador"), f"{m['machine']['cpu_cores']} × {escape(m['machine']['cpu'])}"],
        [both("memory", "memória"), f"{m['machine']['memory_gib']:.0f} GiB"],
        [both("peak memory of this run", "pico de memória desta execução"), f"{m['peak_memory_gib']:.2f} GiB"],
        [both("system", "sistema"), escape(m["machine"]["system"])],
        *([escape(name), escape(version)] for name, version in m["versions"].items()),
    ]
    settings = [
        [f"<code>{escape(group)}.{escape(name)}</code>", f"<code>{escape(str(value))}</code>"]
        for group, values in m["config"].items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    return (
        heading(number, "What was run", "O que foi executado")
        + table([], stages, numbers_from=3, kind="stages")
        + table([], machine, numbers_from=2)
        + f"<details><summary>{both('Every number of preset', 'Todos os números do preset')} "
        + f"<code>{escape(m['config']['name'])}</code></summary>{table([], settings, numbers_from=2)}</details>"
        + '<div class="limits">'
        + paragraph(
            "<b>Honest limits.</b> Two minutes on a laptop make a model of one marble in a box of 32 × 32 pixels, "
            "not of the real world. It gets blurrier and less certain frame by frame, knows gravity only partly, and "
            "where it fails it may lose the marble or draw a second one. More training, on the same code, is what "
            "helps.",
            "<b>Limites, com franqueza.</b> Dois minutos num laptop dão um modelo de uma bolinha numa caixa de 32 × 32 "
            "pixels, não do mundo real. Ele perde nitidez e certeza quadro a quadro, conhece a gravidade só em parte "
            "e, onde falha, pode perder a bolinha ou desenhar outra. O que ajuda é mais treino, com o mesmo código.",
        )
        + "</div>"
    )
