"""Words and T5: the laws of the rows that cross-attention reads."""

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.conditioning.dropout import drop_text
from cosmos_ref.conditioning.text import T5Encoder, WordsEncoder, build_text_encoder, word_vector
from cosmos_ref.config import TextConfig
from cosmos_ref.errors import UserError
from tests.conditioning.small_t5 import write_t5

words = st.text("abcdefghijklmnopqrstuvwxyzãçé", min_size=1, max_size=12)


# Words ----------------------------------------------------------------------------------------------------


def test_point_values_of_a_word():
    # Written down once: a change of hash, generator, scaling or numpy's stream would change every trained model.
    assert word_vector("marble", 64)[:4].tolist() == pytest.approx(
        [-0.69771123, -0.22472766, 0.43576929, 0.55199504], rel=1e-6
    )
    assert word_vector("não", 4).tolist() == pytest.approx([-0.28341535, -0.68564415, -0.1319938, -1.8526051], rel=1e-6)


def test_a_row_is_the_word_plus_sine_and_cosine_of_its_place():
    row = WordsEncoder(8, 4).encode(["a red marble"])[0, 2]
    # Frequencies 100^0 and 100^(-1/2) = 0.1 at place 2.
    place = torch.tensor([2.0, 0.2]).sin().tolist() + torch.tensor([2.0, 0.2]).cos().tolist()
    assert (row - torch.from_numpy(word_vector("marble", 4))).tolist() == pytest.approx(place, abs=1e-6)


def test_the_same_in_every_process():
    command = (
        "from cosmos_ref.conditioning.text import WordsEncoder;"
        "print(WordsEncoder(3, 8).encode(['A red marble'])[0].flatten().tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12345"},  # another hash() of strings than in this process
    ).stdout
    assert printed.strip() == str(WordsEncoder(3, 8).encode(["A red marble"])[0].flatten().tolist())


@given(words)
def test_words_have_unit_rms(word):
    assert word_vector(word, 64).astype("float64").__pow__(2).mean() == pytest.approx(1, abs=1e-6)


@given(st.lists(words, min_size=2, max_size=2, unique=True))
def test_different_words_are_nearly_orthogonal(pair):
    a, b = (word_vector(word, 1024).astype("float64") for word in pair)
    # The cosine of two random directions in 1024 dimensions has standard deviation 1/32: 6 of them.
    assert abs(a @ b / 1024) < 6 / 32


def test_order_matters():
    encode = WordsEncoder(8, 64).encode
    one, two = encode(["red hits blue", "blue hits red"])
    assert torch.equal(one[1], two[1])
    # Not even the set of rows is the same, so attention, which ignores their order, can tell.
    assert torch.cdist(one[:3], two[:3])[0].min() > 1


def test_case_and_punctuation_do_not_matter():
    encode = WordsEncoder(8, 16).encode
    assert torch.equal(*encode(["A RED marble; it falls!", "  a red... marble\nit falls"]))


@given(st.lists(words, min_size=1, max_size=5))
def test_rows_behind_the_words_are_zero_and_do_not_change_the_others(sentence):
    short, long = (WordsEncoder(length, 16).encode([" ".join(sentence)])[0] for length in (5, 11))
    assert (long[len(sentence) :] == 0).all()
    assert torch.equal(short[: len(sentence)], long[: len(sentence)])
    assert (long[: len(sentence)] != 0).any(dim=1).all()


def test_no_prompt_is_all_zeros_beside_real_ones():
    rows = WordsEncoder(4, 8).encode([None, "falls", None])
    assert (rows[[0, 2]] == 0).all() and torch.equal(rows[1:2], WordsEncoder(4, 8).encode(["falls"]))
    assert WordsEncoder(4, 8).encode([]).shape == (0, 4, 8)


