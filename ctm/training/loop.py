"""The training loop: update after update, with reports, evaluations and checkpoints in between.

One update: rows -> thoughts -> loss -> gradients (summed over parts and processes) -> clip -> AdamW -> decays
projected -> average. All chance is a function of the seed and the number of the update, so weights, AdamW's means and
that number are all there is to know to go on as if nothing had happened.
"""

import copy
import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ctm.checkpoint import Checkpoint, load_weights, point_at, prune, read_checkpoint, sweep, write_checkpoint
from ctm.tasks import Batch
from ctm.training.chance import Purpose, RowOrder, derived_seed, generator, seed_everything
from ctm.training.config import RunConfig
from ctm.training.family import Family
from ctm.training.interrupt import Interrupt
from ctm.training.optimiser import average_into, forget, make_optimiser, means, set_learning_rate, set_means
from ctm.training.report import Reporter
from ctm.training.resume import Progress, check_files, learning_weights, read_progress, trainer_tensors
from ctm.training.schedule import learning_rate
from ctm.training.settings import ConfigError
from ctm.training.window import Measured, Window


class DivergedError(RuntimeError):
    """Training left the finite numbers."""


class Trainer:
    """One run: what it learns with, and how far it is."""

    def __init__(
        self, config: RunConfig, family: Family, accelerator: Accelerator, reporter: Reporter, origin: dict[str, Any]
    ) -> None:
        """Weights and pairs are drawn from the run's seed.

        Args:
            origin: kept in every checkpoint: the command and the versions that made it.
        """
        rows = config.batch_size // accelerator.num_processes
        if config.batch_size % (accelerator.num_processes * config.parts):
            raise ConfigError(
                f"batch_size must divide into {config.parts} equal parts in each of {accelerator.num_processes} "
                f"processes, got {config.batch_size}"
            )
        self.config, self.family, self.task, self.origin = config, family, family.task, origin
        self.accelerator, self.reporter = accelerator, reporter
        self.progress = Progress()
        self._mine = slice(accelerator.process_index * rows, (accelerator.process_index + 1) * rows)
        self._order = RowOrder(config.seed, len(self.task.train), config.batch_size)

        seed_everything(config.seed, Purpose.WEIGHTS)
        self.model = family.build(derived_seed(config.seed, Purpose.PAIRS)).to(accelerator.device)
        # What is evaluated and exported: the average of the weights, or a copy of them. Apart from the model that
        # learns, because accelerate wraps that one in its precision.
        self.served = copy.deepcopy(self.model).eval()
        if config.compile:
            family.compile(self.model)
        self._wrapped: nn.Module
        self._optimiser: torch.optim.Optimizer
        self._wrapped, self._optimiser = accelerator.prepare(self.model, make_optimiser(self.model, config.optimiser))
        for model in (self.model, self.served):
            family.place(model, accelerator.num_processes)

    def run(self, interrupt: Interrupt) -> bool:
        """Do all updates that are left, or those that still help; False when a signal ended it before."""
        config, every = self.config, self.config.report
        window = Window(self.accelerator, config)
        while self.progress.done < config.updates and not self._stale():
            window.add(self.update())
            done = self.progress.done
            self.reporter.advance()
            finished, asked = done == config.updates, self._any(interrupt.signal_name is not None)
            if done % every.every == 0 or finished:
                self.reporter.report(done, window.close(self._rate(done - 1), done / self._order.batches))
            best = (done % every.evaluate_every == 0 or finished) and self.evaluate()
            if best or done % every.checkpoint_every == 0 or finished or asked or self._stale():
                self.save()
            if asked and not finished:
                return False
        return True

    def let_go(self) -> None:
        """Drop what learns with other processes; before their group ends, once no update is to come.

        Were the wrapped model the last to hold that group, the group would end with Python's lock held, while the
        group's own thread may wait for that lock to drop the last message: both for ever.
        """
        del self._wrapped
        self.accelerator.free_memory()

    def _stale(self) -> bool:
        """Whether held-out rows have not got better for as long as the run would wait."""
        every, progress = self.config.report, self.progress
        waited = (progress.done - progress.best_update) // every.evaluate_every
        return bool(every.patience) and progress.best_score is not None and waited >= every.patience

    def update(self) -> Measured:
        """Change the weights once.

        Raises:
            DivergedError: loss or gradient is not finite; the weights are as they were.
        """
        config, number = self.config, self.progress.done
        seed_everything(config.seed, Purpose.FORWARD, number, self.accelerator.process_index)
        inputs, targets = self._batch(number)
        set_learning_rate(self._optimiser, self._rate(number))
        measured = []
        self._wrapped.train()
        for part, (some_inputs, some_targets) in enumerate(
            zip(inputs.chunk(config.parts), targets.chunk(config.parts), strict=True), start=1
        ):
            # Gradients cross processes once, with the last part.
            with nullcontext() if part == config.parts else self.accelerator.no_sync(self._wrapped):
                learned = self.family.learn(self._wrapped, some_inputs, some_targets)
                self.accelerator.backward(learned.value / config.parts)
            measured.append(torch.stack([value.detach() for value in learned]))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.optimiser.clip_norm or math.inf)
        assert norm is not None, "gradients are clipped where they have been summed"
        mean_loss, accuracy, answer_tick = torch.stack(measured).mean(dim=0).unbind()
        self._check_finite(number, mean_loss, norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        forget(self._optimiser, self.family.project(self.model))
        self.progress.done += 1
        if config.optimiser.average_decay:
            alike = self.family.updates_alike(self.progress.done)
            average_into(self.served, self.model, alike, config.optimiser.average_decay)
        return Measured(mean_loss, accuracy, answer_tick, norm)

    def evaluate(self) -> bool:
        """Think about the held-out rows; True when it never went better."""
        self._refresh_served()
        evaluation, before = self.family.evaluate(self.served, self.accelerator), self.progress.best_score
        best = before is None or evaluation.score > before
        if best:
            self.progress.best_score, self.progress.best_update = evaluation.score, self.progress.done
        self.reporter.evaluation(self.progress.done, evaluation, best)
        return best

    def save(self) -> None:
        """Write a checkpoint, point `last` and `best` at it where they belong, and remove old ones."""
        self._refresh_served()
        if self.accelerator.is_main_process:
            folder = self._folder(self.progress.done)
            trainer = {"optimiser": means(self._optimiser)}
            if self.config.optimiser.average_decay:
                trainer["weights"] = self.model.state_dict()
            write_checkpoint(
                folder,
                Checkpoint(
                    weights=self.served.state_dict(),
                    config={**self.origin, "update": self.progress.done},
                    progress=dataclasses.asdict(self.progress),
                    trainer=trainer,
                    files=self.task.files,
                ),
            )
            self._point(folder)
            run = self.config.folder
            sweep(run)
            prune(folder.parent, self.config.report.keep, {(run / link).resolve() for link in ("last", "best")})
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it lacks something, or does not fit the model. ConfigError: it is of other data.
        """
        checkpoint = read_checkpoint(folder)
        check_files(self.task.files, folder)
        self.progress = read_progress(checkpoint.progress, folder / "trainer" / "progress.json")
        # The command that began the run is the one that makes it again.
        self.origin["provenance"] = checkpoint.config.get("provenance", self.origin["provenance"])
        load_weights(self.served, checkpoint.weights, folder / "weights.safetensors")
        load_weights(self.model, *learning_weights(checkpoint, folder))
        set_means(self._optimiser, *trainer_tensors(checkpoint, folder, "optimiser"))
        if self.accelerator.is_main_process:
            for unfinished in (self.config.folder, folder.parent):
                sweep(unfinished)
            # A process killed between its writes may have left the links behind.
            self._point(folder)

    def _batch(self, update: int) -> Batch:
        """This process's rows of an update, on its device."""
        inputs, targets = self.task.train.take(self._order.indices(update)[self._mine])
        inputs, targets = inputs.to(self.accelerator.device), targets.to(self.accelerator.device)
        if self.task.augment is not None:
            chance = generator(self.config.seed, Purpose.AUGMENT, update, self.accelerator.process_index)
            inputs = self.task.augment(inputs, chance)
        return Batch(inputs, targets)

    def _rate(self, update: int) -> float:
        optimiser = self.config.optimiser
        return learning_rate(
            update,
            warmup=optimiser.warmup_updates,
            updates=self.config.updates,
            highest=optimiser.learning_rate,
            lowest=optimiser.final_learning_rate,
        )

    def _check_finite(self, update: int, loss: Tensor, norm: Tensor) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"update {update + 1}: the loss is {float(loss)} and the norm of its gradient is {float(norm)}; the "
                f"weights are kept as they were. A lower optimiser.learning_rate or optimiser.clip_norm may help"
            )

    def _refresh_served(self) -> None:
        """Have the same model to evaluate in all processes, the one that the first of them saves."""
        if not self.config.optimiser.average_decay:
            self.served.load_state_dict(self.model.state_dict())
        if self.accelerator.num_processes > 1:
            # Batch normalisation keeps statistics of its own process's rows; only gradients are shared.
            for buffer in self.served.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))

    def _any(self, mine: bool) -> bool:
        """Whether it is true in any process: all must leave the loop at the same update."""
        if self.accelerator.num_processes == 1:
            return mine
        asked: Tensor = self.accelerator.reduce(torch.tensor(float(mine), device=self.accelerator.device))
        return bool(asked > 0)

    def _folder(self, update: int) -> Path:
        return self.config.folder / "checkpoints" / f"update-{update:06d}"

    def _point(self, folder: Path) -> None:
        point_at(self.config.folder / "last", folder)
        best = self._folder(self.progress.best_update)
        if best.exists():
            point_at(self.config.folder / "best", best)
