"""Tiny random language models of the true types, each saved with a real fast tokenizer as a transformers folder."""

import json
import string
import struct
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerModel,
    MT5Config,
    MT5ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

TITLES = [
    "The Legend of Zelda: Ocarina of Time",
    "Super Mario Galaxy 2 brand: Nintendo",
    "Digital Multimeter with Back-Lit Display",
    "Acoustic Guitar Strings, Light Gauge",
    "3D Printer Filament 1.75 mm PLA, black",
    "Toy Story (1995) Animation Children's Comedy",
    "Please give the index of the following item: a microscope.",
]
MAX_POSITIONS = 128
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _byte_tokenizer(special: list[str], **names: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in OPT and SmolLM2: any text has tokens, and "." is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TITLES, trainer)
    if special[0] == "<s>":  # OPT's tokenizer puts its first token before every text
        tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_POSITIONS, **names)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with [CLS] and [SEP] as in BERT.

    Its words are listed, not trained: WordPiece's trainer gives them other ids in every process.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {word for text in TITLES for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = sorted(set(string.printable.lower()) - set(string.whitespace))
    pieces = [*letters, *(f"##{letter}" for letter in letters), *sorted(words - set(letters))]
    vocabulary = {piece: index for index, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_POSITIONS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """Llama as SmolLM2 is built: grouped key heads, tied head; hidden 32, 2 layers, 128 positions."""
    torch.manual_seed(seed)
    tokenizer = _byte_tokenizer(["<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **_SIZES,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return _save(folder, LlamaForCausalLM(config), tokenizer)


def _tiny_opt(folder: Path, seed: int, word_width: int, norm_first: bool) -> Path:
    torch.manual_seed(seed)
    tokenizer = _byte_tokenizer(["<s>", "<pad>", "</s>"], bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        word_embed_proj_dim=word_width,
        do_layer_norm_before=norm_first,
        dropout=0.1,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    return _save(folder, OPTForCausalLM(config), tokenizer)


def tiny_opt(folder: Path, *, seed: int = 0) -> Path:
    """OPT as opt-125m is built: hidden 32, 2 layers, 128 positions."""
    return _tiny_opt(folder, seed, word_width=32, norm_first=True)


def tiny_opt_projected(folder: Path, *, seed: int = 0) -> Path:
    """OPT as opt-350m is built: hidden 32, but hidden states leave the model through `project_out` 16 wide."""
    return _tiny_opt(folder, seed, word_width=16, norm_first=False)


def tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    """BERT as MiniLM and BGE are built: hidden 32, 2 layers, 128 positions."""
    torch.manual_seed(seed)
    tokenizer = _word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        **_SIZES,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=0,
    )
    return _save(folder, BertModel(config), tokenizer)


def tiny_longformer(folder: Path, *, seed: int = 0, window: int | list[int] = 8) -> Path:
    """Longformer as longformer-base-4096 is built, with RoBERTa's tokenizer: hidden 32, 2 layers, 128 positions."""
    torch.manual_seed(seed)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = json.loads(_byte_tokenizer(special).backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = RobertaTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=MAX_POSITIONS)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        **_SIZES,
        max_position_embeddings=MAX_POSITIONS + 2,  # rows for the padding token and before it
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        attention_window=window,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        sep_token_id=2,
    )
    return _save(folder, LongformerModel(config, add_pooling_layer=False), tokenizer)


def rough(model: PreTrainedModel) -> PreTrainedModel:
    """Give larger weights than a fresh model's, and biases and norms that are not 0 and 1: what is left out shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


EXTRA = 3  # tokens <extra_id_0>, ... behind T5's pieces


def t5_pieces() -> list[tuple[str, float]]:
    """Unigram pieces as in T5's SentencePiece model; some are of several digits. They are listed, not trained."""
    letters = sorted(set(string.printable) - set(string.whitespace))
    words = sorted({word for text in TITLES for word in text.split()} - set(letters))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [("▁10", -7.0), ("▁100", -8.0), ("01", -9.0), ("11", -9.0), ("▁User", -9.0), ("at", -9.0)]
    return pieces + [(letter, -8.0) for letter in letters] + [(f"▁{word}", -10.0) for word in words]


def t5_tokenizer() -> T5Tokenizer:
    """T5's own: pieces behind "▁", </s> after every text, and <extra_id_N>, the last first, behind the pieces."""
    extra = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(EXTRA))]
    return T5Tokenizer(vocab=t5_pieces() + extra, extra_ids=EXTRA, model_max_length=MAX_POSITIONS)


def spiece_model(pieces: list[tuple[str, float]]) -> bytes:
    """The pieces as SentencePiece's own file, ModelProto of sentencepiece_model.proto, without the package."""

    def varint(number: int) -> bytes:
        number, found = number & (1 << 64) - 1, b""
        while number > 127:
            number, found = number >> 7, found + bytes([number & 127 | 128])
        return found + bytes([number])

    def field(number: int, value: int | float | bytes) -> bytes:
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    kinds = {"<unk>": 2, "<pad>": 3, "</s>": 3}  # unknown, control; 1 is normal
    listed = (field(1, p.encode()) + field(2, score) + field(3, kinds.get(p, 1)) for p, score in pieces)
    trainer = field(3, 1) + field(40, 2) + field(41, -1) + field(42, 1) + field(43, 0)  # Unigram; ids of unk, bos, ...
    return b"".join(field(1, each) for each in listed) + field(2, trainer) + field(3, field(3, 1))


def tiny_t5(folder: Path, *, seed: int = 0, own_head: bool = False, many: bool = False) -> Path:
    """T5 as t5-small is built, or as T5 1.1 with a gated layer and a head of its own: hidden 32, 3 and 2 layers.

    With `many` it is mT5, which has a head of its own in any case.
    """
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    own_head = own_head or many
    config = (MT5Config if many else T5Config)(
        vocab_size=len(tokenizer) + 3,  # rows that no token has, as in T5's own
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu" if own_head else "relu",
        tie_word_embeddings=not own_head,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = (MT5ForConditionalGeneration if many else T5ForConditionalGeneration)(config)
    if own_head:  # transformers ties a new model's in any case
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    return _save(folder, model, tokenizer)