@pytest.mark.parametrize("prompt", ["", "  \n", "?!"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(UserError, match=re.escape(repr(prompt)) + ".*leave the prompt out"):
        WordsEncoder(4, 8).encode(["red", prompt])


def test_a_prompt_too_long_says_how_long_it_may_be():
    WordsEncoder(4, 8).encode(["one two three four"])
    with pytest.raises(UserError, match=r"one two.* has 5 words; at most 4 are accepted"):
        WordsEncoder(4, 8).encode(["one two three four five"])


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even, got 7"):
        WordsEncoder(4, 7)


# T5 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="the extra `text` is not installed")


@pytest.fixture(scope="module")
def t5_folder(transformers, tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


def test_t5_rows_are_the_last_hidden_states_of_the_tokens_and_their_end(transformers, t5_folder):
    rows = T5Encoder(t5_folder, length=12).encode(["a red marble", None, "marble falls"])
    model = transformers.T5EncoderModel.from_pretrained(t5_folder).eval()
    for row, ids in zip(rows[[0, 2]], [[3, 4, 5, 1], [5, 6, 1]], strict=True):  # alone, without any padding
        with torch.no_grad():
            direct = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        # The masked softmax sums in another order than the unmasked one: float32 rounding of values of order 1.
        torch.testing.assert_close(row[: len(ids)], direct, atol=1e-5, rtol=0)
        assert (row[len(ids) :] == 0).all()
    assert (rows[1] == 0).all()


def test_t5_padding_does_not_change_the_rows(t5_folder):
    short, long = (T5Encoder(t5_folder, length).encode(["a marble hits"]) for length in (4, 64))
    torch.testing.assert_close(short[0], long[0, :4], atol=1e-5, rtol=0)  # float32 rounding, as above


def test_t5_never_cuts_a_prompt_silently(t5_folder):
    encoder = T5Encoder(t5_folder, length=4)
    encoder.encode(["a red marble"])
    with pytest.raises(UserError, match=r"a red marble falls.* has 5 tokens; at most 4"):
        encoder.encode(["a red marble falls"])
    with pytest.raises(UserError, match="'  ' is empty"):
        encoder.encode(["  "])


def test_t5_trains_nothing_and_drops_nothing_out(t5_folder):
    encoder = T5Encoder(t5_folder, length=8)
    assert torch.equal(*encoder.encode(["a red marble"] * 2))
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())


def copied(folder, to, leave_out=()):
    """A copy of a folder without files of these suffixes."""
    to.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix not in leave_out:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_t5_without_weights_is_refused(t5_folder, tmp_path):
    copied(t5_folder, tmp_path, leave_out=[".safetensors"])
    with pytest.raises(UserError, match=f"T5 folder {re.escape(str(tmp_path))} cannot be read"):
        T5Encoder(tmp_path)


@pytest.mark.parametrize("new", [True, False], ids=["as of today", "as of 2019"])
def test_t5_from_a_bin_gives_the_same_rows_as_from_safetensors(new, t5_folder, tmp_path):
    copied(t5_folder, tmp_path, leave_out=[".safetensors"])
    torch.save(weights_of(t5_folder), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    prompts = ["a red marble"]
    assert torch.equal(T5Encoder(tmp_path, 8).encode(prompts), T5Encoder(t5_folder, 8).encode(prompts))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("new", [True, False], ids=["as of today", "as of 2019"])
def test_t5_in_a_bin_with_code_is_refused_and_the_code_not_run(new, t5_folder, tmp_path):
    folder = copied(t5_folder, tmp_path / "t5", leave_out=[".safetensors"])
    weights = {**weights_of(t5_folder), "more": Trap(tmp_path / "sprung")}
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match="could run code: give the same weights as safetensors"):
        T5Encoder(folder)
    assert not (tmp_path / "sprung").exists()
    (folder / "model.safetensors").write_bytes((t5_folder / "model.safetensors").read_bytes())
    T5Encoder(folder)  # which is preferred, and leaves the other alone
    assert not (tmp_path / "sprung").exists()
    # The file is this test's own. Unpickled on purpose, here alone: a trap that cannot spring would prove nothing.
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_t5_takes_the_tokenizer_beside_it_as_in_a_pipeline(t5_folder, tmp_path):
    names = {
        "text_encoder": ("config.json", "model.safetensors"),
        "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    }
    for part, files in names.items():
        (tmp_path / part).mkdir()
        for name in files:
            (tmp_path / part / name).write_bytes((t5_folder / name).read_bytes())
    prompts = ["a red marble", "marble falls"]
    found = T5Encoder(tmp_path / "text_encoder", 8).encode(prompts)
    assert torch.equal(found, T5Encoder(t5_folder, 8).encode(prompts))
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"text_encoder has no tokenizer: tokenizer\.json or spiece\.model"):
        T5Encoder(tmp_path / "text_encoder")


def test_t5_in_shards_is_the_same_as_in_one_file(transformers, t5_folder, tmp_path):
    copied(t5_folder, tmp_path, leave_out=[".safetensors"])
    transformers.T5EncoderModel.from_pretrained(t5_folder).save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompts = ["a red marble"]
    assert torch.equal(T5Encoder(tmp_path, 8).encode(prompts), T5Encoder(t5_folder, 8).encode(prompts))


def test_t5_keeps_its_files_precision_unless_told_which(t5_folder):
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        built = build_text_encoder(TextConfig("t5", 8, 32), t5_folder, dtype)
        assert {parameter.dtype for parameter in built.model.parameters()} == {expected}
    whole, half = (T5Encoder(t5_folder, 8, dtype).encode(["a red marble"]) for dtype in (None, torch.bfloat16))
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits: 0.4 % a step, a few dozen steps in one layer.
    assert 0 < (half - whole).norm() / whole.norm() < 0.05


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_t5_that_git_did_not_fetch_is_named_as_that(name, t5_folder, tmp_path):
    copied(t5_folder, tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9\n")
    with pytest.raises(UserError, match=f"{re.escape(name)} is a Git LFS pointer"):
        T5Encoder(tmp_path)


def test_t5_with_cut_weights_is_refused(t5_folder, tmp_path):
    for file in t5_folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(UserError, match="cannot be read"):
        T5Encoder(tmp_path)


def test_t5_weights_that_are_missing_are_not_made_up(t5_folder, tmp_path):
    from safetensors.torch import save_file

    weights = weights_of(copied(t5_folder, tmp_path))
    del weights["encoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights.*SelfAttention\.q"):
        T5Encoder(tmp_path)


# Building and dropping ------------------------------------------------------------------------------------


def test_a_preset_names_its_encoder(t5_folder):
    assert isinstance(build_text_encoder(TextConfig("words", 6, 10)), WordsEncoder)
    built = build_text_encoder(TextConfig("t5", 6, 32), t5_folder)
    assert (built.length, built.width) == (6, 32) and isinstance(built, T5Encoder)


def test_encoders_that_cannot_be_built_are_named(t5_folder, tmp_path):
    with pytest.raises(UserError, match="'clip'; accepted: words, t5"):
        build_text_encoder(TextConfig("clip", 6, 10))
    with pytest.raises(UserError, match="'t5' needs its folder"):
        build_text_encoder(TextConfig("t5", 6, 32))
    with pytest.raises(UserError, match="gone does not exist"):
        build_text_encoder(TextConfig("t5", 6, 32), tmp_path / "gone")
    with pytest.raises(UserError, match="gives width 32; this model takes 1024"):
        build_text_encoder(TextConfig("t5", 6, 1024), t5_folder)


def test_without_transformers_the_words_still_work_and_t5_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert WordsEncoder(4, 8).encode(["red"]).any()
    with pytest.raises(UserError, match=r"pip install 'cosmos-ref\[text\]'"):
        T5Encoder(tmp_path)


def test_dropped_text_is_the_null_text_and_kept_text_untouched():
    encode = WordsEncoder(4, 8).encode
    text = encode(["red", "blue", "falls"])
    dropped = drop_text(text, torch.tensor([True, False, True]))
    assert torch.equal(dropped, encode(["red", None, "falls"]))


def test_dropping_removes_text_that_is_not_finite():
    text = torch.full((1, 2, 4), torch.nan)
    assert (drop_text(text, torch.tensor([False])) == 0).all()  # a product with zero would keep it
