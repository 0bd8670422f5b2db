"""Tokenizers small enough to be made in a test, of the kinds that models have."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["the quick brown fox jumps over the lazy dog", "user assistant system hello there, it's 2024!\n\n"] * 9
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(*special):
    """A byte-level BPE, as most models of today have one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([*special, "<|start|>", "<|end|>", "<|end|>x"])
    return tokenizer


def sentence_piece(scheme="first"):
    """A BPE over characters that marks blanks, sets one before the text, and begins with BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def greedy_tokens():
    """Added tokens that take blanks with them, stand for whole words, or are looked for after normalizing."""
    tokenizer = byte_level(
        AddedToken("<|left|>", lstrip=True),
        AddedToken("<|right|>", rstrip=True),
        AddedToken("<|right|><|end|>", rstrip=True),
        AddedToken("<|end|>y", lstrip=True),
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("fox", single_word=True), AddedToken("DOG", normalized=True)])
    return tokenizer


def save(folder, tokenizer, template=TEMPLATE):
    """A model's folder with nothing but its tokenizer; also a worker's `root`."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return str(folder)
