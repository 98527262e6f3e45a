"""Estimates, held against networks that are built and files that are written."""

import builtins
import io
import os
import shutil
import types

import pytest

from ss_gan_tf import resources, stages
from ss_gan_tf.config import Config

GIB = resources.GIB


def test_full_size_by_hand():
    """The table of WORKSPACE.md: a state of vgg16_g is 1.6 GB, three are 4.9 GB."""
    generator, adversary = resources.count_parameters("vgg16", 1.0, True)
    assert (generator, adversary) == (134_317_953, 1_707_649 + 260_160)
    # 4 bytes: 3 states of 3 (G + A), 3 G for the best and 2 for the export.
    expected = 4 * (9 * (generator + adversary) + 5 * generator)
    disk = resources.disk_bytes(generator, adversary, keep=2, phases=2)
    assert disk == expected == 7_592_646_492
    one = resources.disk_bytes(generator, adversary, keep=1, phases=2)
    assert disk - one == 12 * (generator + adversary)


def test_guard_and_average_take_disk_by_hand():
    """G of 100 numbers and A of 10: a state is 330 numbers, with an average 430."""

    def numbers(phases=2, **settings):
        return resources.disk_bytes(100, 10, keep=2, phases=phases, **settings) / 4

    # 3 states, the best of two phases and one more, the export twice G.
    assert numbers() == 3 * 330 + 3 * 100 + 200 == 1490
    # Best of phase 1 and one more, best of phase 2 as a state, guard.
    assert numbers(guarded=True) == 3 * 330 + 2 * 100 + 330 + 100 + 200 == 1820
    # The states have one G more; the best ones hold the average alone.
    assert numbers(average=True) == 3 * 430 + 3 * 100 + 200 == 1790
    # Guard: G and its average.
    both = numbers(guarded=True, average=True)
    assert both == 3 * 430 + 2 * 100 + 430 + 200 + 200 == 2320
    # From another run: no best of phase 1.
    assert numbers(1, guarded=True) == 3 * 330 + 100 + 330 + 100 + 200 == 1720


@pytest.mark.parametrize("arm", ["vgg16_g", "resnet50_g"])
def test_parameters_of_narrow_networks(arm):
    config = Config(arm=arm, width=0.125, backbone_weights="none", crop_size=64)
    networks = stages.create_networks(config, tuple("abcdefghijk"))
    built = (
        networks.generator.count_params(),
        (networks.adversary.count_params() + networks.extractor.count_params()),
    )
    about = resources.count_parameters(config.backbone, config.width, True)
    assert about == pytest.approx(built, rel=0.2)


def test_narrow_fc_layers_by_hand():
    """25,088 x 3,072 of fc6 and 4,096^2 - 1,024^2 of fc7 fewer."""
    generator, _ = resources.count_parameters("vgg16", 1.0, True, fc_filters=1024)
    assert generator == 134_317_953 - 77_070_336 - 15_728_640
    resnet = resources.count_parameters("resnet50", 1.0, True, fc_filters=1024)
    assert resnet[0] == resources.GENERATOR["resnet50"]


def test_without_an_adversary_there_are_no_parameters_of_it():
    assert resources.count_parameters("resnet50", 1.0, False) == (39_125_643, 0)


def test_a_runs_own_files_count_as_free(tiny_run):
    own = resources.free_disk(tiny_run) - shutil.disk_usage(tiny_run).free
    files = sum(
        os.path.getsize(os.path.join(where, name))
        for folder in ("checkpoints", "best", "guard", "export")
        for where, _, names in os.walk(os.path.join(tiny_run, folder))
        for name in names
    )
    # Other tests and other programs write to the same disk at the same time.
    assert own == pytest.approx(files, abs=2**30) and files > 10**6


def test_the_guards_files_count_as_free(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for folder in ("checkpoints", "best/phase2", "guard", "export", "eval"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"12345")
    assert resources.free_disk(str(tmp_path)) == 1000 + 4 * 5


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_memory_grows_with_what_it_should(backbone):
    def need(generator=10**8, **changes):
        values = {"width": 1.0, "batch_size": 2, "crop_size": 500} | changes
        return resources.memory_bytes(backbone, generator, **values)

    pixels = (resources.SCORES + resources.ACTIVATIONS[backbone]) * 500**2
    assert need(batch_size=3) - need() == pixels
    assert need(crop_size=1000) - need() == 2 * 3 * pixels
    assert need(generator=0) == resources.START + 2 * pixels
    assert need() - need(generator=0) == 4 * resources.COPIES * 10**8
    half = resources.ACTIVATIONS[backbone] * 500**2
    assert need() - need(width=0.5) == half


def test_free_memory_is_the_lowest_limit(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\nSwapFree: 2 kB\n"}

    def opened(path, **_):
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr(builtins, "open", opened)
    assert resources.free_memory() == 6 * 1024
    files |= {"/sys/fs/cgroup/memory.max": "max", "/sys/fs/cgroup/memory.current": "9"}
    assert resources.free_memory() == 6 * 1024
    files["/sys/fs/cgroup/memory.max"] = "5009"
    stat = "anon 7\ninactive_file 10\nactive_file 20\nslab_reclaimable 30\n"
    files["/sys/fs/cgroup/memory.stat"] = stat
    assert resources.free_memory() == 5000 + 60
    old = "/sys/fs/cgroup/memory/memory."
    files |= {f"{old}limit_in_bytes": "4009", f"{old}usage_in_bytes": "9"}
    stat = "active_file 1\ntotal_inactive_file 100\ntotal_active_file 200\n"
    files[f"{old}stat"] = stat
    assert resources.free_memory() == 4000 + 300
    files.clear()
    assert resources.free_memory() is None


def test_own_memory(monkeypatch):
    status = "Name:\ta:b\nVmRSS:\t   12 kB\n"
    monkeypatch.setattr(resources, "_read", lambda path: status)
    assert resources.own_memory() == 12 * 1024
    status = "Name:\tpython\n"
    assert resources.own_memory() == 0
