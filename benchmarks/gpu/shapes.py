"""Models to measure with, made here: a configuration and a tokenizer, and weights only where answers matter.

vLLM fills a model without weights with small random numbers, the same in every server (`--load-format dummy`):
its speed is that of the real one, its answers mean nothing. Where answers are compared, weights are written too,
spread so widely over the vocabulary that rounding does not decide between two tokens.

The tokenizer knows bytes, some frequent words as one token each, and made-up words for all other ids: any token is
text, and what a model has said is the same tokens when it is sent back.
"""

import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fleet.load import WORDS

TURN, END = "<|turn|>", "<|end|>"
CHAT_TEMPLATE = (
    f"{{% for message in messages %}}{TURN}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)
_SPECIAL = ("<|none|>", TURN, END)
_MADE_OF = "bcdfghjklmnpqrstvwxz"
"""Consonants only, so that no made-up word is a real one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's dimensions."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool = False
    """Input and output embedding are one matrix."""
    weights: bool = False
    """They are written, too."""

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every weight, as in a checkpoint."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.self_attn.q_proj.weight", (wide, self.hidden)
            yield f"{layer}.self_attn.k_proj.weight", (narrow, self.hidden)
            yield f"{layer}.self_attn.v_proj.weight", (narrow, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, wide)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{layer}.mlp.gate_proj.weight", (self.mlp, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.mlp, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.mlp)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def weight_bytes(self) -> int:
        """In bfloat16."""
        return 2 * sum(int(np.prod(shape)) for _, shape in self.tensors())

    @property
    def kv_bytes(self) -> int:
        """Of one token, keys and values, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def config(self) -> dict[str, object]:
        """What config.json says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            # From 4.57.2 on a tokenizer of this size is not taken for an old one of another kind.
            "transformers_version": "4.57.6",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


SHAPES = {
    # From the published config.json of each; positions as many as the benchmarks use.
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 32768),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 32768, tied=True),
    # Runs anywhere. Head dimension 64: taken by the attention kernels of CPUs and GPUs alike.
    "little": Shape(2, 256, 512, 4, 2, 64, 2048, 32768, weights=True),
}


def write_model(folder: Path, shape: Shape) -> Path:
    """Write a model into the folder, which is made if it is missing; a model that is there already stays."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocabulary)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": _SPECIAL[0],
                "eos_token": END,
                "pad_token": _SPECIAL[0],
                "clean_up_tokenization_spaces": False,
                "model_max_length": shape.positions,
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )
    if shape.weights:
        write_weights(folder / "model.safetensors", shape)
    # Last: a folder that has it is whole.
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    return folder


def tokenizer(vocabulary: int) -> dict[str, object]:
    """A tokenizer.json with a number of tokens, each of them text but for three."""
    found = [*_SPECIAL, *_byte_letters()]
    found += ["Ġ" + word for word in WORDS] + list(WORDS)
    size = 1 + next(n for n in itertools.count(1) if len(_MADE_OF) ** n >= vocabulary)
    made_up = ("Ġ" + "".join(letters) for letters in itertools.product(_MADE_OF, repeat=size))
    found += itertools.islice(made_up, max(0, vocabulary - len(found)))
    special = [
        {"id": number, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(_SPECIAL)
    ]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": by_bytes,
        "post_processor": None,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # A word that is in the vocabulary is one token; all others fall apart into bytes.
            "ignore_merges": True,
            "vocab": {token: number for number, token in enumerate(found[:vocabulary])},
            "merges": [],
        },
    }


def write_weights(file: Path, shape: Shape, seed: int = 0) -> None:
    """Random weights as safetensors. Few rows of the output matrix are much longer than all others.

    The longest ones win wherever the last state points their way, by far more than bfloat16 rounds away; which of
    them that are depends on everything that was read before.
    """
    chance = np.random.default_rng(seed)
    header: dict[str, object] = {}
    parts: list[bytes] = []
    at = 0
    for name, dimensions in shape.tensors():
        if len(dimensions) == 1:
            values = np.ones(dimensions, np.float32)
        else:
            values = chance.standard_normal(dimensions, np.float32) / np.float32(dimensions[1] ** 0.5)
        if name == "model.embed_tokens.weight":
            # Small beside what the layers add, so that a state is more than its last token.
            values *= np.float32(0.1 * dimensions[1] ** 0.5)
        if name == "lm_head.weight":
            values *= np.exp(0.7 * chance.standard_normal((dimensions[0], 1), np.float32))
            values[: len(_SPECIAL)] = 0  # never said
        part = _bfloat16(values)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(parts)


def _bfloat16(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> bytes:
    """The upper half of each float32, rounded to the nearest."""
    return ((values.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes()


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(number) for number in itertools.count(0x100))
    return [chr(byte) if byte in seen else next(others) for byte in range(256)]
