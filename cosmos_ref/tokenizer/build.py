"""The tokenizer that a configuration describes."""

from cosmos_ref.config import HaarPCAConfig, TokenizerConfig
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer


def build_tokenizer(config: TokenizerConfig) -> HaarPCATokenizer | ContinuousTokenizer | DiscreteTokenizer:
    """A tokenizer without its weights: load or fit them."""
    if isinstance(config, HaarPCAConfig):
        return HaarPCATokenizer(config)
    return DiscreteTokenizer(config) if config.fsq_levels else ContinuousTokenizer(config)
