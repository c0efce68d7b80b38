import pytest
import torch

from cosmos_ref.errors import UserError
from cosmos_ref.interop.tokenizer_names import tokenizer_from_diffusers, tokenizer_names, tokenizer_to_diffusers
from tests.tokenizer.small import SMALL, drawn_tokenizer


@pytest.fixture(scope="module", params=SMALL)
def config(request):
    return SMALL[request.param]


def test_to_diffusers_and_back_every_weight_is_the_same_tensor(config):
    state = drawn_tokenizer(config).state_dict()
    back = tokenizer_from_diffusers(tokenizer_to_diffusers(state, config), config)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in tokenizer_names(config))


def test_without_statistics_latents_stay_as_they_are(config):
    state = tokenizer_to_diffusers(drawn_tokenizer(config).state_dict(), config)
    loaded = tokenizer_from_diffusers(state, config)
    assert loaded["mean"].dtype == loaded["std"].dtype == torch.float64
    assert (loaded["mean"] == 0).all() and (loaded["std"] == 1).all()


def test_missing_and_unknown_names_are_all_listed(config):
    ours = drawn_tokenizer(config).state_dict()
    theirs = tokenizer_to_diffusers(ours, config)
    for tensors, convert in ((ours, tokenizer_to_diffusers), (theirs, tokenizer_from_diffusers)):
        spoilt = {f"loss.{name}" if name == "quant_conv.bias" else name: tensor for name, tensor in tensors.items()}
        with pytest.raises(UserError, match=r"(?s)missing: quant_conv.bias.*unknown: loss.quant_conv.bias"):
            convert(spoilt, config)


def test_weights_of_the_other_tokenizer_are_refused():
    cv8, cv4 = SMALL["CV8x8x8"], SMALL["CV4x8x8"]
    theirs = tokenizer_to_diffusers(drawn_tokenizer(cv4).state_dict(), cv4)
    with pytest.raises(UserError, match=r"missing: decoder\.up_blocks\.0\.resnets\.2(?s:.*)and \d+ more"):
        tokenizer_from_diffusers(theirs, cv8)


def test_statistics_of_another_length_are_refused(config):
    state = tokenizer_to_diffusers(drawn_tokenizer(config).state_dict(), config)
    with pytest.raises(UserError, match=r"latents_std has 16 values, not 5 channels \* 3 latent frames = 15"):
        tokenizer_from_diffusers(state, config, latents_std=[1.0] * 16)
