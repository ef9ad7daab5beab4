"""GPT-2 + CTM: what a thought may know, what is descended, and what that costs in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ctm.config import CTMConfig
from ctm.language.config import LanguageConfig
from ctm.language.features import Gpt2Error, load_gpt2
from ctm.language.model import LanguageCTM

VOCABULARY, CONTEXT, WIDTH = 13, 9, 8


def language_config(**overrides: Any) -> LanguageConfig:
    sizes = {"vocabulary": VOCABULARY, "context": CONTEXT, "layers": 2, "width": WIDTH, "heads": 2}
    return LanguageConfig(**{**sizes, **overrides})


def core_config(**overrides: Any) -> CTMConfig:
    sizes = {
        "ticks": 4,
        "width": 18,
        "memory": 3,
        "attention_width": 8,
        "heads": 2,
        "out_neurons": 10,
        "action_neurons": 6,
        "out_dims": WIDTH,
        "in_channels": WIDTH,
        "input_shape": (WIDTH, CONTEXT),
        "synapse_depth": 2,
        "nlm_hidden": 2,
    }
    return CTMConfig(**{**sizes, **overrides})


def language_model(core: dict[str, Any] | None = None, **overrides: Any) -> LanguageCTM:
    torch.manual_seed(3)
    model = LanguageCTM(core_config(**(core or {})), language_config(**overrides), seed=4)
    with torch.no_grad():
        for weight in model.parameters():
            # Drawn wider than GPT-2 begins, so that nothing is equal because everything is small.
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def some_text(rows: int = 3, length: int = CONTEXT, seed: int = 5) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].clone(), tokens[:, 1:].clone()


def plain_loss(model: LanguageCTM, tokens: Tensor, targets: Tensor) -> Tensor:
    """The paper's loss as one would write it down: the logits of every tick, mixed as logits, all kept."""
    assert model.core is not None, "the model thinks"
    features, context = model.encode(tokens)
    assert context is not None, "the model thinks"
    head, losses, certainties = model.gpt2.head, [], []
    gpt2_logits = F.linear(features.flatten(0, 1), head)
    state = model.core.start(targets.numel())
    for _, roots in zip(range(model.config.ticks), model.core.root_betas(), strict=False):
        state, seen = model.core.advance(context, state, *roots)
        thought_logits = F.linear(model.core.readout(seen.sync_out), head)
        logits = model.alpha * thought_logits + (1 - model.alpha) * gpt2_logits
        losses.append(F.cross_entropy(logits, targets.flatten(), reduction="none"))
        certainties.append(model.certainty(logits.detach()))
    losses_NT, certainties_NT = torch.stack(losses, 1), torch.stack(certainties, 1)
    chosen = torch.stack([losses_NT.argmin(1), certainties_NT.argmax(1)], dim=1)
    return losses_NT.gather(1, chosen).mean()


def gradients(model: LanguageCTM) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("place", range(CONTEXT - 1))
def test_a_thought_knows_nothing_of_later_tokens(place: int) -> None:
    model = language_model().eval()
    tokens, targets = some_text()
    before = model.judge(tokens, targets).losses.view(*tokens.shape, -1)
    tokens[:, place + 1 :] = (tokens[:, place + 1 :] + 1) % VOCABULARY
    after = model.judge(tokens, targets).losses.view(*tokens.shape, -1)

    torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1], rtol=0, atol=0)
    assert (after[:, place + 1 :] != before[:, place + 1 :]).any(-1).all(), "what is read does matter"


