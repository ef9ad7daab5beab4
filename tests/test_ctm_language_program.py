"""Language models as programs: the model's own numbers, whatever the padding, the window and the company."""

import pytest
import torch
from test_ctm_language_model import CONTEXT, VOCABULARY, language_model, some_text
from torch import Tensor

from ctm.language import program
from ctm.servable import servable

WINDOW = 40
"""More than the smallest bucket, and none itself."""


def wide_model() -> program.LanguageCTM:
    return language_model({"input_shape": (8, WINDOW)}, context=WINDOW).eval()


def texts(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (6, size), generator=generator)
    return tokens, torch.randint(1, size + 1, (6,), generator=generator)


def test_windows_double_up_to_the_context() -> None:
    assert program.buckets(40) == (16, 32, 40)
    assert program.buckets(128) == (16, 32, 64, 128)
    assert program.buckets(9) == (9,)


@pytest.mark.parametrize("size", [16, 32, 40])
def test_a_shorter_window_changes_nothing_that_a_thought_can_see(size: int) -> None:
    model = wide_model()
    encode, tick = program.Encode(model).eval(), program.Tick(model, 4).eval()
    tokens, length = texts(size)
    padded = torch.nn.functional.pad(tokens, (0, WINDOW - size))
    state = [value.expand(6, *value.shape) for value in servable(model).start().values()]
    with torch.no_grad():
        short, whole = encode(tokens, length), encode(padded, length)
        for name, one, other in zip(("mask", "base"), short[2:], whole[2:], strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(tick(*short, *state), tick(*whole, *state))


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = wide_model()
    encode, tick = program.Encode(model).eval(), program.Tick(model, 4).eval()
    tokens, length = texts(WINDOW)
    other = torch.where(torch.arange(WINDOW) < length[:, None], tokens, (tokens + 1) % VOCABULARY)
    state = [value.expand(6, *value.shape) for value in servable(model).start().values()]
    with torch.no_grad():
        before, after = (tick(*encode(some, length), *state) for some in (tokens, other))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_program_thinks_what_the_model_thinks_after_the_same_token() -> None:
    model = language_model().eval()
    tokens, targets = some_text(rows=1)
    judged = model.judge(tokens, targets)
    rows, length = tokens.expand(CONTEXT, -1), torch.arange(1, CONTEXT + 1)
    form = servable(model)
    encode, tick = form.encode(), form.tick(tick_cap=4)
    with torch.no_grad():
        context = encode(rows, length)
        state = [value.expand(CONTEXT, *value.shape) for value in form.start().values()]
        for number in range(model.config.ticks):
            *state, prediction, certainty, _ = tick(*context, *state)
            loss = torch.nn.functional.cross_entropy(prediction, targets[0], reduction="none")
            torch.testing.assert_close(loss, judged.losses[:, number], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(certainty, judged.certainties[:, number], rtol=1e-4, atol=1e-5)


def test_eager_and_program_agree_on_every_tensor_at_every_tick() -> None:
    form = servable(wide_model())
    inputs = texts(WINDOW, seed=2)
    tick = form.tick(tick_cap=4)
    with torch.no_grad():
        context = form.eager_context(inputs)
        torch.testing.assert_close(form.encode()(*inputs), context, rtol=1e-4, atol=1e-5)
        for arguments, results in form.eager_ticks(inputs):
            found = tick(*context, *arguments)
            assert len(found) == len(results)
            for one, other in zip(found, results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_gpt2_alone_makes_no_program() -> None:
    with pytest.raises(ValueError, match="a GPT-2 alone does not think"):
        servable(language_model({"ticks": 1}, alone=True))
