"""Our network and tokenizer against diffusers', in one process: same weights, same inputs, turn by turn.

What counts is the ratio ours / theirs, the median over pairs of neighbouring runs; both sides' outputs are compared
before anything is timed.

    OMP_NUM_THREADS=2 python benchmarks/against_diffusers.py            # all, under ten minutes
    python benchmarks/against_diffusers.py --quick --only "guided"      # some, few repetitions
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import diffusers.utils
import diffusers.utils.logging
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from cosmos_ref.conditioning.condition import text_condition
from cosmos_ref.config import PRESETS, TOKENIZERS, Config, HaarPCAConfig, ModelConfig, SampleConfig, TextConfig
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.equations.patches import grid_positions
from cosmos_ref.interop.names import diffusers_config, from_ours
from cosmos_ref.interop.tokenizer_names import tokenizer_names
from cosmos_ref.model.denoiser import Text2WorldDenoiser
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.pipelines.sample import guided, sample, schedule
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer

# diffusers asks torchvision for the nearest resize of the padding mask; this does it in its place.
diffusers.utils.is_torchvision_available = lambda: False
diffusers.utils.logging.set_verbosity_error()
from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel, EDMEulerScheduler  # noqa: E402
from diffusers.models.transformers import transformer_cosmos  # noqa: E402

_InterpolationMode = Enum("InterpolationMode", {"NEAREST": "nearest"})
transformer_cosmos.transforms = SimpleNamespace(
    InterpolationMode=_InterpolationMode,
    functional=SimpleNamespace(resize=lambda mask, size, interpolation: nnf.interpolate(mask, size=size)),
)

RESULTS = Path(__file__).parent / "results" / "against_diffusers.json"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference over the largest value, at which two outputs are still the same computation."""


@dataclass(frozen=True)
class Size:
    """A network and the clip it sees."""

    width: int
    depth: int
    num_heads: int
    grid: tuple[int, int, int]
    """Tokens along (t, h, w)."""
    text_length: int
    text_width: int


SIZES = {
    "small": Size(128, 4, 4, (5, 4, 4), 24, 64),  # the preset tiny
    "medium": Size(512, 4, 8, (4, 16, 16), 128, 1024),
    "large": Size(1024, 2, 8, (4, 32, 32), 512, 1024),
}
CLIPS = {"small": (9, 32, 32), "medium": (17, 96, 96)}
"""Frames, height and width for the tokenizer, which is CV8x8x8 itself."""


@dataclass(frozen=True)
class Case:
    """Two callables that do the same."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Row:
    """What was measured: medians in milliseconds, and the median of the ratios of neighbouring runs."""

    name: str
    ours_ms: float
    diffusers_ms: float
    ratio: float
    lowest: float
    highest: float
    """Quartiles of the ratio."""
    pairs: int


def network_config(size: Size) -> Config:
    """A Text2World preset of that size."""
    model = ModelConfig(
        width=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        text_width=size.text_width,
        adaln_lora_dim=max(32, size.width // 16),
        video2world=False,
        max_tokens=(16, 64, 64),
        qk_norm_eps=1e-5,
    )
    text = TextConfig(length=size.text_length, width=size.text_width)
    return replace(PRESETS["micro"], model=model, text=text, tokenizer=HaarPCAConfig())


def drawn(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module with unit-gain random weights, norms at one, biases at zero."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(generator=generator).div_(weight[0].numel() ** 0.5)
            else:
                weight.fill_(name.endswith("weight"))
    return module


def both_networks(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[CosmosDiT, nn.Module, Config]:
    """Our network and diffusers' with its weights."""
    config = network_config(size)
    ours = drawn(CosmosDiT(config.model), torch.Generator().manual_seed(0)).eval()
    arguments = {key: value for key, value in diffusers_config(config).items() if key != "_class_name"}
    theirs = CosmosTransformer3DModel(**arguments).eval()
    names, state = from_ours("diffusers", config), ours.state_dict()
    theirs.load_state_dict({names[f"model.network.{name}"]: tensor for name, tensor in state.items()})
    return ours.to(device, dtype), theirs.to(device, dtype), config


