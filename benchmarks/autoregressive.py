"""Autoregressive models: training and generation of a small GPT (6 layers, 384 wide, context 256) and of an LSTM.

    python benchmarks/autoregressive.py --out benchmarks/results/DATE-speed.jsonl

Peers: transformers (GPT2LMHeadModel, dynamic and static cache) and x-transformers. For the LSTM there is no library to
beat: "plain" is torch's own LSTM in a bare loop. "+bf16" and "+compile" are levers that a plan chooses by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from product import build, training
from race import Contender, Races, flops_of, parameters
from torch import Tensor, nn

from quintet.core.recipe import TokenNetworkConfig
from quintet.core.rng import Rng
from quintet.core.spec import DataSpec
from quintet.families.autoregressive.model import AutoregressiveConfig
from quintet.families.autoregressive.outputs import Categorical
from quintet.nets.lstm import LstmConfig
from quintet.nets.transformer import TransformerConfig

VOCABULARY, CONTEXT, PROMPT, NEW, BATCH = 65, 256, 16, 256, 8

OWN_GPT = TransformerConfig(width=384, depth=6, heads=6, hidden=1536, reach=1, waves=0, nominal=True, dropout=0.0)
OWN_LSTM = LstmConfig(width=512, depth=2, reach=1, waves=0, nominal=True, dropout=0.0)


# The peers


def gpt2(length: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=length, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )
    ).to(DEVICE)  # fmt: skip


def x_gpt(length: int) -> Any:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    return AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=VOCABULARY,
            max_seq_len=length,
            tie_embedding=True,
            attn_layers=Decoder(dim=384, depth=6, heads=6, attn_dim_head=64, attn_flash=True),
        )
    ).to(DEVICE)


class PlainLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(VOCABULARY, 512), nn.Linear(512, VOCABULARY)
        self.lstm = nn.LSTM(512, 512, 2, batch_first=True)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.lstm(self.token(ids), state)
        return self.head(y), state


def train_peer(model: nn.Module, loss_of: Callable[[nn.Module, Tensor], Tensor]) -> Contender:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), device=DEVICE)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, ids).backward()
        optimizer.step()

    return Contender(step, BATCH * CONTEXT, flops_of(step), parameters(model))


def gpt2_loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))


def plain_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1])[0].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))


def generate_gpt2(batch: int, **options: Any) -> Contender:
    model = gpt2(PROMPT + NEW).eval()
    ids = torch.randint(0, VOCABULARY, (batch, PROMPT), device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            return model.generate(  # type: ignore[no-any-return]
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=NEW,
                min_new_tokens=NEW, use_cache=True, pad_token_id=0, **options,
            )  # fmt: skip

    return Contender(call, batch * NEW, params=parameters(model))


def generate_x(batch: int) -> Contender:
    model = x_gpt(PROMPT + NEW).eval()
    ids = torch.randint(0, VOCABULARY, (batch, PROMPT), device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            return model.generate(ids, NEW, cache_kv=True, filter_logits_fn=lambda logits: logits)  # type: ignore[no-any-return]

    return Contender(call, batch * NEW, params=parameters(model))


def generate_plain_lstm(batch: int) -> Contender:
    model = PlainLSTM().to(DEVICE).eval()
    ids = torch.randint(0, VOCABULARY, (batch, PROMPT), device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            made = [ids]
            logits, state = model(ids)
            for _ in range(NEW):
                made.append(torch.multinomial(logits[:, -1].softmax(-1), 1))
                logits, state = model(made[-1], state)
            return torch.cat(made, 1)

    return Contender(call, batch * NEW, params=parameters(model))


# Ours


def spec(length: int) -> DataSpec:
    return DataSpec("tokens", (length,), VOCABULARY)


def train_ours(network: TokenNetworkConfig, **choices: Any) -> Contender:
    model = build(AutoregressiveConfig(network=network, output=Categorical()), spec(CONTEXT), DEVICE)
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT), device=DEVICE)
    return training(model, ids, items=BATCH * CONTEXT, **choices)


def generate_ours(network: TokenNetworkConfig, batch: int) -> Contender:
    """NEW tokens after a prompt, which `fill` takes in by the same cached steps."""
    model = build(AutoregressiveConfig(network=network, output=Categorical()), spec(PROMPT + NEW), DEVICE).eval()
    x = torch.randint(0, VOCABULARY, (batch, PROMPT + NEW), device=DEVICE)
    known = torch.zeros(batch, PROMPT + NEW, dtype=torch.bool, device=DEVICE)
    known[:, :PROMPT] = True
    rng = Rng(0, "sample", device=DEVICE)

    def call() -> Tensor:
        with torch.inference_mode():
            return model.fill(x, known, rng=rng)  # type: ignore[no-any-return, operator]

    return Contender(call, batch * NEW, params=parameters(model))


def main() -> None:
    global DEVICE
    races = Races(__doc__.splitlines()[0])
    DEVICE = races.options.device
    races.race("train/gpt-6x384-ctx256/b8", "tokens/s", {
        "transformers": lambda: train_peer(gpt2(CONTEXT), gpt2_loss),
        "x_transformers": lambda: train_peer(x_gpt(CONTEXT + 1), lambda m, ids: m(ids)),
        "quintet": lambda: train_ours(OWN_GPT),
        "quintet+bf16": lambda: train_ours(OWN_GPT, precision="bfloat16"),
        "quintet+bf16+lanes": lambda: train_ours(OWN_GPT, precision="bfloat16", lanes=True),
        "quintet+compile": lambda: train_ours(OWN_GPT, compile=True),
        "quintet+bf16+compile": lambda: train_ours(OWN_GPT, precision="bfloat16", compile=True),
    }, reference="transformers")  # fmt: skip
    for batch in (1, 32):
        races.race(f"generate/gpt-6x384-256/b{batch}", "tokens/s", {
            "transformers": lambda: generate_gpt2(batch),
            "transformers/static": lambda: generate_gpt2(batch, cache_implementation="static", disable_compile=True),
            "x_transformers": lambda: generate_x(batch),
            "quintet": lambda: generate_ours(OWN_GPT, batch),
        }, reference="transformers", once=True)  # fmt: skip
    races.race("train/lstm-2x512-ctx256/b8", "tokens/s", {
        "plain": lambda: train_peer(PlainLSTM().to(DEVICE), plain_loss),
        "quintet": lambda: train_ours(OWN_LSTM),
    }, reference="plain")  # fmt: skip
    for batch in (1, 32):
        races.race(f"generate/lstm-2x512-256/b{batch}", "tokens/s", {
            "plain": lambda: generate_plain_lstm(batch), "quintet": lambda: generate_ours(OWN_LSTM, batch),
        }, reference="plain", once=True)  # fmt: skip


DEVICE = "cpu"

if __name__ == "__main__":
    main()
