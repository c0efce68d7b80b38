"""Drawings of the training recipe and of how it is spread. What they count, the code that trains has counted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from canvas import FAINT, HUES, TEXT, Canvas, diagram
from torch.nn.functional import interpolate

from cosmos_ref import worlds
from cosmos_ref.config import BUCKETS, ParallelConfig, preset
from cosmos_ref.distributed.mesh import split_processes
from cosmos_ref.equations.buckets import fit_size, nearest_bucket, padding_mask, reflection_padding
from cosmos_ref.equations.pixels import to_bytes
from cosmos_ref.equations.schedules import ema_beta, ema_gamma, posthoc_weights
from cosmos_ref.training.schedule import domain_of, images_per_video, plan_step, share_out
from cosmos_ref.training.sources.clips import draw_bucket

# --- training


@diagram(
    "training.steps",
    228,
    en="Eight updates with a quarter of images, two micro-batches of two clips each. A strip is a video of "
    "three latent frames, a tile an image: every update has the same number of tiles and, bucket for bucket, "
    "of tokens. Each micro-batch has one bucket, drawn from its number. Of two data-parallel groups the "
    "first takes the upper row, the second the lower one.",
    pt="Oito atualizações com um quarto de imagens, de dois microlotes com dois clipes cada. Uma tira é um "
    "vídeo de três quadros latentes, um ladrilho é uma imagem: toda atualização tem o mesmo número de "
    "ladrilhos e, formato por formato, de tokens. Cada microlote tem um só formato, sorteado pelo seu "
    "número. De dois grupos paralelos nos dados, o primeiro fica com a linha de cima, o segundo com a de "
    "baixo.",
    step=("update", "atualização"),
    group=("group", "grupo"),
    video=("videos", "vídeos"),
    image=("images", "imagens"),
)
def steps(canvas: Canvas, word: dict[str, str]) -> None:
    base = preset("tiny")
    config = replace(
        base,
        clip=replace(base.clip, frames=5),
        data=replace(base.data, image_share=0.25),
        train=replace(base.train, batch_size=4, micro_batch=2),
    )
    shapes = dict.fromkeys(BUCKETS["32"][:3], 1)
    left, column, tile = 62, 77, 15
    canvas.text(6, 16, word["step"], "start", 11)
    canvas.text(6, 198, "σ", "start")
    for group in range(2):
        canvas.text(6, 70 + 72 * group, f"{word['group']}\n{group}", "start", 11)
    for step in range(8):
        x, domain = left + column * step, domain_of(step, config.data.image_share)
        hue = HUES[1] if domain == "image" else HUES[0]
        canvas.text(x + column / 2 - 4, 16, step)
        canvas.box(x, 30, column - 7, 150, hue, 0.07, FAINT)
        for group in range(2):
            for part in share_out(plan_step(config, step), group, 2):
                bucket = draw_bucket(shapes, 0, part.number, domain)
                height, width = (tile * side / 32 for side in bucket)
                long = images_per_video(config) if domain == "video" else 1
                across = 3 if domain == "image" else 1
                gap = 4 if domain == "image" else 7
                row_width = across * long * width + (across - 1) * gap
                rows = len(part.samples) // across
                for n in range(len(part.samples)):
                    x0 = x + (column - 7 - row_width) / 2 + (n % across) * (width + gap)
                    y0 = 70 + 72 * group + (n // across - (rows - 1) / 2) * (height + gap + 6) - height / 2
                    for frame in range(long):
                        canvas.box(x0 + frame * width, y0, width, height, hue, 0.45)
        canvas.text(x + column / 2 - 4, 198, "× √3" if domain == "video" else "× 1", size=12, fill=hue)
        canvas.text(x + column / 2 - 4, 217, word[domain], size=11, fill=hue)


@diagram(
    "training.bucket",
    250,
    en="A clip of 36 x 86 pixels and the buckets of <code>32</code> beside it: scaled until it fits into the "
    "nearest, in the middle of its own mirror image, and the mask that says which pixels are made up.",
    pt="Um clipe de 36 x 86 pixels e os formatos de <code>32</code> ao seu lado: redimensionado até caber no "
    "mais próximo, no meio da sua própria imagem no espelho, e a máscara que diz quais pixels são inventados.",
    clip=("the clip", "o clipe"),
    buckets=("nearest bucket", "formato mais próximo"),
    fitted=("fitted", "encaixado"),
    padded=("reflected", "refletido"),
    mask=("padding mask", "máscara"),
)
def bucket(canvas: Canvas, word: dict[str, str]) -> None:
    height, width = 36, 86
    video = worlds.simulate([3], frames=9, height=height, width=width, kind="mixed").video[0, :, 5]
    nearest = nearest_bucket(height, width, BUCKETS["32"])
    fitted = fit_size(height, width, *nearest)
    small = interpolate(video[None], fitted, mode="bilinear", antialias=True, align_corners=False)[0]
    padded, mask = reflection_padding(small, *nearest), padding_mask(*fitted, *nearest)
    scale = 3.6
    canvas.image(10, 40, 2.2, pixels(video))
    canvas.text(10 + 1.1 * width, 20, f"{word['clip']}  {height} × {width}", size=12)
    # Buckets around one centre: which is nearest is a matter of the ratio.
    cx, cy = 300, 82
    for size in BUCKETS["32"]:
        chosen = size == nearest
        h, w = (2.4 * side for side in size)
        canvas.box(cx - w / 2, cy - h / 2, w, h, HUES[0] if chosen else "none", 0.18, HUES[0] if chosen else FAINT)
    canvas.text(cx, 20, f"{word['buckets']}  {nearest[0]} × {nearest[1]}", size=12)
    w, h = scale * nearest[1], scale * nearest[0]
    x, y = 440, 39
    edge = (nearest[0] - fitted[0]) // 2 * scale
    canvas.image(x, y + edge, scale, pixels(small))
    canvas.box(x, y, w, h, line=HUES[0])
    canvas.text(x + w / 2, 20, f"{word['fitted']}  {fitted[0]} × {fitted[1]}", size=12)
    x, y = 140, 158
    canvas.image(x, y, scale, pixels(padded))
    canvas.box(x, y, w, h, line=HUES[0])
    canvas.line([(x, y + edge), (x + w, y + edge)], HUES[0], dash="4 3")
    canvas.line([(x, y + edge + scale * fitted[0]), (x + w, y + edge + scale * fitted[0])], HUES[0], dash="4 3")
    canvas.text(x - 8, y + h / 2, word["padded"], "end", 12)
    x = 440
    canvas.box(x, y, w, h, line=HUES[0])
    for row, is_padding in enumerate(mask[0, :, 0].tolist()):
        if is_padding:
            canvas.box(x, y + row * scale, w, scale, HUES[1], 0.6, "none")
    canvas.text(x + w / 2, y + h / 2, "0", size=14)
    canvas.text(x - 8, y + edge / 2, "1", "end", 12, HUES[1])
    canvas.text(x - 8, y + h / 2, word["mask"], "end", 12)


def pixels(video: torch.Tensor) -> np.ndarray:
    return to_bytes(video).permute(1, 2, 0).contiguous().numpy()


@diagram(
    "training.ema",
    250,
    en="How much of the average comes from each moment of the later half of a training, for three widths. The "
    "steps are what the updates really make of it in a training of 24. Dotted: a width that was not kept, "
    "read from the three that were.",
    pt="Quanto da média vem de cada momento da segunda metade de um treino, para três larguras. Os degraus são "
    "o que as atualizações fazem de fato em um treino de 24. Pontilhada: uma largura que não foi guardada, "
    "lida das três que foram.",
    time=("share of the training", "fração do treino"),
    weight=("weight", "peso"),
)
def ema(canvas: Canvas, word: dict[str, str]) -> None:
    left, bottom, width, height, top, first = 60, 210, 545, 185, 40.0, 0.5
    updates, t = 24, np.linspace(first, 1, 300)

    def at(time, value):
        return left + width * (time - first) / (1 - first), bottom - height * np.minimum(value, top) / top

    canvas.line([(left, bottom - height), (left, bottom), (left + width, bottom)], TEXT, 0.8)
    labels = {0.1: (0.72, 5.2), 0.05: (0.845, 9.5), 0.025: (0.945, 24)}
    for hue, (std, label) in zip(HUES, labels.items(), strict=False):
        gamma = ema_gamma(std)
        canvas.line(list(zip(*at(t, (gamma + 1) * t**gamma), strict=True)), hue, 1.8)
        shares, kept = [], 1.0
        for step in reversed(range(updates)):
            shares.insert(0, kept * (1 - ema_beta(step, gamma)))
            kept *= ema_beta(step, gamma)
        steps = [(time / updates, updates * shares[n]) for n in range(updates // 2, updates) for time in (n, n + 1)]
        canvas.line([at(time, share) for time, share in steps], hue, 0.8, "3 2")
        canvas.text(*at(*label), f"s = {std:g}, γ = {gamma:.1f}", "end", 12, hue)
    kept = [(time, ema_gamma(std)) for time in (16, 24) for std in labels]
    weights = posthoc_weights(*np.array(kept).T, 24, ema_gamma(0.07))
    built = sum(
        w * np.where(t <= n / 24, (gamma + 1) * 24 / n * np.minimum(1, t * 24 / n) ** gamma, 0)
        for w, (n, gamma) in zip(weights / weights.sum(), kept, strict=True)
    )
    canvas.line(list(zip(*at(t, built), strict=True)), HUES[3], 2, "2 3")
    canvas.text(*at(1.006, 11.8), "s = 0.07", "start", 12, HUES[3])
    for value in (0.5, 0.625, 0.75, 0.875, 1):
        canvas.text(at(value, 0)[0], bottom + 14, f"{value:g}", size=11)
    for value in (0, 10, 20, 30, 40):
        canvas.text(left - 6, at(0, value)[1], value, "end", 11)
    canvas.text(left + width / 2, bottom + 31, word["time"], size=12)
    canvas.text(left + 6, 18, word["weight"], "start", 12)


# --- distributed


@diagram(
    "distributed.mesh",
    336,
    en="Sixteen processes, each with its number: replicate 2 x shard 8, and within them cp 4 = ring 2 x ulysses "
    "2. Rows see different clips. The four of a row share one clip, a quarter of its tokens each. The two "
    "colours are the two replicas: within a colour every process keeps another eighth of all weights.",
    pt="Dezesseis processos, cada um com o seu número: replicate 2 x shard 8 e, dentro deles, cp 4 = anel 2 x "
    "ulysses 2. Linhas veem clipes diferentes. Os quatro de uma linha dividem um clipe, um quarto dos tokens "
    "para cada um. As duas cores são as duas réplicas: dentro de uma cor, cada processo guarda um oitavo "
    "diferente de todos os pesos.",
    clips=("clips of group", "clipes do grupo"),
    tokens=("tokens", "tokens"),
    weights=("weights", "pesos"),
    replica=("replica", "réplica"),
    ring=("ring", "anel"),
)
def mesh(canvas: Canvas, word: dict[str, str]) -> None:
    split = split_processes(ParallelConfig(replicate=2, cp=4, ulysses=2), 16, num_heads=32)
    left, top, width, height = 128, 50, 112, 56
    for part in range(split.ring):
        x = left + part * split.ulysses * (width + 8) - 6
        canvas.box(x, top - 8, split.ulysses * (width + 8) + 4, split.data * (height + 8) + 10, line=FAINT)
        canvas.text(x + width + 4, top - 30, f"{word['ring']} {part}", size=12)
        for inner in range(split.ulysses):
            canvas.text(x + 6 + inner * (width + 8) + width / 2, top - 15, f"ulysses {inner}", size=11)
    for rank in range(split.world):
        group, part = divmod(rank, split.cp)
        replica, shard = divmod(rank, split.shard)
        x, y = left + part * (width + 8), top + group * (height + 8)
        canvas.box(x, y, width, height, HUES[replica], 0.25)
        canvas.text(x + 7, y + 13, rank, "start", 14, bold=True)
        canvas.text(x + width / 2 + 8, y + 26, f"{word['tokens']} {part + 1}/{split.cp}", size=11)
        canvas.text(x + width / 2 + 8, y + 42, f"{word['weights']} {shard + 1}/{split.shard}", size=11)
    for group in range(split.data):
        canvas.text(left - 14, top + group * (height + 8) + height / 2, f"{word['clips']}\n{group}", "end", 12)
    for replica in range(split.replicate):
        middle = top + (2 * replica + 1) * (height + 8) - 4
        canvas.text(left + 4 * (width + 8) + 6, middle, f"{word['replica']}\n{replica}", "start", 12, HUES[replica])


@diagram(
    "distributed.ulysses",
    278,
    en="Eight tokens (rows) and four heads (columns) on four processes, each of its colour. Before attention "
    "everybody has two tokens and all heads; one all-to-all later everybody has all tokens and one head, "
    "computes ordinary attention, and sends the result back.",
    pt="Oito tokens (linhas) e quatro cabeças (colunas) em quatro processos, cada um com a sua cor. Antes da "
    "atenção cada um tem dois tokens e todas as cabeças; um all-to-all depois cada um tem todos os tokens e "
    "uma cabeça, calcula a atenção comum e devolve o resultado.",
    tokens=("tokens", "tokens"),
    heads=("heads", "cabeças"),
    there=("all-to-all\nq, k, v", "all-to-all\nq, k, v"),
    back=("all-to-all\nresult", "all-to-all\nresultado"),
    attention=("attention", "atenção"),
)
def ulysses(canvas: Canvas, word: dict[str, str]) -> None:
    grids = [lambda token, head: token // 2, lambda token, head: head, lambda token, head: token // 2]
    for number, (x, owner) in enumerate(zip((64, 286, 508), grids, strict=True)):
        tokens_by_heads(canvas, x, 44, owner, word if number == 0 else None)
    arrows(canvas, word["there"], word["back"])
    canvas.text(342, 268, word["attention"], size=12)


@diagram(
    "distributed.both",
    278,
    en="The same tokens and heads as ring 2 x ulysses 2: the first two processes exchange heads over the first "
    "half of the tokens, the other two over the second half. Keys and values then travel round the ring, "
    "from the process with the same heads in the other half.",
    pt="Os mesmos tokens e cabeças com anel 2 x ulysses 2: os dois primeiros processos trocam cabeças na "
    "primeira metade dos tokens, os outros dois na segunda. Depois chaves e valores viajam pelo anel, vindos "
    "do processo com as mesmas cabeças na outra metade.",
    tokens=("tokens", "tokens"),
    heads=("heads", "cabeças"),
    there=("all-to-all\nq, k, v", "all-to-all\nq, k, v"),
    back=("all-to-all\nresult", "all-to-all\nresultado"),
    ring=("k, v", "k, v"),
)
def both(canvas: Canvas, word: dict[str, str]) -> None:
    grids = [
        lambda token, head: token // 2,
        lambda token, head: 2 * (token // 4) + head // 2,
        lambda token, head: token // 2,
    ]
    for number, (x, owner) in enumerate(zip((64, 286, 508), grids, strict=True)):
        tokens_by_heads(canvas, x, 44, owner, word if number == 0 else None)
    arrows(canvas, word["there"], word["back"])
    canvas.curve((400, 96), (400, 196), 22)
    canvas.curve((284, 196), (284, 96), 22)
    canvas.text(342, 268, word["ring"], size=12)


def tokens_by_heads(
    canvas: Canvas, x: float, y: float, owner: Callable[[int, int], int], word: dict[str, str] | None
) -> None:
    """Who has which tokens of which heads."""
    size = 26
    for token in range(8):
        for head in range(4):
            canvas.box(x + head * size, y + token * size, size, size, HUES[owner(token, head)], 0.5)
            canvas.text(x + (head + 0.5) * size, y + (token + 0.5) * size, owner(token, head), size=11)
    if word:
        canvas.text(x + 2 * size, y - 16, word["heads"], size=12)
        canvas.text(x - 10, y + 4 * size, word["tokens"], "end", 12)


def arrows(canvas: Canvas, there: str, back: str) -> None:
    """From the first grid to the second, and to the third."""
    for x, text in ((178, there), (412, back)):
        canvas.line([(x + 2, 148), (x + 86, 148)], arrow=True)
        canvas.text(x + 44, 122, text, size=11)


@diagram(
    "distributed.ring",
    302,
    en="A ring of four. Queries stay where they are; keys and values go one process further in every turn, and "
    "each process merges its attention to the block at hand into what it has so far. After four turns "
    "everybody has seen all blocks, and nobody ever held more than two.",
    pt="Um anel de quatro. As consultas ficam onde estão; chaves e valores avançam um processo a cada volta, e "
    "cada processo funde a atenção ao bloco que tem em mãos com o que já tem. Depois de quatro voltas todos "
    "viram todos os blocos, e ninguém teve mais de dois ao mesmo tempo.",
    process=("process", "processo"),
    turn=("turn", "volta"),
    queries=("queries", "consultas"),
    seen=("merged: result, log-sum-exp", "fundido: resultado, log-sum-exp"),
)
def ring(canvas: Canvas, word: dict[str, str]) -> None:
    left, width, top, height, n = 92, 132, 62, 50, 4
    for rank in range(n):
        x = left + rank * (width + 12)
        canvas.text(x + width / 2, 16, f"{word['process']} {rank}", size=12)
        canvas.text(x + width / 2, 38, f"{word['queries']} {rank}", size=12, fill=HUES[rank])
    for turn in range(n):
        y = top + turn * (height + 10)
        canvas.text(left - 16, y + height / 2, f"{word['turn']} {turn}", "end", 12)
        for rank in range(n):
            x, block = left + rank * (width + 12), (rank - turn) % n
            canvas.box(x, y, width, height, HUES[block], 0.35)
            canvas.text(x + width / 2, y + 16, f"k, v {block}", size=12)
            for done in range(turn + 1):  # a mark for each block that is in the result
                canvas.box(x + 26 + 21 * done, y + 33, 17, 8, HUES[(rank - done) % n], 0.9, "none")
            if turn < n - 1 and rank < n - 1:
                canvas.line(
                    [(x + width - 14, y + height + 1), (x + width + 24, y + height + 10)], HUES[block], 1.4, arrow=True
                )
        if turn < n - 1:
            last = left + (n - 1) * (width + 12) + width
            block = (n - 1 - turn) % n
            canvas.line([(last - 14, y + height + 1), (last + 6, y + height + 6)], HUES[block], 1.4, arrow=True)
            canvas.line([(left - 10, y + height + 6), (left + 14, y + height + 10)], HUES[block], 1.4, arrow=True)


@diagram(
    "distributed.fsdp",
    236,
    en="Which weights a process has whole, over one update of a model of four blocks. Each block is gathered "
    "when it is called, and given back after, except the last: the backward pass begins with it. The rest "
    "(embeddings, final layer) stays from first to last.",
    pt="Quais pesos um processo tem inteiros, durante uma atualização de um modelo de quatro blocos. Cada bloco "
    "é reunido quando é chamado e devolvido depois, exceto o último: com ele começa a passada para trás. O "
    "resto (embeddings, camada final) fica do começo ao fim.",
    rest=("the rest", "o resto"),
    block=("block", "bloco"),
    forward=("forward", "para a frente"),
    backward=("backward", "para trás"),
    gather=("gathered", "reunido"),
    reduce=("gradient averaged, a part kept", "gradiente médio, uma parte guardada"),
)
def fsdp(canvas: Canvas, word: dict[str, str]) -> None:
    left, top, height, blocks = 84, 40, 30, 4
    unit = (668 - left) / (3 * blocks + 2)
    forward = [1 + i for i in range(blocks)]
    backward = [1 + blocks + 2 * (blocks - 1 - i) for i in range(blocks)]
    end = 1 + 3 * blocks

    def bar(row: int, start: float, stop: float, hue: str) -> None:
        canvas.box(left + start * unit + 1, top + row * (height + 6), (stop - start) * unit - 2, height, hue, 0.45)

    for row in range(blocks + 1):
        y = top + row * (height + 6) + height / 2
        canvas.text(left - 8, y, word["rest"] if row == 0 else f"{word['block']} {row - 1}", "end", 12)
        canvas.line([(left, y), (left + (end + 1) * unit, y)], FAINT, dash="2 3")
    bar(0, 0, 1 + blocks, HUES[0])
    bar(0, 1 + blocks, end + 1, HUES[1])
    for i in range(blocks):
        bar(i + 1, forward[i], forward[i] + 1, HUES[0])
        bar(i + 1, backward[i], backward[i] + 2, HUES[1])
    turn = left + (1 + blocks) * unit
    canvas.line([(turn, 24), (turn, top + (blocks + 1) * (height + 6))], TEXT, 0.8)
    canvas.text((left + turn) / 2, 16, word["forward"], size=12, fill=HUES[0])
    canvas.text((turn + 668) / 2, 16, word["backward"], size=12, fill=HUES[1])
