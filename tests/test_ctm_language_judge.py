"""Bits a byte, counted once more by hand: from plain logits, and from the bytes of the text that was predicted."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import grammar, small_corpus
from test_ctm_language_model import CONTEXT, core_config
from torch import Tensor
from torch.nn import functional as F

from ctm.language.config import LanguageConfig
from ctm.language.corpus import Corpus, open_corpus
from ctm.language.judge import judge_text, text_quality
from ctm.language.model import LanguageCTM
from ctm.language.tokenizer import END_TOKEN
from ctm.tasks import Task, TaskConfig, load_task
from ctm.tasks.config import TextConfig
from ctm.training.evaluate_text import evaluate_text

PROCESSES = (2, 3, 5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Characters of several bytes, and an end token written out as text."""
    text = grammar(sentences=60) + f"what {END_TOKEN} says\n" * 20
    return open_corpus(small_corpus(tmp_path_factory.mktemp("corpora") / "judged", text, document_bytes=60))


@pytest.fixture(scope="module")
def task(corpus: Corpus) -> Task:
    return load_task(TaskConfig(name="text", text=TextConfig(length=CONTEXT, stride=4)), corpus.folder)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> LanguageCTM:
    torch.manual_seed(0)
    language = LanguageConfig(vocabulary=corpus.vocabulary, context=CONTEXT, layers=1, width=8, heads=2)
    model = LanguageCTM(core_config(ticks=3), language, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def nats_by_hand(model: LanguageCTM, tokens: Tensor) -> Tensor:
    """Of each token but the first at every tick, [tokens - 1, T], thought about with nothing after it in sight."""
    found = []
    with torch.no_grad():
        for end in range(1, len(tokens)):
            features, context = model.encode(tokens[None, :end])
            assert context is not None, "the model thinks"
            assert model.core is not None, "the model thinks"
            state, guess = model.core.start(end), F.linear(features[0, -1], model.gpt2.head)
            for _, roots in zip(range(model.config.ticks), model.core.root_betas(), strict=False):
                state, seen = model.core.advance(context, state, *roots)
                thought = F.linear(model.core.readout(seen.sync_out[-1]), model.gpt2.head)
                logits = model.alpha * thought + (1 - model.alpha) * guess
                found.append(-logits.log_softmax(-1)[tokens[end]])
    return torch.stack(found).view(-1, model.config.ticks)


def test_bits_a_byte_are_all_nats_over_all_bytes_that_were_predicted(
    corpus: Corpus, task: Task, model: LanguageCTM
) -> None:
    whole = torch.from_numpy(corpus.test.take(np.arange(len(corpus.test))))
    windows = (len(whole) - 1) // CONTEXT
    assert windows > 3
    beginnings = range(0, windows * CONTEXT, CONTEXT)
    nats_T = sum(nats_by_hand(model, whole[first : first + CONTEXT + 1]).sum(0) for first in beginnings)
    predicted = whole[1 : windows * CONTEXT + 1]
    assert (predicted == corpus.end_token).any(), "ends cost nats, and are no bytes"
    alphabet = {number: text for text, number in corpus.tokenizer.get_vocab().items()}
    # In the vocabulary of a byte-level tokenizer every character stands for a byte.
    size = sum(len(alphabet[number]) for number in predicted.tolist() if number != corpus.end_token)

    assert task.token_bytes is not None
    quality = text_quality(judge_text(model, task.test, task.token_bytes, batch_size=3))
    assert quality.tokens == windows * CONTEXT
    expected_T = torch.as_tensor(nats_T) / math.log(2) / size
    assert quality.bits_per_byte_by_tick == pytest.approx(expected_T.tolist(), rel=1e-5)


def test_all_bytes_of_a_corpus_are_those_of_its_text(corpus: Corpus) -> None:
    for split in ("train", "held_out", "test"):
        tokens = getattr(corpus, split)
        numbers = tokens.take(np.arange(len(tokens)))
        text = corpus.tokenizer.decode(numbers[numbers != corpus.end_token].tolist())
        assert corpus.token_bytes[numbers].sum() == len(text.encode()), split


@pytest.mark.parametrize("processes", PROCESSES)
def test_several_processes_judge_each_token_once(task: Task, model: LanguageCTM, processes: int) -> None:
    alone = evaluate_text(model, task, 4, SimpleNamespace(num_processes=1))
    given: dict[int, list[Tensor]] = {}

    def accelerator(process: int, gather: Any) -> Any:
        return SimpleNamespace(num_processes=processes, process_index=process, device="cpu", gather=gather)

    for process in range(processes):
        mine = given.setdefault(process, [])

        def keep(tensor: Tensor, mine: list[Tensor] = mine) -> Tensor:
            mine.append(tensor)
            return torch.cat([tensor] * processes)

        evaluate_text(model, task, 4, accelerator(process, keep))
    calls = iter(range(2))

    def gather(_tensor: Tensor) -> Tensor:
        call = next(calls)
        return torch.cat([given[process][call] for process in range(processes)])

    together = evaluate_text(model, task, 4, accelerator(0, gather))
    assert any(len(task.held_out) % number for number in PROCESSES), "some rows are judged again"
    assert together.quality.tokens == alone.quality.tokens
    assert together.quality.bits_per_byte_by_tick == pytest.approx(alone.quality.bits_per_byte_by_tick, rel=1e-6)
