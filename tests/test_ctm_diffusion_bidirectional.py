"""Thoughts that go back and forth: what going back restores, who decides for whom, and when a row is done."""

import numpy as np
import pytest
import torch
from exported_part import exported
from torch import Tensor

from ctm.config import CTMConfig
from ctm.diffusion.bidirectional import (
    BACK,
    FORWARD,
    STAY,
    BidirectionalConfig,
    BidirectionalReasoningController,
    ending_chances,
    gumbel_noise,
)
from ctm.diffusion.reasoning import ReasoningCTM, Tick, flatten, specify, start_values
from ctm.model import CTM
from ctm.program import Encode

SMALL = {
    "ticks": 8,
    "width": 12,
    "memory": 3,
    "attention_width": 8,
    "heads": 2,
    "out_neurons": 9,
    "action_neurons": 7,
    "out_dims": 6,
    "nlm_hidden": 2,
    "in_channels": 3,
    "input_shape": (3, 5),
}


def build(seed: int = 0, *, fresh: bool = False, **settings) -> ReasoningCTM:
    """A small model in evaluation mode; unless fresh, with every weight away from its start value."""
    torch.manual_seed(seed)
    config = BidirectionalConfig(**{"max_moves": 10, "places": 4, "memory_width": 6, "end_at": 0.95, **settings})
    model = ReasoningCTM(CTM(CTMConfig(**SMALL), seed=seed), config)
    with torch.no_grad():
        model.core.start_post.normal_()
        for name, parameter in model.named_parameters():
            if name.endswith("sync.decay"):
                parameter.uniform_(0, 2)
            elif name.startswith("core") or not fresh:
                parameter.add_(0.3 * torch.randn_like(parameter))
        if not fresh:
            _make_opinionated(model)
    return model.eval()


def _make_opinionated(model: ReasoningCTM) -> None:
    """Have rows that begin alike, and go forward, decide differently from what they see from then on."""
    controller, walk, tables, memories = model.controller, model.start(64), model.frozen_tables(), []
    start, context = walk.memory[0], model.encode(inputs_of(64, seed=2))
    for tick in range(8):
        walk, _ = model.tick(context, walk, tables, forced([(row + tick * row) % 3 for row in range(64)]))
        memories.append(walk.memory)
    _, spread, ways = torch.linalg.svd(torch.cat(memories) - start, full_matrices=False)
    for layer, at_first in ((controller.move_logits, [0.0, -1.5, 1.0]), (controller.gate, [-1.0])):
        layer.weight.copy_(torch.randn_like(layer.weight) @ torch.diag(40 / spread) @ ways)
        layer.bias.copy_(torch.tensor(at_first) - layer.weight @ start)


