"""Language models on film reviews: an LSTM, after McCandlish et al. 2018, table 1, and a transformer with cosine decay.

Data: the text that BATCHOPT_TEXT names, else imdb-text.txt in the folder that BATCHOPT_DATA names. Tokens are byte
pairs, 1,000 of them, found on the text by the `tokenizers` library. An example is 32 tokens: what came before it is not
seen, and nothing is passed back beyond it.
"""

from __future__ import annotations

import math
import os
import sys
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

import batchopt

TOKENS, CONTEXT, WIDTH = 1_000, 32, 96
HELD_OUT = 512
"""Examples on which losses are evaluated: the last ones of the text."""


@cache
def load() -> tuple[tuple[Tensor], tuple[Tensor]]:
    """Sequences (n, CONTEXT + 1) of tokens, each beginning with the last one's end: to train on, and held out.

    Raises:
        FileNotFoundError: neither variable leads to a text.
    """
    path = Path(os.environ.get("BATCHOPT_TEXT") or Path(os.environ.get("BATCHOPT_DATA", "")) / "imdb-text.txt")
    if not path.is_file():
        raise FileNotFoundError(
            f"BATCHOPT_TEXT must name a text file, or BATCHOPT_DATA a folder with imdb-text.txt, got {str(path)!r}: "
            "any text of a few megabytes will do (https://ai.stanford.edu/~amaas/data/sentiment has film reviews)"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    codes = torch.tensor([code for found in tokenizer.encode_batch_fast(lines) for code in found.ids])
    count = (len(codes) - 1) // CONTEXT
    if count < 4 * HELD_OUT:
        raise ValueError(f"the text must hold {4 * HELD_OUT * CONTEXT:,} tokens at least, got {len(codes):,}")
    sequences = codes[: count * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT).contiguous()
    return (sequences[:-HELD_OUT],), (sequences[-HELD_OUT:],)


class LSTM(nn.Module):
    """One layer; the weights of the output may be those of the embedding."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, TOKENS)
        nn.init.normal_(self.tokens.weight, std=WIDTH**-0.5)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (batch, length, TOKENS)."""
        return self.head(self.lstm(self.tokens(codes))[0])


class Transformer(nn.Module):
    """Two layers of four heads, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(Block(4) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (batch, length, TOKENS)."""
        hidden = self.tokens(codes) + self.positions[: codes.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return nn.functional.linear(self.norm(hidden), self.tokens.weight)


class Block(nn.Module):
    """Causal attention and a perceptron, each beside a shortcut."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(2.0))

    def forward(self, hidden: Tensor) -> Tensor:
        """Of the same shape, (batch, length, WIDTH)."""
        count, length, width = hidden.shape
        parts = self.qkv(self.norm1(hidden)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        return hidden + self.mlp(self.norm2(hidden))


def per_example_loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Nats a token of every sequence, (batch,)."""
    codes = batch[0]
    logits = model(codes[:, :-1])
    return nn.functional.cross_entropy(logits.transpose(1, 2), codes[:, 1:], reduction="none").mean(1)


def _clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def _lstm(tied: bool) -> batchopt.TrainingTask:
    train, test = load()
    return batchopt.TrainingTask(
        model=lambda: LSTM(tied=tied),
        data=train,
        eval_data=test,
        loss=per_example_loss,
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99)),
        before_step=_clip,
    )


def _transformer() -> batchopt.TrainingTask:
    train, test = load()
    return batchopt.TrainingTask(
        model=Transformer,
        data=train,
        eval_data=test,
        loss=per_example_loss,
        optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1),
        before_step=_clip,
        learning_rate_schedule="cosine",
    )


task = _lstm(tied=False)
tied = _lstm(tied=True)
transformer = _transformer()

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    PAPER = "LSTM on Billion Word, in tokens: 700, 100,000; 1,000, 150,000"
    run_study(
        __file__,
        full={
            "task": Settings(examples=60_000, loss=4.6, paper=PAPER, unit=CONTEXT),
            "tied": Settings(examples=60_000, loss=4.6, paper=PAPER, unit=CONTEXT),
            "transformer": Settings(examples=60_000, loss=4.6, unit=CONTEXT),
        },
        smoke=Settings(examples=2_500),
    )
