"""What a run saves and finds again, with a network of one weight."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from ss_gan_tf import run_state, stages, summaries
from ss_gan_tf.guard import Decision, Guard


@pytest.fixture
def make(tmp_path):
    """(RunState, its plan, G's weight) in one folder, as each start makes them."""

    def make(guarded=True):
        generator = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(generator.trainable_variables)
        networks = stages.Networks(generator, optimizer)
        plan = [
            stages.Stage("phase1", 10, None, 0),
            stages.Stage("warmup", 5, None, 10),
            stages.Stage("phase2", 10, None, 10),
        ]
        weakening = None
        if guarded:
            weakening = stages.Weakening()
        state = run_state.RunState(
            str(tmp_path), networks, plan, Guard(3, 0.02, 1.0), weakening, keep=2
        )
        return types.SimpleNamespace(
            state=state,
            plan=plan,
            kernel=generator.weights[0],
            variables=generator.trainable_variables,
            optimizer=optimizer,
            weakening=weakening,
        )

    return make


def stand(run, number, step, value):
    """The run at a step of a stage with a weight."""
    run.state.position.stage.assign(run.plan[number].name)
    run.state.position.step.assign(step)
    run.kernel.assign([[value]])
    return run.plan[number], step


def test_nothing_to_restore(make):
    assert not make().state.restore()


def test_all_that_matters_comes_back_and_the_logs_are_cut(make, tmp_path):
    run = make()
    writer = summaries.Summaries(str(tmp_path))
    writer.scalars(1, {"a": 1.0})
    sizes = summaries.log_sizes(str(tmp_path))
    run.state.last_validation = ("phase1", 4, {"miou": 0.1 + 0.2})
    run.state.best["phase1"] = {"miou": 0.1 + 0.2, "step": 4}
    run.state.guard.state["strength"] = 0.1
    run.state.save(*stand(run, 0, 6, 7.0))
    writer.scalars(2, {"a": 1.0})
    run = make()
    assert run.state.restore()
    assert (run.state.stage, run.state.step) == ("phase1", 6)
    assert run.state.last_validation == ("phase1", 4, {"miou": 0.1 + 0.2})
    assert run.state.best["phase1"] == {"miou": 0.1 + 0.2, "step": 4}
    assert run.kernel.numpy() == 7 and run.weakening.strength.numpy() == np.float32(0.1)
    assert summaries.log_sizes(str(tmp_path)) == sizes


def test_no_two_states_of_a_run_share_a_name(make):
    run = make()
    for number, step in ((0, 10), (1, 5), (2, 0), (2, 5)):
        run.state.save(*stand(run, number, step, float(number)))
        assert run.state._states.has(step + [0, 11, 17][number])


def test_killed_between_a_state_and_the_best_that_it_counts(make, tmp_path):
    run = make(guarded=False)
    run.state.best["phase1"] = {"miou": 0.5, "step": 4}
    run.state.save(*stand(run, 0, 4, 3.0))
    run = make(guarded=False)
    run.state.restore()
    reader = tf.train.load_checkpoint(str(tmp_path / "best" / "phase1"))
    names = reader.get_variable_to_shape_map()
    kernel = next(n for n, s in names.items() if s == [1, 1] and "generator/" in n)
    assert reader.get_tensor(kernel) == 3


def test_back_to_the_best_while_the_clock_goes_on(make):
    run = make()
    run.state.keep_best(*stand(run, 2, 3, 1.0))
    stage, step = stand(run, 2, 8, -5.0)
    run.state.guard.go_back(Decision("back", "validation", ""))
    run.state.go_back(stage, step)
    assert run.kernel.numpy() == 1
    assert (run.state.stage, run.state.step) == ("phase2", 8)
    assert run.weakening.strength.numpy() == np.float32(0.1)


def test_back_to_the_best_adam_is_as_young_as_its_averages(make):
    """Else its bias correction is left out: the first updates are up to 6.5 rates."""
    run = make()
    run.state.keep_best(*stand(run, 2, 0, 1.0))
    one = [tf.ones_like(weight) for weight in run.variables]
    for _ in range(8):
        run.optimizer.apply(one, run.variables)
    run.state.go_back(*stand(run, 2, 8, -5.0))
    assert int(run.optimizer.iterations) == 0
    assert run.weakening.lost_steps.numpy() == 8  # by which the rates go on
    for _ in range(5):
        before = run.kernel.numpy()
        run.optimizer.apply(one, run.variables)
        assert before - run.kernel.numpy() == pytest.approx(0.1, rel=1e-4)
    run.state.save(*stand(run, 2, 13, run.kernel.numpy()[0, 0]))
    run = make()
    run.state.restore()
    assert int(run.optimizer.iterations) == 5
    assert run.weakening.lost_steps.numpy() == 8


def test_the_end_is_phase_1(make):
    run = make()
    stand(run, 2, 0, 1.0)
    run.state.keep_before_phase2()
    stage, _ = stand(run, 2, 8, -5.0)
    run.state.end(stage)
    assert run.kernel.numpy() == 1 and run.state.step == stage.num_steps
