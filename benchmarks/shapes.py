"""Language models of the papers' shapes with random weights, and catalogues of a given size, for measuring speed."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, LlamaConfig, OPTConfig, PreTrainedTokenizerFast, Qwen2Config

from recbole_llm.config.config import Config
from recbole_llm.quick_start.run import build

WORDS = 5000
FRAME = ("[CLS]", "[SEP]")


def opt(width: int, layers: int, heads: int, **more: Any) -> OPTConfig:
    """Return the configuration of an OPT model."""
    return OPTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * width, vocab_size=50272,
        max_position_embeddings=2048, word_embed_proj_dim=more.pop("word_embed_proj_dim", width), **more,
    )  # fmt: skip


SHAPES = {
    "opt-125m": opt(768, 12, 12),
    "opt-350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": opt(2048, 24, 32),
    "opt-2.7b": opt(2560, 32, 32),
    "llama-7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000,
        max_position_embeddings=2048,
    ),
    "qwen2.5-7b": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, max_position_embeddings=131072,
    ),
    "llama-3.1-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=131072,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "bge-base": BertConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "tiny": opt(64, 2, 4),
    "tiny-llama": LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=WORDS + 20, max_position_embeddings=2048,
    ),
    "tiny-bert": BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256),
}  # fmt: skip


def write_backbone(
    shape: str, folder: Path, dtype: torch.dtype = torch.float32, framed: bool = False, device: str = "cpu"
) -> Path:
    """Write a random model of `shape` with a tokenizer whose every word is one token, and return its folder.

    With `framed` the tokenizer puts a token before and after every text, as BERT's does. Weights are drawn on `device`.
    """
    vocabulary = {"<unk>": 0, ".": 1, **{f"w{n}": n + 2 for n in range(WORDS)}}
    if framed:
        vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(FRAME)}
    for word in ("Please", "give", "the", "index", "of", "following", "item", ":"):
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        frame = [(token, vocabulary[token]) for token in FRAME]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModel.from_config(SHAPES[shape], dtype=dtype)
    model.save_pretrained(folder)
    return folder


def write_catalogue(
    folder: Path, users: int, items: int, history: float = 7.87, words: tuple[int, int] = (16, 32)
) -> None:
    """Write ``bench.inter`` and ``bench.item``: histories of `history` items on average, titles of 16 to 32 words."""
    rng = np.random.default_rng(0)
    target = folder / "bench"
    target.mkdir(parents=True, exist_ok=True)
    lengths = 4 + rng.poisson(history - 4, users)
    sequence = rng.integers(0, items, int(lengths.sum()))
    sequence[: min(items, len(sequence))] = np.arange(items)[: len(sequence)]
    rng.shuffle(sequence)
    user = np.repeat(np.arange(users), lengths)
    with (target / "bench.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"u{u}\ti{i}\t{t}\n" for t, (u, i) in enumerate(zip(user, sequence, strict=True)))
    with (target / "bench.item").open("w") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        for item in range(items):
            title = " ".join(f"w{n}" for n in rng.integers(0, WORDS, rng.integers(words[0], words[1] + 1)))
            file.write(f"i{item}\t{title}\n")


def build_run(
    shape: str,
    users: int,
    items: int,
    model: str = "ST2SI",
    history: float = 7.87,
    framed: bool = False,
    backbone: Path | None = None,
    **settings: Any,
) -> tuple[Any, Any]:
    """Return parts and trainer of a run on a generated catalogue with a random language model of `shape`.

    The model is written first, unless `backbone` is a folder that `write_backbone` wrote.
    """
    root = Path(tempfile.mkdtemp())
    write_catalogue(root, users, items, history)
    folder = backbone or write_backbone(shape, root / shape, framed=framed)
    parts = build(bench_config(model, root, backbone=str(folder), **settings))
    return parts, parts.trainer(root)


def bench_config(model: str, root: Path, **settings: Any) -> Config:
    """Return the settings of a run on the catalogue that `write_catalogue` wrote to `root`, which is quiet."""
    own = {"data_path": str(root), "checkpoint_dir": str(root), "state": "ERROR", "show_progress": False}
    return Config(model, "bench", config_dict={**own, **settings})


def layer_parameters(model: torch.nn.Module) -> int:
    """Return the parameters of a backbone without its embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)


def bf16_matrix_rate(size: int = 8192, repeats: int = 10) -> float:
    """Return the device's measured rate of bf16 matrix products on random numbers, in FLOP/s."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: left @ right, repeats)


def median_seconds(function: Any, repeats: int, warm_up: int = 3) -> float:
    """Return the median time of a call on the CUDA device, by events."""
    times = []
    for number in range(warm_up + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if number >= warm_up:
            times.append(begin.elapsed_time(end) / 1000)
    return float(np.median(times))


def print_line(**values: Any) -> None:
    """Print one JSON line."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}), flush=True)
