"""How long one engine step takes on a given GPU with a given model.

A step runs every weight once for all its tokens, reads the KV cache of every decoding sequence and computes the
attention of every prefill chunk:

    step = overhead
         + max(weight bytes / bandwidth, tokens * FLOPs per token / compute)       matrix products
         + decode context * KV bytes per token / bandwidth                         attention of decodes
         + attention FLOPs of the prefill chunks / compute                         quadratic term

Hardware figures are the vendors' data sheets, model figures follow from the published configuration, and the two
efficiencies (what is reached of a data sheet's peak) are round numbers in the range that public measurements of
serving engines report. The profiles stand for orders of magnitude and for the right shape, not for a benchmark.
"""

from dataclasses import dataclass

# Llama 3.1 8B, from its config.json: 32 layers, hidden 4096, 32 query and 8 KV heads of 128, MLP 14336,
# vocabulary 128256, bfloat16.
_LAYERS, _HIDDEN, _KV_WIDTH, _MLP, _VOCABULARY = 32, 4096, 8 * 128, 14336, 128256
# Per layer: Q and O (hidden x hidden each), K and V (hidden x KV width each), three MLP matrices.
_LAYER_WEIGHTS = 2 * _HIDDEN * _HIDDEN + 2 * _HIDDEN * _KV_WIDTH + 3 * _HIDDEN * _MLP  # 218.1 million
_BODY_WEIGHTS = _LAYERS * _LAYER_WEIGHTS  # 6.98e9, used by every token
_HEAD_WEIGHTS = _HIDDEN * _VOCABULARY  # 0.53e9, used by sampled tokens; the embedding is a lookup of the same size
_WEIGHT_BYTES_READ = 2.0 * (_BODY_WEIGHTS + _HEAD_WEIGHTS)  # 15.0 GB in bfloat16, once per step
_WEIGHT_BYTES_HELD = 2.0 * (_BODY_WEIGHTS + 2 * _HEAD_WEIGHTS)  # 16.1 GB in memory
# A multiply and an add per weight.
_FLOPS_PER_TOKEN = 2.0 * _BODY_WEIGHTS  # 14.0 GFLOP
_FLOPS_PER_SAMPLE = 2.0 * _HEAD_WEIGHTS  # 1.1 GFLOP
# K and V, all layers, 2 bytes.
_KV_BYTES_PER_TOKEN = 2.0 * 2 * _LAYERS * _KV_WIDTH  # 131072
# KV between engines over one port of 400 Gbit/s per GPU, of which about 80% are reached: 3.3 us per token. The
# request for it, its descriptors and the notice of its end take a few round trips and scheduler steps: 5 ms.
_TRANSFER_BYTES_PER_S = 0.80 * 50e9
_TRANSFER_START_S = 0.005
# Scores (q.k) and weighted sum (p.v), a multiply and an add each, per pair of tokens: 4 * layers * hidden.
_FLOPS_PER_PAIR = 4.0 * _LAYERS * _HIDDEN  # 524288


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds per unit of work of one engine, and the limits that vLLM picks by itself on such a device."""

    name: str
    overhead_s: float
    """Scheduling, sampling, launch: paid by every step."""
    weights_s: float
    """Reading all weights once: the floor of the matrix products."""
    token_s: float
    """Matrix products of one token at compute-bound batch sizes."""
    sample_s: float
    """Output projection of one sampled token, compute-bound."""
    context_s: float
    """Reading the KV cache of one token of a decoding sequence."""
    pair_s: float
    """Attention of one prefill token to one token of context."""
    kv_tokens: int
    """Tokens that fit into the KV cache."""
    max_num_seqs: int
    max_num_batched_tokens: int
    transfer_start_s: float = 0.0
    """Before the first byte of a prompt's KV moves from one engine to another."""
    transfer_token_s: float = 0.0
    """The KV of one token on its way there."""

    def transfer_s(self, tokens: int) -> float:
        """Seconds for which the KV of this many tokens is on its way from another engine."""
        return self.transfer_start_s + tokens * self.transfer_token_s

    def decode_growth_s(self, sequences: int) -> float:
        """What each further step of the same `sequences` costs more than the step before: their new context."""
        return sequences * self.context_s

    def step_s(
        self, sequences: int, context: int, chunk_tokens: int = 0, chunk_pairs: float = 0.0, samples: int = 0
    ) -> float:
        """Seconds of a step.

        `sequences` decode over `context` tokens in all; the prefill chunks have `chunk_tokens` tokens, attend to
        `chunk_pairs` pairs, and `samples` of them end and sample a token.
        """
        products = (sequences + chunk_tokens) * self.token_s + (sequences + samples) * self.sample_s
        return (
            self.overhead_s + max(self.weights_s, products) + context * self.context_s + chunk_pairs * self.pair_s
        )

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """Seconds of one step that prefills `tokens` tokens after `cached` ones, alone on the engine."""
        return self.step_s(0, 0, tokens, pairs(cached, tokens), 1)


