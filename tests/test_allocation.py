import subprocess
import sys
import types

import pytest

from experiments import train
from ss_gan_tf import allocation

# Takes and frees 200 MB in turns, in threads as TensorFlow does, and prints the pages
# that the system had to give.
PROGRAM = """
import ctypes, resource, threading
from ss_gan_tf.allocation import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def work():
    block = libc.malloc(ctypes.c_size_t(200 << 20))
    ctypes.memset(ctypes.c_void_p(block), 1, 200 << 20)
    libc.free(ctypes.c_void_p(block))
def in_a_thread():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
in_a_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(keep):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux'")
def test_the_second_time_no_page_is_new():
    assert pages(keep=False) > 1000
    assert pages(keep=True) < 200


# Takes and frees 3 GiB at the end of the heap, of which no page is touched, and prints
# by how many bytes the heap is shorter then; the same with a limit of 2 GiB.
END = """
import ctypes
from ss_gan_tf.allocation import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
def take():
    return ctypes.c_void_p(libc.malloc(ctypes.c_size_t(3 << 30)))
start = libc.sbrk(0)
block = take()
end = libc.sbrk(0)
if end - start > 2 << 30:
    libc.free(block)
    print(end - libc.sbrk(0))
    assert libc.mallopt(-1, 2**31 - 1)
    libc.free(take())
    print(end - libc.sbrk(0))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux'")
def test_what_lies_free_at_the_end_of_the_heap_stays_however_large():
    done = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip("the heap does not grow by 3 GiB here")
    kept, limited = map(int, done.stdout.split())
    assert kept == 0 and limited > 2 << 30


def test_it_needs_no_threshold_that_some_versions_of_glibc_refuse(monkeypatch):
    """M_MMAP_THRESHOLD is -3; half of the largest heap, 32 MB, was its limit once."""
    asked = {}

    def mallopt(name, value):
        asked[name] = value
        return int(not (name == -3 and value > 32 * 2**20))

    library = types.SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr(allocation.sys, "platform", "linux")
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: library)
    assert allocation.keep_freed_memory() and asked[-4] == 0
    library.mallopt = lambda name, value: int(name != -4)
    assert not allocation.keep_freed_memory()
    del library.mallopt
    assert not allocation.keep_freed_memory()


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocation.sys, "platform", "darwin")
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize("keep, name", [(True, "kept"), (False, "given back")])
def test_train_does_with_it_what_its_flag_says(keep, name, monkeypatch):
    def refused():
        raise ValueError("no run")

    done = []
    monkeypatch.setattr(train, "FLAGS", types.SimpleNamespace(keep_freed_memory=keep))
    monkeypatch.setattr(train, "keep_freed_memory", lambda: done.append("kept"))
    monkeypatch.setattr(
        train, "give_freed_memory_back", lambda: done.append("given back")
    )
    for other in ("show_own_messages", "listen"):
        monkeypatch.setattr(train, other, lambda: [])
    monkeypatch.setattr(train, "config_from_flags", refused)
    with pytest.raises(SystemExit, match="^error: no run$"):
        train.main(["train"])
    assert done == [name]


# Makes and frees a tensor of 400 MB and prints how many MB are left of it.
# TensorFlow is loaded first, as by the programs.
TENSOR = """
import re
import tensorflow as tf
from ss_gan_tf import allocation
allocation.{name}()
def resident():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmRSS:\\s+(\\d+)", file.read()).group(1)) // 1024
tf.zeros([10]).numpy()
before = resident()
tensor = tf.ones([100, 1024, 1024]) + 1
assert resident() - before > 350
del tensor
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc")
def test_what_tensorflow_frees_is_kept_or_given_back():
    left = {}
    for name in ("keep_freed_memory", "give_freed_memory_back"):
        done = subprocess.run(
            [sys.executable, "-c", TENSOR.format(name=name)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        left[name] = int(done.stdout)
    assert left["give_freed_memory_back"] < 50
    assert left["keep_freed_memory"] > 350


# Frees every second of many blocks, of which the others stay, and prints how much less
# is resident once what is free was given back.
HOLES = """
import ctypes, resource
from ss_gan_tf.allocation import give_back_now, keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 1 << 20
blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks[::2]:
    libc.free(block)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = resident()
give_back_now()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux'")
def test_between_two_runs_what_is_free_goes_back():
    done = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 150 << 20  # of 200


def test_nothing_is_given_back_where_glibc_is_missing(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda _: types.SimpleNamespace())
    allocation.give_back_now()
