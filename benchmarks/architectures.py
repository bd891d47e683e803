"""Architectures of Hugging Face Transformers, with random weights, at any size, each with a loss per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

Batch = dict[str, Tensor]
IGNORED = -100
PADDING, FIRST = 0, 3
"""Token of padding, and the first that is a word."""


class Size(NamedTuple):
    """Of a model and its examples."""

    width: int
    layers: int
    heads: int
    inner: int
    """Width of the feed-forward layers."""
    vocabulary: int
    length: int
    """Tokens of an example, or frames of speech after two steps at a time."""
    image: int
    patch: int
    dropout: float


TINY = Size(width=16, layers=2, heads=2, inner=24, vocabulary=19, length=7, image=8, patch=4, dropout=0.0)
SMALL = Size(width=256, layers=4, heads=4, inner=1024, vocabulary=4096, length=128, image=64, patch=8, dropout=0.1)


class Architecture(NamedTuple):
    """A kind of model.

    Attributes:
        model: of a size.
        batch: (size, examples, seed) -> a batch; of text every example but each fourth has padding.
        loss: (model, batch) -> losses, (examples,).
    """

    model: Callable[[Size], nn.Module]
    batch: Callable[[Size, int, int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]


def _text(size: Size, examples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, size.vocabulary, (examples, size.length), generator=generator)
    lengths = torch.randint(size.length // 2, size.length, (examples,), generator=generator)
    lengths[::4] = size.length
    mask = (torch.arange(size.length) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _classified_text(size: Size, examples: int, seed: int) -> Batch:
    return {**_text(size, examples, seed), "labels": _classes(examples, seed)}


def _two_texts(size: Size, examples: int, seed: int) -> Batch:
    target = _text(size, examples, seed + 1)
    return {**_text(size, examples, seed), "labels": _labels(target["input_ids"], target["attention_mask"])}


def _speech(size: Size, examples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(examples, 8, 2 * size.length, generator=generator)
    target = _text(size, examples, seed)
    return {"input_features": frames, "labels": _labels(target["input_ids"], target["attention_mask"])}


def _waves(size: Size, examples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    samples = 4 * size.length
    lengths = torch.randint(samples // 2, samples, (examples,), generator=generator)
    lengths[::4] = samples
    mask = (torch.arange(samples) < lengths[:, None]).long()
    waves = torch.randn(examples, samples, generator=generator) * mask
    return {"input_values": waves, "attention_mask": mask, "labels": _classes(examples, seed)}


def _images(size: Size, examples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(examples, 3, size.image, size.image, generator=generator)
    return {"pixel_values": pixels, "labels": _classes(examples, seed)}


def _classes(examples: int, seed: int) -> Tensor:
    return torch.randint(3, (examples,), generator=torch.Generator().manual_seed(seed))


def _labels(ids: Tensor, mask: Tensor) -> Tensor:
    return ids.masked_fill(mask == 0, IGNORED)


def _of_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(1) / (labels != IGNORED).sum(1)


def classification(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of an example's class."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of an example's tokens, each given those before it."""
    labels = _labels(batch["input_ids"], batch["attention_mask"])
    return _of_tokens(model(**batch, use_cache=False).logits[:, :-1], labels[:, 1:])


def translation(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the tokens of an example's target."""
    return _of_tokens(model(**batch).logits, batch["labels"])


def embedding_length(model: nn.Module, batch: Batch) -> Tensor:
    """Distance of an example's embedding from a fixed point."""
    return (model(**batch).text_embeds - 1.0).square().sum(1)


def _config(name: str, values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(name, **values)


def _encoder(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.inner,
        "max_position_embeddings": size.length + 8,
        "hidden_dropout_prob": size.dropout,
        "attention_probs_dropout_prob": size.dropout,
        "num_labels": 3,
        "pad_token_id": PADDING,
    }


def _decoder(size: Size) -> dict[str, Any]:
    return {
        **_encoder(size),
        "num_key_value_heads": max(1, size.heads // 2),
        "head_dim": size.width // size.heads,
        "attention_dropout": size.dropout,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _gpt(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "n_embd": size.width,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_inner": size.inner,
        "n_positions": size.length,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), size.dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 2),
    }


def _pair(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "d_model": size.width,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), size.layers),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), size.heads),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), size.inner),
        **dict.fromkeys(("dropout", "attention_dropout"), size.dropout),
        "max_position_embeddings": size.length + 8,
        "pad_token_id": PADDING,
        **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
        **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), 2),
    }


