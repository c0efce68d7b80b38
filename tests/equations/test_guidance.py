import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import edm, exact, guidance
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

strengths = st.floats(-2, 15)


# --- cfg


@pytest.mark.verifies("guidance.cfg", by="point")
def test_cfg_at_the_default_strength():
    D_c, D_u = torch.tensor([3.0, 0.0]).double(), torch.tensor([1.0, 2.0]).double()
    assert guidance.cfg(D_c, D_u, 7.0).tolist() == [17.0, -14.0]


@pytest.mark.verifies("guidance.cfg")
@given(seeds)
def test_strength_zero_is_the_conditional_estimate(seed):
    D_c, D_u = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    assert torch.equal(guidance.cfg(D_c, D_u, 0.0), D_c)


@pytest.mark.verifies("guidance.cfg")
@given(seeds)
def test_strength_minus_one_is_the_unconditional_estimate(seed):
    D_c, D_u = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    torch.testing.assert_close(guidance.cfg(D_c, D_u, -1.0), D_u, rtol=0, atol=1e-14)


@pytest.mark.verifies("guidance.cfg")
@given(seeds, strengths)
def test_the_other_convention_has_one_more(seed, g):
    D_c, D_u = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    w = 1 + g
    torch.testing.assert_close(guidance.cfg(D_c, D_u, g), D_u + w * (D_c - D_u), rtol=0, atol=1e-12)


@pytest.mark.verifies("guidance.cfg")
@given(seeds, strengths)
def test_a_text_that_says_nothing_new_changes_nothing(seed, g):
    """To the last bit, in any precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        D = normal(seed, 2, 5).to(dtype)
        assert torch.equal(guidance.cfg(D, D, g), D)


@pytest.mark.verifies("guidance.cfg")
@given(sigmas, sigma_datas, seeds, strengths)
def test_guiding_the_network_is_guiding_its_estimate(sigma, sigma_data, seed, g):
    """The weights 1 + g and -g sum to one, so guidance commutes with D = c_skip x + c_out F."""
    x, F_c, F_u = normal(seed, 1, 6), normal(seed + 1, 1, 6), normal(seed + 2, 1, 6)
    guided_D = guidance.cfg(edm.denoise(F_c, x, sigma, sigma_data), edm.denoise(F_u, x, sigma, sigma_data), g)
    of_guided_F = edm.denoise(guidance.cfg(F_c, F_u, g), x, sigma, sigma_data)
    torch.testing.assert_close(guided_D, of_guided_F, rtol=0, atol=1e-11)


@pytest.mark.verifies("guidance.cfg", "guidance.cfg_from_unconditional")
@given(sigmas, sigma_datas, seeds, strengths)
def test_guidance_between_two_blobs_aims_beyond_the_first(sigma, std, seed, g):
    """Blobs of one width, with the text around m_c and without around m_u: guided, around m_c + g (m_c - m_u)."""
    x, m_c, m_u = normal(seed, 1, 3), normal(seed + 1, 3), normal(seed + 2, 3)
    D_c = exact.gaussian_denoiser(x, sigma, m_c, std)
    D_u = exact.gaussian_denoiser(x, sigma, m_u, std)
    expected = exact.gaussian_denoiser(x, sigma, m_c + g * (m_c - m_u), std)
    torch.testing.assert_close(guidance.cfg(D_c, D_u, g), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(guidance.cfg_from_unconditional(D_c, D_u, 1 + g), expected, rtol=0, atol=1e-12)


@impostor("guidance.cfg", "multiplied out: where text and no text agree, rounding errors are guided")
def cfg_multiplied_out(D_conditional, D_unconditional, guidance):
    return (1 + guidance) * D_conditional - guidance * D_unconditional


@impostor("guidance.cfg", "clamped to the range of pixels, which latents do not have")
def cfg_clamped(D_conditional, D_unconditional, guidance):
    return (D_conditional + guidance * (D_conditional - D_unconditional)).clamp(-1, 1)


@impostor("guidance.cfg", "rescaled to the spread of the conditional estimate, a habit of other models")
def cfg_rescaled(D_conditional, D_unconditional, guidance):
    D = D_conditional + guidance * (D_conditional - D_unconditional)
    return D * D_conditional.std() / D.std().clamp(min=1e-12)


@impostor("guidance.cfg", "the other convention: g = 1 is no guidance")
def cfg_from_the_unconditional(D_conditional, D_unconditional, guidance):
    return D_unconditional + guidance * (D_conditional - D_unconditional)


@impostor("guidance.cfg", "the text pushes away")
def cfg_with_the_sign_turned(D_conditional, D_unconditional, guidance):
    return D_conditional + guidance * (D_unconditional - D_conditional)


@impostor("guidance.cfg", "g forgotten on the unconditional half")
def cfg_with_weights_that_do_not_sum_to_one(D_conditional, D_unconditional, guidance):
    return (1 + guidance) * D_conditional - D_unconditional


# --- cfg_from_unconditional


@pytest.mark.verifies("guidance.cfg_from_unconditional", by="point")
def test_scale_eight_is_the_default_strength_of_seven():
    D_c, D_u = torch.tensor([3.0, 0.0]).double(), torch.tensor([1.0, 2.0]).double()
    assert guidance.cfg_from_unconditional(D_c, D_u, 8.0).tolist() == [17.0, -14.0]


@pytest.mark.verifies("guidance.cfg_from_unconditional")
@given(seeds)
def test_scale_one_is_the_conditional_estimate_and_scale_zero_the_other(seed):
    D_c, D_u = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    assert torch.equal(guidance.cfg_from_unconditional(D_c, D_u, 1.0), D_c)
    torch.testing.assert_close(guidance.cfg_from_unconditional(D_c, D_u, 0.0), D_u, rtol=0, atol=1e-14)


@pytest.mark.verifies("guidance.cfg_from_unconditional")
@given(seeds, st.floats(-2, 15))
def test_the_way_from_the_unconditional_estimate_is_proportional_to_the_scale(seed, w):
    D_c, D_u = normal(seed, 2, 5), normal(seed + 1, 2, 5)
    way = guidance.cfg_from_unconditional(D_c, D_u, w) - D_u
    torch.testing.assert_close(way, w * (D_c - D_u), rtol=0, atol=1e-12)


@impostor("guidance.cfg_from_unconditional", "the scale taken for g: one too strong")
def scale_taken_for_g(D_conditional, D_unconditional, guidance_scale):
    return D_conditional + guidance_scale * (D_conditional - D_unconditional)


@impostor("guidance.cfg_from_unconditional", "one added where one is to be taken away")
def scale_plus_one(D_conditional, D_unconditional, guidance_scale):
    return D_unconditional + (guidance_scale + 2) * (D_conditional - D_unconditional)


@impostor("guidance.cfg_from_unconditional", "with and without text exchanged")
def scale_with_exchanged_branches(D_conditional, D_unconditional, guidance_scale):
    return D_conditional + guidance_scale * (D_unconditional - D_conditional)