def network_cases(name: str, dtype: torch.dtype, device: torch.device, compiled: bool) -> Iterator[Case]:
    """Forward, and forward with backward, at one noise level."""
    size = replace(SIZES[name], depth=1) if compiled else SIZES[name]  # to compile a block more would take a minute
    ours, theirs, config = both_networks(size, dtype, device)
    call_ours, call_theirs = (torch.compile(ours), torch.compile(theirs)) if compiled else (ours, theirs)
    t, h, w = size.grid
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.model.channels, t, 2 * h, 2 * w, generator=generator).to(device, dtype)
    text = torch.randn(1, size.text_length, size.text_width, generator=generator).to(device, dtype)
    padding, c_noise = x.new_zeros(1, 1, 2 * h, 2 * w), x.new_tensor([0.3])
    fps = torch.tensor([24.0], device=device)

    def our_forward() -> Tensor:
        network_input = torch.cat([x, padding[:, :, None].expand(-1, -1, t, -1, -1)], dim=1)
        return call_ours(network_input, c_noise, text, grid_positions(size.grid, device), fps)

    def their_forward() -> Tensor:
        return call_theirs(x, c_noise, text, fps=24, padding_mask=padding, return_dict=False)[0]

    def with_backward(module: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            module.zero_grad()
            output = forward()
            output.float().square().mean().backward()
            return output.detach()

        return step

    label = f"network {name}{', one block, compiled' if compiled else ' eager'} {_short(dtype)}"
    yield Case(f"{label} forward", torch.no_grad()(our_forward), torch.no_grad()(their_forward), dtype)
    yield Case(
        f"{label} forward+backward", with_backward(ours, our_forward), with_backward(theirs, their_forward), dtype
    )


def sampling_case(name: str, dtype: torch.dtype, device: torch.device, steps: int) -> Case:
    """A whole guided sampling: ours, and diffusers' scheduler with two calls a step, as its pipeline has it."""
    size = SIZES[name]
    ours, theirs, config = both_networks(size, dtype, device)
    t, h, w = size.grid
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(1, config.model.channels, t, 2 * h, 2 * w, generator=generator).to(device)
    text, null = (torch.randn(1, size.text_length, size.text_width, generator=generator).to(device) for _ in range(2))
    diffusion, settings = config.diffusion, SampleConfig(solver="euler", num_steps=steps, guidance=1.0)
    denoiser = Text2WorldDenoiser(ours, diffusion.sigma_data)
    scheduler = EDMEulerScheduler(
        sigma_min=diffusion.sigma_min, sigma_max=diffusion.sigma_max, sigma_data=diffusion.sigma_data
    )

    def our_run() -> Tensor:
        condition = text_condition(text, noise, noise.new_tensor([24.0]))
        sigmas = schedule(diffusion, settings)
        return sample(guided(denoiser, noise, sigmas, condition, null, settings.guidance), noise, sigmas, settings)

    @torch.no_grad()
    def their_run() -> Tensor:
        scheduler.set_timesteps(steps, device=device)
        latents, padding = noise * diffusion.sigma_max, noise.new_zeros(1, 1, 2 * h, 2 * w, dtype=dtype)
        embeddings = [embedding.to(dtype) for embedding in (text, null)]
        for timestep in scheduler.timesteps:
            network_input = scheduler.scale_model_input(latents, timestep).to(dtype)
            each = timestep.expand(1).to(dtype)
            outputs = [
                theirs(network_input, each, embedding, fps=24, padding_mask=padding, return_dict=False)[0]
                for embedding in embeddings
            ]
            estimates = scheduler.step(torch.cat(outputs), timestep, torch.cat([latents, latents]), return_dict=False)[
                1
            ]
            scheduler._step_index -= 1
            D_text, D_null = estimates.chunk(2)
            D = D_text + settings.guidance * (D_text - D_null)
            latents = scheduler.step(D, timestep, latents, return_dict=False, pred_original_sample=D)[0]
        return latents

    return Case(f"guided sampling, {steps} steps, {name} {_short(dtype)}", our_run, their_run, dtype)


def tokenizer_cases(name: str, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Encode and decode, and a step back through both."""
    config, (frames, height, width) = TOKENIZERS["CV8x8x8"], CLIPS[name]
    ours = drawn(ContinuousTokenizer(config), torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():  # into [-1, 1], which ours holds its videos to
        ours.decoder.conv_out.time.weight.mul_(0.01)
    theirs = AutoencoderKLCosmos().eval()
    state = ours.state_dict()
    theirs.load_state_dict({there: state[name] for name, there in tokenizer_names(config, "diffusers").items()})
    ours, theirs = ours.to(device, dtype), theirs.to(device, dtype)
    video = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(4)) * 2 - 1
    video = video.to(device, dtype)
    with torch.no_grad():
        latents = ours.encode(video)
    for what, call_ours, call_theirs in (
        ("encode", lambda: ours.encode(video), lambda: theirs.encode(video).latent_dist.mode()),
        ("decode", lambda: ours.decode(latents), lambda: theirs.decode(latents).sample),
    ):
        label = f"tokenizer {name} eager {_short(dtype)} {what}"
        yield Case(label, torch.no_grad()(call_ours), torch.no_grad()(call_theirs), dtype)


def all_cases(quick: bool, device: torch.device) -> Iterator[tuple[str, Callable[[], Iterator[Case]]]]:
    """Groups of cases by name, each built only when its turn comes."""
    dtypes = [torch.float32, torch.bfloat16] if has_bfloat16(device) else [torch.float32]
    sizes = ["small", "medium"] if quick else list(SIZES)
    steps = 35
    for name in sizes:
        for dtype in dtypes:
            yield f"network {name} eager {_short(dtype)}", lambda n=name, d=dtype: network_cases(n, d, device, False)
    for name in ["small"] if quick else ["small", "medium"]:
        for dtype in dtypes[:1] if quick else dtypes if name == "small" else dtypes[-1:]:  # a minute in bfloat16
            yield (
                f"guided sampling, {steps} steps, {name} {_short(dtype)}",
                lambda n=name, d=dtype: iter([sampling_case(n, d, device, steps)]),
            )
    for name in ["small"] if quick else CLIPS:
        for dtype in dtypes if device.type == "cuda" and not quick else dtypes[:1]:  # no bfloat16 pooling on CPUs
            yield f"tokenizer {name} eager {_short(dtype)}", lambda n=name, d=dtype: tokenizer_cases(n, d, device)
    if not quick:
        for name in ["small", "medium"]:
            yield (
                f"network {name}, one block, compiled fp32",
                lambda n=name: network_cases(n, torch.float32, device, True),
            )


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are made in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def seconds(call: Callable[[], Tensor], times: int, device: torch.device) -> float:
    """Time of one of `times` calls in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return (time.perf_counter() - start) / times


def measure(case: Case, budget: float, device: torch.device) -> Row:
    """Time both sides turn by turn for about `budget` seconds: at least five pairs, three where a call takes four.

    Raises:
        RuntimeError: if they do not compute the same.
    """
    found, expected = case.ours().float(), case.theirs().float()
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference < TOLERANCE[case.dtype]:
        raise RuntimeError(f"{case.name}: the outputs differ by {difference:.2g} of the largest value")
    once = max(seconds(case.theirs, 1, device), 1e-6)  # warm by now
    times = max(1, round(0.02 / once))  # long enough for the clock
    pairs = min(200, max(3 if once > 4 else 5, round(budget / (2 * once * times))))
    ours, theirs = [], []
    for turn in range(pairs):
        both = [(ours, case.ours), (theirs, case.theirs)]
        for found_seconds, call in both if turn % 2 else reversed(both):
            found_seconds.append(seconds(call, times, device))
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(
        case.name,
        1e3 * statistics.median(ours),
        1e3 * statistics.median(theirs),
        statistics.median(ratios),
        ratios[pairs // 4],
        ratios[(3 * pairs) // 4],
        pairs,
    )


def main() -> None:
    """Measure, print a table, and write it with the machine, the versions and the date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions, nothing compiled")
    parser.add_argument(
        "--only", default="", help="only groups with this in their name, as in 'medium eager', 'guided', 'tokenizer'"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the figures")
    arguments = parser.parse_args()
    device, rows, start = torch.device(arguments.device), [], time.perf_counter()
    print(f"{'case':56} {'ours ms':>9} {'diffusers':>9} {'ratio':>6}  quartiles   pairs")
    for group, cases in all_cases(arguments.quick, device):
        if arguments.only not in group:
            continue
        for case in cases():
            row = measure(case, 2 if arguments.quick else 6, device)
            rows.append(row)
            spread = f"{row.lowest:.2f}-{row.highest:.2f}"
            times = f"{row.ours_ms:9.2f} {row.diffusers_ms:9.2f}"
            print(f"{row.name:56} {times} {row.ratio:6.3f}  {spread:11} {row.pairs:5}", flush=True)
    used = {"diffusers": diffusers.__version__} | versions()
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine()
        | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"},
        "versions": used,
        "quick": arguments.quick,
        "rows": [asdict(row) for row in rows],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{time.perf_counter() - start:.0f} s; written to {arguments.out}")


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