def _vision(size: Size) -> dict[str, Any]:
    return {**_encoder(size), "image_size": size.image, "patch_size": size.patch}


def _made(
    class_name: str, name: str, values: Callable[[Size], dict[str, Any]], **more: Any
) -> Callable[[Size], nn.Module]:
    """Models of a class.

    Args:
        class_name: in Transformers.
        name: of its kind of configuration.
        values: of the configuration for a size.
        more: further ones; a function is applied to the size.
    """

    def make(size: Size) -> nn.Module:
        import transformers

        of_size = {key: value(size) if callable(value) else value for key, value in more.items()}
        model: nn.Module = getattr(transformers, class_name)(_config(name, {**values(size), **of_size}))
        return model

    return make


def _classifier(class_name: str, name: str, values: Any = _encoder, **more: Any) -> Architecture:
    return Architecture(_made(class_name, name, values, **more), _classified_text, classification)


def _language_model(class_name: str, name: str, values: Any = _decoder, **more: Any) -> Architecture:
    return Architecture(_made(class_name, name, values, **more), _text, next_token)


def _translator(class_name: str, name: str, values: Any = _pair, **more: Any) -> Architecture:
    return Architecture(_made(class_name, name, values, **more), _two_texts, translation)


def _image_classifier(class_name: str, name: str, values: Any = _vision, **more: Any) -> Architecture:
    return Architecture(_made(class_name, name, values, **more), _images, classification)


def _distilbert(size: Size) -> dict[str, Any]:
    names = {"dim": size.width, "n_layers": size.layers, "n_heads": size.heads, "hidden_dim": size.inner}
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), size.dropout)
    return {**names, **dropouts, **{k: v for k, v in _encoder(size).items() if k in _SHARED_NAMES}}


_SHARED_NAMES = ("vocab_size", "max_position_embeddings", "num_labels", "pad_token_id")


def _falcon(size: Size) -> dict[str, Any]:
    values = _decoder(size)
    del values["num_key_value_heads"], values["head_dim"]
    return {**values, "hidden_dropout": size.dropout, "alibi": False}


def _bloom(size: Size) -> dict[str, Any]:
    names = {"n_layer": size.layers, "n_head": size.heads, "hidden_dropout": size.dropout}
    return {**names, "vocab_size": size.vocabulary, "hidden_size": size.width, "attention_dropout": size.dropout}


def _t5(size: Size) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "d_model": size.width,
        "d_kv": size.width // size.heads,
        "d_ff": size.inner,
        "num_layers": size.layers,
        "num_heads": size.heads,
        "dropout_rate": size.dropout,
        "decoder_start_token_id": PADDING,
    }