def test_the_gradient_is_that_of_the_loss_at_two_ticks_though_no_tick_keeps_its_logits() -> None:
    model = language_model()
    tokens, targets = some_text()
    expected = plain_loss(model, tokens, targets)
    expected.backward()
    plain = gradients(model)
    loss = model(tokens, targets)
    loss.value.backward()
    thrifty = gradients(model)

    torch.testing.assert_close(loss.value, expected)
    assert plain.keys() == thrifty.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            thrifty[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize(
    "core",
    [{}, {"dropout": 0.3}, {"hyper_layers": "all", "hyper_rank": 2, "hyper_nlm_rank": 2, "hyper_gate": True}],
    ids=["plain", "dropout", "hyper"],
)
def test_ticks_that_are_computed_again_give_the_same_gradient(core: dict[str, Any]) -> None:
    found = []
    for again in (False, True):
        model = language_model(core, checkpoint_ticks=again)
        torch.manual_seed(7)
        model(*some_text()).value.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(
    "options",
    [{}, {"any_tick": 0.3}, {"final_only": True}, {"checkpoint_ticks": True}],
    ids=["two ticks", "any tick", "final only", "computed again"],
)
def test_half_precision_leaves_no_weight_without_its_gradient(options: dict[str, Any]) -> None:
    # What autocast has once cast without a gradient it may hand out again where one is wanted.
    found = []
    for half in (False, True):
        model = language_model(**options)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(*some_text(rows=8)).value
        loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        # Keys are looked at through a softmax, to which their bias is nothing.
        if not name.endswith("attention.key.bias"):
            assert F.cosine_similarity(gradient.flatten(), found[1][name].flatten(), dim=0) > 0.9, name


@pytest.mark.parametrize(("options", "logits"), [({}, 2), ({"final_only": True}, 1)], ids=["two ticks", "final only"])
def test_logits_that_are_kept_for_the_way_back_do_not_grow_with_the_ticks(options: dict[str, Any], logits: int) -> None:
    tokens, targets = some_text()
    counts = []
    for ticks in (3, 9):
        model = language_model({"ticks": ticks}, **options)
        shapes: list[tuple[int, ...]] = []

        def keep(tensor: Tensor, shapes: list[tuple[int, ...]] = shapes) -> Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(tokens, targets)
        counts.append(shapes.count((targets.numel(), VOCABULARY)))
    assert counts[0] == counts[1], f"more ticks keep more logits: {counts}"
    assert counts[0] >= logits, "the logits that are descended are kept"


def test_any_tick_descends_one_drawn_tick_of_each_token_beside_the_other_two() -> None:
    model = language_model(any_tick=0.3)
    tokens, targets = some_text()
    torch.manual_seed(11)
    value = model(tokens, targets).value
    torch.manual_seed(11)
    drawn = torch.randint(model.config.ticks, (targets.numel(),))
    assert drawn.unique().tolist() == [0, 1, 2, 3], "all ticks are drawn"
    drawn_loss = model.judge(tokens, targets).losses.gather(1, drawn[:, None]).mean()
    torch.testing.assert_close(value, 0.7 * plain_loss(model, tokens, targets) + 0.3 * drawn_loss)


def test_final_only_descends_the_last_tick() -> None:
    model = language_model(final_only=True)
    tokens, targets = some_text()
    loss = model(tokens, targets)
    last = model.eval().judge(tokens, targets).losses[:, -1]
    torch.testing.assert_close(loss.value.detach(), last.mean())
    assert loss.tick.unique().tolist() == [3]


def test_alpha_is_learned_and_shares_the_logits() -> None:
    model = language_model(skip_weight=-40.0).eval()
    with torch.no_grad():
        model.skip.fill_(-40.0)
    tokens, targets = some_text()
    gpt2_alone = F.cross_entropy(
        F.linear(model.gpt2(tokens).features.flatten(0, 1), model.gpt2.head), targets.flatten(), reduction="none"
    )
    torch.testing.assert_close(model.judge(tokens, targets).losses[:, 0], gpt2_alone.detach())

    learning = language_model()
    learning(tokens, targets).value.backward()
    assert learning.skip.grad is not None
    assert learning.skip.grad != 0


def test_a_gpt2_alone_is_the_same_gpt2() -> None:
    torch.manual_seed(0)
    alone = LanguageCTM(core_config(ticks=1), language_config(alone=True), seed=0)
    tokens, targets = some_text()
    logits = F.linear(alone.gpt2(tokens).features, alone.gpt2.head)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(alone(tokens, targets).value, expected)
    assert not any(name.startswith("core") for name, _ in alone.named_parameters())


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 as `transformers` saves one, which reads a longer text than we want."""
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT + 5, n_embd=WIDTH, n_layer=2, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    return folder


def test_a_frozen_gpt2_from_a_folder_stays_as_it_is(gpt2_folder: Path) -> None:
    config = language_config(gpt2=str(gpt2_folder), frozen=True, dropout=0.5)
    model = LanguageCTM(core_config(), config, seed=0)
    load_gpt2(model.gpt2, config)
    assert model.training, "the CTM learns"
    tokens, targets = some_text()
    first, second = (model.gpt2(tokens).features for _ in range(2))
    torch.testing.assert_close(first, second, msg="a frozen GPT-2 drops nothing out")
    model(tokens, targets).value.backward()
    assert all(weight.grad is None for weight in model.gpt2.parameters())
    assert model.skip.grad is not None

    from transformers import GPT2Model

    theirs = GPT2Model.from_pretrained(gpt2_folder).eval()(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(first, theirs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vocabulary": 14}, "language.vocabulary must be 13, as the GPT-2 at .* has it, got 14"),
        ({"layers": 3}, "language.layers must be 2, as the GPT-2 at .* has it, got 3"),
        ({"context": CONTEXT + 6}, f"language.context must be at most {CONTEXT + 5}, .* got {CONTEXT + 6}"),
    ],
    ids=["vocabulary", "layers", "context"],
)
def test_a_gpt2_of_other_sizes_is_refused(gpt2_folder: Path, overrides: dict[str, Any], words: str) -> None:
    config = language_config(gpt2=str(gpt2_folder), **overrides)
    core = core_config(input_shape=(WIDTH, config.context))
    with pytest.raises(Gpt2Error, match=words):
        load_gpt2(LanguageCTM(core, config).gpt2, config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_function": "relu"}, "has activation_function = 'relu', only 'gelu_new' is read"),
        ({"n_inner": 20}, "has n_inner = 20, only 32 is read"),
        ({"layer_norm_epsilon": 1e-2}, "has layer_norm_epsilon = 0.01, only 1e-05 is read"),
        ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx = True, only False is read"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings = False, only True is read"),
    ],
    ids=["activation", "inner width", "norm", "scale", "head of its own"],
)
def test_a_gpt2_that_computes_otherwise_is_refused(
    gpt2_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config.from_pretrained(gpt2_folder, **settings)).save_pretrained(tmp_path)
    config = language_config(gpt2=str(tmp_path))
    with pytest.raises(Gpt2Error, match=words):
        load_gpt2(LanguageCTM(core_config(), config).gpt2, config)


@pytest.mark.parametrize("head", [False, True], ids=["the model", "the model with its head"])
def test_a_gpt2_keeps_its_numbers_with_or_without_its_head(
    gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], head: bool
) -> None:
    from transformers import GPT2LMHeadModel

    whole = GPT2LMHeadModel.from_pretrained(gpt2_folder).eval()
    if head:
        whole.save_pretrained(tmp_path)
    config = language_config(gpt2=str(tmp_path if head else gpt2_folder))
    model = LanguageCTM(core_config(), config, seed=0).eval()
    capsys.readouterr()
    load_gpt2(model.gpt2, config)
    assert capsys.readouterr().err == "", "progress bars are the run's own"
    tokens, _ = some_text()
    features = model.gpt2(tokens).features
    torch.testing.assert_close(F.linear(features, model.gpt2.head), whole(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"torn"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "gpt2", "n_embd": "wide"}'),
        ("config.json", b'{"model_type": "gpt2", "n_embd": 0}'),
    ],
    ids=["torn weights", "no JSON", "text for a number", "no width"],
)
def test_a_damaged_gpt2_is_refused_by_name(gpt2_folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes((gpt2_folder / file).read_bytes())
    (tmp_path / name).write_bytes(content)
    config = language_config(gpt2=str(tmp_path))
    with pytest.raises(Gpt2Error, match=f"no GPT-2 at {tmp_path}: ") as caught:
        load_gpt2(LanguageCTM(core_config(), config).gpt2, config)
    assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"no")
    config = language_config(gpt2=str(tmp_path))
    with pytest.raises(Gpt2Error, match="holds no safetensors"):
        load_gpt2(LanguageCTM(core_config(), config).gpt2, config)


def test_a_model_of_another_family_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    config = language_config(gpt2=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((gpt2_folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(Gpt2Error, match="holds a model of family 'llama', expected 'gpt2'"):
        load_gpt2(LanguageCTM(core_config(), config).gpt2, config)


def test_a_gpt2_without_all_of_its_weights_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    weights = load_file(gpt2_folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "ln_f" not in name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((gpt2_folder / "config.json").read_text())
    config = language_config(gpt2=str(tmp_path))
    with pytest.raises(Gpt2Error, match=r"lacks 2 weights of a GPT-2, such as ln_f\.bias"):
        load_gpt2(LanguageCTM(core_config(), config).gpt2, config)


@pytest.mark.parametrize(
    ("core", "language", "words"),
    [
        ({"out_dims": 7}, {}, "needs model.out_dims = 8, got 7"),
        ({"in_channels": 7, "input_shape": (7, CONTEXT)}, {}, "needs model.in_channels = 8, got 7"),
        ({"input_shape": (WIDTH, 4)}, {}, r"needs model.input_shape = \[8, 9\], got \[8, 4\]"),
        ({"energy_hidden": 4}, {}, "needs model.energy_hidden = unset, got 4"),
        ({}, {"alone": True}, "thinks for one tick, got model.ticks = 4"),
    ],
    ids=["readout", "channels", "window", "energy head", "alone"],
)
def test_a_core_that_does_not_fit_is_refused(core: dict[str, Any], language: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LanguageCTM(core_config(**core), language_config(**language))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vocabulary": 1}, "language.vocabulary must be at least 2"),
        ({"heads": 3}, "language.heads must divide language.width 8, got 3"),
        ({"dropout": 1.0}, r"language.dropout must be a number in \[0, 1\), got 1.0"),
        ({"frozen": True}, "language.gpt2 must say which"),
        ({"any_tick": 1.5}, r"language.any_tick must be a share in \[0, 1\], got 1.5"),
        ({"any_tick": 0.5, "final_only": True}, "language.final_only reads no other tick, got language.any_tick = 0.5"),
        ({"layers": 0}, "language.layers must be a whole number of at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        language_config(**overrides)


def test_settings_survive_json() -> None:
    config = language_config(frozen=True, gpt2="somewhere")
    assert LanguageConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown language settings \['layer'\]"):
        LanguageConfig.from_dict({**config.to_dict(), "layer": 2})
    with pytest.raises(ValueError, match=r"missing language settings \['context'\]"):
        LanguageConfig.from_dict({"vocabulary": 3})
