"""A random T5 of one layer with a vocabulary of eight words, as transformers writes it."""

from pathlib import Path

import torch


def write_t5(folder: Path, tokenizer_folder: Path | None = None) -> Path:
    """Write weights and configuration into `folder`; the tokenizer's files there too, or into a folder of their own."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = ["<pad>", "</s>", "<unk>", "a", "red", "marble", "falls", "hits"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tokenizer_folder or folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder
