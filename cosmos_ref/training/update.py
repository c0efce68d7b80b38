"""One update of the weights, from the micro-batches of this process and the gradients of all."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cosmos_ref.config import Config
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.training.data import Batch
from cosmos_ref.training.layout import Layout, OneProcess
from cosmos_ref.training.metrics import batch_costs, sigma_edges, sigma_record, sigma_sums
from cosmos_ref.training.optimizer import clip_gradients, learning_rate
from cosmos_ref.training.run import Run
from cosmos_ref.training.step import training_loss


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not finite; the checkpoints so far are kept."""

    at_fault = False
    """Whether clips of this process are to blame."""


def advance(run: Run, batches: Sequence[Batch], config: Config, layout: Layout | None = None) -> dict[str, float]:
    """Do one update and return what is worth recording of it, over all processes, within `layout.images()` for images.

    The loss is the mean over all samples of the update, however they are cut into equal micro-batches and spread.

    Args:
        run: what is updated.
        batches: the micro-batches of this process, equally large.
        config: learning rate, precision, limit of the gradient's norm.
        layout: the processes; None is this one alone.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite, in any process; nothing was changed.
    """
    layout = layout or OneProcess()
    rate = learning_rate(run.step, config.train)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    denoiser = in_bf16(run.denoiser, layout.device) if config.train.precision == "bf16" else run.denoiser
    edges = sigma_edges(config, batches[0].domain)
    run.optimizer.zero_grad()
    losses, errors, measures = [], [], []
    logvars: list[Tensor] = []

    def uncertainty(sigma: Tensor) -> Tensor:
        # Looked at on its way: a second call without backward pass would leave weights that are spread gathered.
        logvar = run.uncertainty(sigma)
        logvars.append(logvar.detach())
        return logvar

    for batch in batches:
        loss, weighted = training_loss(
            denoiser, uncertainty, batch.x0, batch.condition, batch.noise, batch.sigma, config.diffusion.sigma_data
        )
        (loss * (config.train.loss_scale / len(batches))).backward()
        losses.append(loss.detach())
        errors.append(weighted)
        by_sigma = sigma_sums(weighted, logvars[-1].exp(), batch.sigma, edges).flatten()
        measures.append(torch.cat([by_sigma, by_sigma.new_tensor(batch_costs(batch, config))]))
    means = torch.stack([torch.stack(losses).mean(), torch.cat(errors).mean()]).double()
    loss, error, *sums = layout.mean(torch.cat([means, torch.stack(measures).sum(0)])).unbind()
    norm = clip_gradients(run.parameters, config.train.max_grad_norm)
    record = {"loss": loss.item(), "weighted_error": error.item(), "grad_norm": norm, "lr": rate}
    for name, value in record.items():
        if not math.isfinite(value):
            found = _diverged(run.step + 1, name, value, batches, errors)
            elsewhere = layout.mean(torch.tensor(float(found.at_fault), device=layout.device)).item() > 0
            layout.agree(found if found.at_fault or not elsewhere else None)  # who has the broken clips speaks
    *by_sigma, tokens, flops = layout.data_size * torch.stack(sums)
    record |= sigma_record(batches[0].domain, torch.stack(by_sigma).reshape(3, -1))
    record |= {"tokens": tokens.item(), "flops": flops.item()}
    run.optimizer.step()
    for ema in run.emas.values():
        ema.update(run.denoiser, run.step)
    run.step += 1
    return record


def in_bf16(denoiser: Denoiser, device: torch.device) -> Callable[..., Tensor]:
    """The denoiser with bfloat16 matrix products; its weights, its preconditioning and the loss stay float32."""

    def call(*args: Tensor, **condition: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return denoiser(*args, **condition)

    return call


def _diverged(
    step: int, name: str, value: float, batches: Sequence[Batch], errors: Sequence[Tensor]
) -> TrainingDiverged:
    """What went wrong, as far as this process can see it."""
    domain = batches[0].domain
    broken = [
        sample
        for batch in batches
        for sample, x0 in zip(batch.samples, batch.x0, strict=False)
        if not torch.isfinite(x0).all()
    ]
    wrong = [
        sample
        for batch, error in zip(batches, errors, strict=True)
        for sample, e in zip(batch.samples, error, strict=False)
        if not torch.isfinite(e)
    ]
    message = f"step {step}: {name} is {value} in an update of {domain}s; the checkpoints so far are kept. "
    if broken:
        listed = ", ".join(map(str, broken))
        found = TrainingDiverged(
            f"{message}The clips of {domain} samples {listed} are not finite: take them out of the data, and "
            "go on by --resume --changed"
        )
        found.at_fault = True
        return found
    if wrong:
        message += f"The error of {domain} samples {', '.join(map(str, wrong))} is not finite though their clips are. "
    return TrainingDiverged(
        f"{message}Try a lower --train.learning-rate, with --resume --changed, or begin "
        "again with a longer --train.warmup-steps"
    )
