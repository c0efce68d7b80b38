"""Embeddings written beforehand: they are the encoder's, or they are refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_ref.conditioning.text import WordsEncoder
from cosmos_ref.conditioning.text_table import TextTable, write_text_table
from cosmos_ref.config import TextConfig
from cosmos_ref.errors import UserError
from tests.strategies import normal

TEXT = TextConfig(length=6, width=8)
PROMPTS = ["a red marble", "falls", "hits the wall, twice"]


@pytest.fixture
def table(tmp_path):
    return write_text_table(tmp_path / "a.safetensors", WordsEncoder(TEXT.length, TEXT.width), [*PROMPTS, PROMPTS[0]])


def test_what_is_looked_up_is_what_the_encoder_says(table):
    encoder = WordsEncoder(TEXT.length, TEXT.width)
    asked = [PROMPTS[2], None, PROMPTS[0]]
    assert torch.equal(TextTable(table, TEXT).encode(asked), encoder.encode(asked))


def test_only_the_rows_of_a_prompt_are_kept(table):
    assert {prompt: len(rows) for prompt, rows in load_file(table).items()} == dict(
        zip(PROMPTS, (3, 1, 4), strict=True)
    )


def test_embeddings_with_a_batch_axis_and_of_half_precision_are_taken(tmp_path):
    rows = normal(0, 1, 4, 8).bfloat16()
    save_file({"a": rows}, tmp_path / "a.safetensors")
    encoded = TextTable(tmp_path / "a.safetensors", TEXT).encode(["a"])
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded[:, :4], rows.float()) and not encoded[:, 4:].any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(7, 8), r"has shape \(7, 8\); this model takes up to 6 rows of 8"),
        (torch.ones(3, 4), r"has shape \(3, 4\)"),
        (torch.ones(2, 3, 8), r"has shape \(2, 3, 8\)"),
        (torch.full((3, 8), torch.nan), "not made of finite numbers"),
        (torch.ones(3, 8, dtype=torch.int32), "not made of finite numbers"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(rows, message, tmp_path):
    save_file({"a marble": rows}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"'a marble' .*{message}"):
        TextTable(tmp_path / "a.safetensors", TEXT)


def test_a_prompt_that_is_not_there_is_told_which_are(table):
    with pytest.raises(UserError, match=r"no embedding of 'a blue marble'; it has those of .*'falls'.*$"):
        TextTable(table, TEXT).encode(["a blue marble"])


@pytest.mark.parametrize("damage", ["truncate", "remove", "folder"])
def test_a_file_that_cannot_be_read_is_named(damage, table):
    content = table.read_bytes()
    table.unlink()
    if damage == "truncate":
        table.write_bytes(content[:-1])
    elif damage == "folder":
        table.mkdir()
    with pytest.raises(UserError, match=r"a\.safetensors"):
        TextTable(table, TEXT)


def test_a_prompt_that_cannot_be_encoded_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="empty"):
        write_text_table(tmp_path / "a.safetensors", WordsEncoder(6, 8), ["a marble", " "])
    assert not list(tmp_path.iterdir())