def _swin(size: Size) -> dict[str, Any]:
    return {
        "image_size": 2 * size.image,
        "patch_size": size.patch // 2,
        "embed_dim": size.width // 2,
        "depths": [size.layers // 2, size.layers - size.layers // 2],
        "num_heads": [size.heads // 2, size.heads],
        "window_size": size.patch,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": size.dropout,
        "num_labels": 3,
    }


def _convnext(size: Size) -> dict[str, Any]:
    sizes = {"hidden_sizes": [size.width // 2, size.width], "depths": [size.layers // 2] * 2}
    return {"num_stages": 2, **sizes, "image_size": size.image, "num_labels": 3}


def _large_images(size: Size, examples: int, seed: int) -> Batch:
    return _images(size._replace(image=2 * size.image), examples, seed)


def _mamba(size: Size) -> dict[str, Any]:
    names = {"hidden_size": size.width, "num_hidden_layers": size.layers, "state_size": size.heads}
    return {**names, "vocab_size": size.vocabulary, "pad_token_id": PADDING}


def _wav2vec2(size: Size) -> dict[str, Any]:
    convolutions = {"conv_dim": [size.width // 2] * 2, "conv_stride": [2, 2], "conv_kernel": [3, 3]}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": size.width}
    without = dict.fromkeys(("layerdrop", "mask_time_prob", "feat_proj_dropout", "final_dropout"), 0.0)
    dropouts = dict.fromkeys(("hidden_dropout", "attention_dropout"), size.dropout)
    own = {"num_feat_extract_layers": 2, **convolutions, **positions, **without, **dropouts}
    return {**_encoder(size), **own}


ARCHITECTURES: dict[str, Architecture] = {
    "bert": _classifier("BertForSequenceClassification", "bert"),
    "roberta": _classifier("RobertaForSequenceClassification", "roberta"),
    "distilbert": _classifier("DistilBertForSequenceClassification", "distilbert", _distilbert),
    "albert": _classifier("AlbertForSequenceClassification", "albert", embedding_size=lambda size: size.width // 2),
    "electra": _classifier("ElectraForSequenceClassification", "electra", embedding_size=lambda size: size.width // 2),
    "deberta-v2": _classifier(
        "DebertaV2ForSequenceClassification",
        "deberta-v2",
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        pooler_hidden_size=lambda size: size.width,
    ),
    "modernbert": _classifier("ModernBertForSequenceClassification", "modernbert", _decoder, local_attention=4),
    "gpt2": _language_model("GPT2LMHeadModel", "gpt2", _gpt),
    "gpt-neox": _language_model("GPTNeoXForCausalLM", "gpt_neox"),
    "opt": _language_model(
        "OPTForCausalLM",
        "opt",
        ffn_dim=lambda size: size.inner,
        word_embed_proj_dim=lambda size: size.width,
        dropout=lambda size: size.dropout,
    ),
    "bloom": _language_model("BloomForCausalLM", "bloom", _bloom),
    "llama": _language_model("LlamaForCausalLM", "llama"),
    "mistral": _language_model("MistralForCausalLM", "mistral", sliding_window=4),
    "mixtral": _language_model("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2": _language_model("Qwen2ForCausalLM", "qwen2"),
    "gemma2": _language_model("Gemma2ForCausalLM", "gemma2"),
    "gemma3": _language_model("Gemma3ForCausalLM", "gemma3_text"),
    "phi": _language_model("PhiForCausalLM", "phi"),
    "falcon": _language_model("FalconForCausalLM", "falcon", _falcon),
    "mamba": _language_model("MambaForCausalLM", "mamba", _mamba),
    "t5": _translator("T5ForConditionalGeneration", "t5", _t5),
    "bart": _translator("BartForConditionalGeneration", "bart"),
    "mbart": _translator("MBartForConditionalGeneration", "mbart"),
    "pegasus": _translator("PegasusForConditionalGeneration", "pegasus"),
    "vit": _image_classifier("ViTForImageClassification", "vit"),
    "deit": _image_classifier("DeiTForImageClassification", "deit"),
    "swin": Architecture(_made("SwinForImageClassification", "swin", _swin), _large_images, classification),
    "convnext": _image_classifier("ConvNextForImageClassification", "convnext", _convnext),
    "clip": Architecture(
        _made(
            "CLIPTextModelWithProjection",
            "clip_text_model",
            _encoder,
            projection_dim=lambda size: size.width,
            eos_token_id=2,
        ),
        _text,
        embedding_length,
    ),
    "whisper": Architecture(
        _made(
            "WhisperForConditionalGeneration",
            "whisper",
            _pair,
            num_mel_bins=8,
            max_source_positions=lambda size: size.length,
            max_target_positions=lambda size: size.length,
        ),
        _speech,
        translation,
    ),
    "wav2vec2": Architecture(_made("Wav2Vec2ForSequenceClassification", "wav2vec2", _wav2vec2), _waves, classification),
    "longformer": _classifier("LongformerForSequenceClassification", "longformer", attention_window=4),
}