def pairs(before: int, tokens: int) -> float:
    """Token pairs of causal attention: `tokens` new ones after `before` others, and half of their own square."""
    return tokens * (before + tokens / 2)


def _llama_8b(
    name: str,
    *,
    flops: float,
    compute_efficiency: float,
    attention_efficiency: float,
    bytes_per_s: float,
    bandwidth_efficiency: float,
    memory_bytes: float,
    overhead_s: float,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> Profile:
    compute, bandwidth = flops * compute_efficiency, bytes_per_s * bandwidth_efficiency
    # vLLM claims 92% of the memory; activations, CUDA graphs and the allocator's slack take about 3 GB of that.
    kv_bytes = 0.92 * memory_bytes - _WEIGHT_BYTES_HELD - 3e9
    return Profile(
        name=name,
        overhead_s=overhead_s,
        weights_s=_WEIGHT_BYTES_READ / bandwidth,
        token_s=_FLOPS_PER_TOKEN / compute,
        sample_s=_FLOPS_PER_SAMPLE / compute,
        context_s=_KV_BYTES_PER_TOKEN / bandwidth,
        pair_s=_FLOPS_PER_PAIR / (flops * attention_efficiency),
        kv_tokens=int(kv_bytes / _KV_BYTES_PER_TOKEN),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        transfer_start_s=_TRANSFER_START_S,
        transfer_token_s=_KV_BYTES_PER_TOKEN / _TRANSFER_BYTES_PER_S,
    )


# H100 SXM5 80 GB: 989 TFLOP/s dense bfloat16, 3.35 TB/s, 85.5e9 bytes reported. Large products reach about 60%,
# attention kernels about 50%, streaming reads about 80%. Gives 5.6 ms of weights, 24 us per prefill token
# (42,000 tokens/s), 49 ns per token of context, 454,000 tokens of KV cache.
# CPU side of a step with CUDA graphs and asynchronous scheduling: about 1 ms.
_H100 = _llama_8b(
    "h100-llama-3.1-8b",
    flops=989e12,
    compute_efficiency=0.60,
    attention_efficiency=0.50,
    bytes_per_s=3.35e12,
    bandwidth_efficiency=0.80,
    memory_bytes=85.5e9,
    overhead_s=0.001,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
)

# A100 SXM4 80 GB: 312 TFLOP/s dense bfloat16, 2.039 TB/s, 85.1e9 bytes reported. The older chip comes nearer to
# its smaller peaks: 65%, 55%, 82%. Gives 9.0 ms of weights, 69 us per prefill token (14,500 tokens/s), 78 ns per
# token of context. Usually in hosts with slower cores: 1.5 ms.
_A100 = _llama_8b(
    "a100-llama-3.1-8b",
    flops=312e12,
    compute_efficiency=0.65,
    attention_efficiency=0.55,
    bytes_per_s=2.039e12,
    bandwidth_efficiency=0.82,
    memory_bytes=85.1e9,
    overhead_s=0.0015,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
)

# No hardware at all: a tenth of a millisecond per step, 100 ns per prefill token, so that tests wait for nothing.
_INSTANT = Profile(
    name="instant",
    overhead_s=1e-4,
    weights_s=0.0,
    token_s=1e-7,
    sample_s=0.0,
    context_s=0.0,
    pair_s=0.0,
    kv_tokens=400_000,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)

PROFILES = {profile.name: profile for profile in (_H100, _A100, _INSTANT)}