def inputs_of(rows: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(rows, *SMALL["input_shape"], generator=torch.Generator().manual_seed(seed))


def forced(moves: list[int]) -> Tensor:
    """Noise that leaves no doubt which moves are drawn."""
    noise = torch.zeros(len(moves), 3)
    noise[range(len(moves)), moves] = 1e4
    return noise


@pytest.mark.parametrize("learning", [False, True], ids=["without a graph", "learning"])
def test_going_back_restores_an_earlier_state_to_the_bit(learning):
    model, rows, places = build(max_moves=40), 5, 4
    tables, chance = model.frozen_tables(), np.random.default_rng(0)
    with torch.set_grad_enabled(learning):
        context, walk = model.encode(inputs_of(rows)), model.start(rows)
        pasts = [[[value[row] for value in model.controller.present(walk)]] for row in range(rows)]
        seen = {BACK: 0, STAY: 0, FORWARD: 0}
        for _ in range(40):
            wanted = chance.choice(3, rows, p=[0.4, 0.2, 0.4]).tolist()
            walk, output = model.tick(context, walk, tables, forced(wanted))
            for row, past in enumerate(pasts):
                move = int(output.move[row])
                assert move == wanted[row] or (wanted[row] == BACK and len(past) == 1), "barred from the start state"
                if move == BACK:
                    past.pop()
                now = [value[row] for value in model.controller.present(walk)]
                if move == FORWARD:
                    assert not torch.equal(now[0], past[-1][0])
                    past.append(now)
                    del past[:-places]
                seen[move] += 1
                assert all(torch.equal(mine, theirs) for mine, theirs in zip(now, past[-1], strict=True))
                assert int(walk.behind[row]) == len(past) - 1
    assert min(seen.values()) > 20, seen


@torch.no_grad()
def test_a_fresh_controller_leaves_the_thought_as_it_was():
    model, inputs = build(fresh=True, max_moves=8), inputs_of(4)
    moves, thoughts = model(inputs), model.core(inputs)
    assert (moves.moves == FORWARD).all()
    torch.testing.assert_close(moves.predictions, thoughts.predictions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moves.certainties, thoughts.certainties, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_that_comes_again_goes_another_way_and_one_that_never_turned_does_not():
    model = build(max_moves=40)
    context, start, tables = model.encode(inputs_of(1)), model.start(1), model.frozen_tables()
    first, _ = model.tick(context, start, tables, forced([FORWARD]))
    back, _ = model.tick(context, first, tables, forced([BACK]))
    again, _ = model.tick(context, back, tables, forced([FORWARD]))
    stayed, _ = model.tick(context, start, tables, forced([STAY]))
    waited, _ = model.tick(context, stayed, tables, forced([FORWARD]))
    posts = [model.controller.present(walk)[1] for walk in (first, again, waited)]
    assert not torch.allclose(posts[0], posts[1])
    assert torch.equal(posts[0], posts[2])


@torch.no_grad()
def test_evaluation_is_the_same_each_time_and_alone_or_in_company():
    model, inputs = build(1), inputs_of(12)
    moves, again = model(inputs), model(inputs)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(moves, again, strict=True))
    assert {BACK, FORWARD} <= set(moves.moves.unique().tolist()), "the rows do go both ways"
    assert len({tuple(row.tolist()) for row in moves.moves}) > 1, "and not all the same"
    for row in range(len(inputs)):
        alone = model(inputs[row : row + 1])
        assert torch.equal(alone.moves[0], moves.moves[row]), f"row {row}"
        torch.testing.assert_close(alone.predictions[0], moves.predictions[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_ending_ends_just_that_row_and_moves_are_bounded():
    model, rows = build(3), 12
    context, walk, tables = model.encode(inputs_of(rows)), model.start(rows), model.frozen_tables()
    ended_at, walks = [], [walk]
    for _ in range(12):
        walk, output = model.tick(context, walk, tables)
        walks.append(walk)
        ended_at.append(output.done)
        assert torch.equal(output.done, walk.ended.float())
    done = torch.stack(ended_at, 1)
    first = done.argmax(1) + 1
    assert done.diff(dim=1).min() == 0, "done stays done"
    assert first.max() == 10, "some row uses all of its moves, none more"
    assert first.min() < 10, "some row ends before"
    for row, tick in enumerate(first.tolist()):
        for later in range(tick + 1, 13):
            assert all(
                torch.equal(mine[row], theirs[row])
                for mine, theirs in zip(flatten(walks[later]), flatten(walks[tick]), strict=True)
            ), f"row {row} is left alone after tick {tick}"
        assert int(walks[-1].moves[row]) == tick


def test_moves_and_endings_learn():
    model = build(1).train()
    moves = model(inputs_of(16), generator=torch.Generator().manual_seed(0))
    (moves.predictions.square().mean(-1) * moves.ending).sum(1).mean().backward()
    controller = {name: weight.grad for name, weight in model.controller.named_parameters()}
    assert [name for name, grad in controller.items() if grad is None or not grad.any()] == []
    again = model(inputs_of(16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.moves, moves.moves), "seeded"


def test_moves_are_drawn_as_often_as_their_logits_say():
    logits = torch.tensor([0.5, -1.0, 1.0])
    drawn = (logits + gumbel_noise((20_000, 3), torch.Generator().manual_seed(0))).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.015, rtol=0)


def test_ending_chances_are_those_of_gates_asked_one_after_the_other():
    gates = torch.tensor([[0.5, 0.5, 0.1], [0.0, 1.0, 0.9], [1.0, 0.3, 0.3]])
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(ending_chances(gates), expected)


def test_it_learns_to_end_where_the_answer_is_right():
    """Rows count forward from 0; only at the row's own goal is the answer right, and the gate must say so."""
    config = BidirectionalConfig(max_moves=4, places=3, memory_width=16, end_at=0.5)
    torch.manual_seed(0)
    controller = BidirectionalReasoningController(8, 1, config)
    optimiser, generator = torch.optim.Adam(controller.parameters(), lr=0.03), torch.Generator().manual_seed(0)
    goals = torch.tensor([1, 2, 3] * 4)

    def see(place: Tensor) -> Tensor:
        here, goal = torch.arange(4.0) - place, torch.eye(4)[goals]
        return torch.cat([(1 - here.abs()).clamp(min=0), goal], dim=-1)

    def walk_through(noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
        place, sync = torch.zeros(len(goals), 1), torch.zeros(len(goals), 1)
        walk, gates, places = controller.start((place,), see(place), sync), [], []
        for _ in range(config.max_moves):
            noise = gumbel_noise((len(goals), 3), generator) if noisy else None
            walk, _ = controller.move(walk, ((controller.present(walk)[0] + 1).clamp(max=3),), noise)
            (place,) = controller.present(walk)
            walk, gate = controller.look(walk, see(place), sync, ends=not noisy)
            gates.append(gate)
            places.append(place[:, 0])
        return torch.stack(places, 1), torch.stack(gates, 1), place[:, 0]

    for update in range(300):
        places, gates, _ = walk_through(noisy=True)
        optimiser.zero_grad()
        (ending_chances(gates) * (places - goals[:, None]).square()).sum(1).mean().backward()
        optimiser.step()
        if update % 20 == 19:
            with torch.no_grad():
                _, _, ends = walk_through(noisy=False)
            if torch.equal(ends, goals.float()):
                return
    pytest.fail(f"after {update + 1} updates rows end at {ends[:3].tolist()}, not at 1, 2 and 3")


@torch.no_grad()
@pytest.mark.parametrize("how", ["torch", "torch.jit", "onnx"])
def test_the_program_gives_the_models_numbers_for_any_number_of_rows(how, tmp_path):
    model = build(1)
    program, tick, encode = specify(model), Tick(model).eval(), Encode(model.core).eval()
    start = [value.unsqueeze(0) for value in start_values(model).values()]

    def rows_of(count: int) -> list[Tensor]:
        return [*encode(inputs_of(count)), *(value.repeat(count, *(1,) * (value.dim() - 1)) for value in start)]

    run = exported(how, tick, rows_of(2), program, tmp_path)
    arguments, moves = rows_of(7), model(inputs_of(7))
    assert len(set(moves.done.sum(1).tolist())) > 1, "rows end at different ticks"
    context, state = arguments[:2], arguments[2:]
    for index in range(10):
        results = run(*context, *state)
        state, (prediction, sure, done, _) = results[: len(program.state)], results[len(program.state) :]
        torch.testing.assert_close(prediction, moves.predictions[:, index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sure, moves.certainties[:, index], atol=1e-4, rtol=1e-4)
        assert torch.equal(done, moves.done[:, index])
    for spec, value in zip((*program.state, *program.outputs), results, strict=True):
        assert tuple(value.shape) == (7, *spec.shape), spec.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"max_moves": 0}, "max_moves must be a whole number of at least 1, got 0", id="no moves"),
        pytest.param({"places": 1}, "places must be a whole number of at least 2, got 1", id="nothing to go back to"),
        pytest.param({"end_at": 0.0}, r"end_at must be a number in \(0, 1\], got 0.0", id="always done"),
        pytest.param({"temperature": 0.0}, "temperature must be a number above 0, got 0.0", id="no softmax"),
    ],
)
def test_configurations_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BidirectionalConfig(**settings)


def test_half_precision_leaves_the_state_whole():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        walk, output = model.tick(model.encode(inputs_of(2)), model.start(2), model.tables())
    assert {value.dtype for value in flatten(walk)} == {torch.float32, torch.int64}
    assert output.prediction.dtype == torch.float32
