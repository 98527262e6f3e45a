"""All that the steps to come depend on, and its folders: saved and found again.

RUN/checkpoints/    the newest full states
RUN/best/PHASE/     G at its best validation mIoU of each phase; in the phase 2 of a
                    guarded run a full state, which the guard goes back to
RUN/guard/          G as phase 2 of a guarded run found it, for the guard's end

A full state also knows how far every log was written, so that what came after it is
taken out of the logs before it is written again.
"""

import logging
import os

from ss_gan_tf import checkpoints, optimizers, summaries
from ss_gan_tf.guard import Guard
from ss_gan_tf.stages import Networks, Stage, Weakening
from ss_gan_tf.states import Memory, States

_LOG = logging.getLogger(__name__)


class RunState:
    """Networks, position, results and the guard of a run.

    Args:
        workdir: the run's folder.
        networks: the run's.
        plan: its stages.
        guard: watches it.
        weakening: what the guard changes; None in a run that it cannot take back.
        keep: newest full states that stay on disk.
    """

    def __init__(
        self,
        workdir: str,
        networks: Networks,
        plan: list[Stage],
        guard: Guard,
        weakening: Weakening | None,
        keep: int,
    ):
        self.workdir, self.networks, self.plan = workdir, networks, plan
        self.guard, self._weakening = guard, weakening
        self.position, self._memory = checkpoints.Position(), Memory()
        self.best = {p: {"miou": -1.0, "step": None} for p in checkpoints.PHASES}
        self.last_validation = (None, None, {})  # stage, step, metrics
        self.validation_is_due = False  # stopped before it was done
        full = {k: v for k, v in vars(networks).items() if v is not None}
        full["position"] = self.position
        self._states = States(
            os.path.join(workdir, "checkpoints"), keep, memory=self._memory, **full
        )
        evaluated = {"generator": networks.evaluated, "position": self.position}
        self._best_states = {
            phase: States(
                os.path.join(workdir, "best", phase),
                keep=1,
                name="generator",
                **(full if weakening and phase == "phase2" else evaluated),
            )
            for phase in checkpoints.PHASES
        }
        self._before_phase2 = States(
            os.path.join(workdir, "guard"),
            keep=1,
            name="generator",
            **{k: v for k, v in full.items() if k in ("generator", "average")},
        )

    @property
    def step(self) -> int:
        """Steps done in the stage."""
        return int(self.position.step.numpy())

    @property
    def stage(self) -> str:
        """Name of the stage, empty before the first one."""
        return self.position.describe()["phase"]

    def restore(self) -> bool:
        """Loads the newest state, if there is one, and cuts the logs back to it."""
        path = self._states.restore()
        memory = self._memory.read() if path else {"log_sizes": {}}
        summaries.cut_back(self.workdir, memory["log_sizes"])
        if not path:
            return False
        self.last_validation = tuple(memory["last_validation"])
        self.validation_is_due = memory["validation_is_due"]
        self.best = memory["best"]
        self.guard.state |= memory["guard"]
        self.weaken()
        _LOG.info("continuing from %s, %s step %d", path, self.stage, self.step)
        # A state is written before the best one that it counts.
        if self.best.get(self.stage, {}).get("step") == self.step:
            stage = next(s for s in self.plan if s.name == self.stage)
            if not self._best_states[stage.name].has(stage.first_step + self.step):
                self.keep_best(stage, self.step)
        return True

    def save(self, stage: Stage, step: int):
        """Writes a full state at a step of a stage."""
        self._memory.write(
            {
                "last_validation": self.last_validation,
                "validation_is_due": self.validation_is_due,
                "best": self.best,
                "guard": self.guard.snapshot(),
                "log_sizes": summaries.log_sizes(self.workdir),
            }
        )
        before = self.plan[: self.plan.index(stage)]
        self._states.save(step + sum(earlier.num_steps + 1 for earlier in before))

    def keep_best(self, stage: Stage, step: int):
        """Writes G, or in a guarded phase 2 everything, as the best of a phase."""
        self._best_states[stage.name].save(stage.first_step + step)

    def keep_before_phase2(self):
        """Writes G as a guarded phase 2 finds it."""
        if self._weakening:
            self._before_phase2.save(0)

    def go_back(self, stage: Stage, step: int):
        """The networks as they were at their best, the adversary weaker than then."""
        self._load(self._best_states[stage.name], stage, step)

    def end(self, stage: Stage):
        """G as phase 2 found it, at the end of the stage."""
        self._load(self._before_phase2, stage, stage.num_steps)

    def _load(self, states, stage, step):
        """The networks of another moment, while clock, rates and data go on.

        G's optimizer keeps the count that belongs to its averages.
        """
        states.restore()
        self.position.stage.assign(stage.name)
        self.position.step.assign(step)
        age = optimizers.count_updates(self.networks.generator_optimizer)
        self.guard.state["lost_steps"] = step - age
        self.last_validation = (None, None, {})
        self.weaken()

    def weaken(self):
        """Gives the steps what the guard has decided on."""
        if self._weakening:
            for field, variable in vars(self._weakening).items():
                variable.assign(self.guard.state[field])
