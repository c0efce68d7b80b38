"""What the convolutional tokenizers share: an encoder, a decoder, and the clips that fit them."""

from cosmos_ref.blocks.causal_conv import Past
from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.equations.causal import check_side, latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.decoder import Decoder
from cosmos_ref.tokenizer.encoder import Encoder


def build_encoder(config: ConvTokenizerConfig) -> Encoder:
    """Encoder of this tokenizer."""
    return Encoder(config.patch_levels, config.encoder_widths, config.strides, config.num_blocks, config.channels)


def build_decoder(config: ConvTokenizerConfig) -> Decoder:
    """Decoder of this tokenizer, strides in reverse and one block more at each level."""
    strides, num_blocks = config.strides[::-1], config.num_blocks + 1
    return Decoder(config.patch_levels, config.decoder_widths, strides, num_blocks, config.channels)


def check_video(video: Video, past: Past | None, temporal_factor: int, spatial_factor: int) -> None:
    """Refuse a clip, or a later chunk of one, that does not fit the grid of latents.

    Raises:
        UserError: if its length is not 1 + k * temporal_factor, or its sides do not divide.
    """
    frames = video.shape[2]
    if past is None or not past.latent_frames:
        latent_length(frames, temporal_factor)
    elif frames < 1 or frames % temporal_factor:
        raise UserError(f"a later chunk of {frames} frames does not fit: it must be a multiple of {temporal_factor}")
    for name, size in zip(("height", "width"), video.shape[3:], strict=True):
        check_side(name, size, spatial_factor)
