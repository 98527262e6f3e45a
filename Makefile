# Each target works on a fresh machine: it makes .venv, installs the package there and
# goes on. Later runs install again only after setup.py has changed.
#
#   make train      prepare the synthetic data, train both phases, evaluate, export
#   make test       the quick suite, minutes on two cores
#   make test-all   the quick suite and the long runs
#   make lint       what a change has to pass; `make format` mends most of it
#   make bench      how fast this machine is
#   make clean      remove .venv, caches and what `make train` and `make bench` left
#
#   PYTHON=python3.12   makes .venv with another Python (3.10 to 3.13)
#   EXTRA=gpu           installs TensorFlow with CUDA instead of the CPU build

PYTHON ?= python3
EXTRA ?= cpu
VENV ?= .venv

DATA = data
RUN = runs/smoke
SPEED = runs/speed.json

# A picture of no split, to predict on.
SCENE = runs/scene.png
DRAW_A_SCENE = $(PY) -c 'import cv2, numpy; from data_prep.synthetic import scene; \
    image, _ = scene.draw_scene(numpy.random.default_rng(2026)); \
    cv2.imwrite("$(SCENE)", image[..., ::-1])'

# Two processes share the test files; more of them want memory, 2 GB each.
IN_PARALLEL = --numprocesses=2 --dist=loadfile

PY = $(VENV)/bin/python
RUFF = $(VENV)/bin/ruff
INSTALLED = $(VENV)/.installed-$(EXTRA)
LINTER = $(VENV)/.linter-installed
# The CPU and the CUDA build of TensorFlow must not share an environment.
OTHER_EXTRA = $(filter-out $(INSTALLED),$(wildcard $(VENV)/.installed-*))

export TF_CPP_MIN_LOG_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: train test test-all lint format bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

train: $(INSTALLED)
	$(PY) -m data_prep.prepare --dataset=synthetic --data_dir=$(DATA)
	$(PY) -m experiments.train --arm=vgg16_g --dataset=synthetic --preset=smoke \
	    --data_dir=$(DATA) --workdir=$(RUN)
	$(DRAW_A_SCENE)
	$(PY) -m experiments.predict --model=$(RUN)/export --input=$(SCENE) \
	    --output_dir=runs/predictions
	@echo
	@echo "Look at runs/predictions/scene_overlay.png: what the network sees in $(SCENE),"
	@echo "which it was not trained on. The same for your own pictures:"
	@echo "    $(PY) -m experiments.predict --model=$(RUN)/export" \
	    "--input=PHOTO_OR_FOLDER --output_dir=runs/predictions"
	@echo "Curves, panels and the adversary's verdicts:"
	@echo "    $(VENV)/bin/tensorboard --logdir $(RUN)"

test: $(INSTALLED)
	$(PY) -m pytest -m "not slow" $(IN_PARALLEL) --durations=10

test-all: $(INSTALLED)
	$(PY) -m pytest --durations=10

lint: $(LINTER)
	$(RUFF) check .
	$(RUFF) format --check .

format: $(LINTER)
	$(RUFF) check --fix .
	$(RUFF) format .

bench: $(INSTALLED)
	$(PY) -m experiments.benchmark --what=all --json=$(SPEED)

clean:
	rm -rf $(VENV) $(RUN) $(SPEED) $(SCENE) runs/predictions $(DATA)/synthetic
	rm -rf build *.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find ss_gan_tf experiments data_prep tests -name __pycache__ -prune \
	    -exec rm -rf {} +

$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	    2>/dev/null || { echo "ss_gan_tf needs Python 3.10 to 3.13, and $(PYTHON) is" \
	    "$$($(PYTHON) -V 2>/dev/null || echo missing). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "$(PYTHON) cannot make an environment. On Debian and Ubuntu:" \
	    "apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(if $(OTHER_EXTRA),--clear) $(VENV)
	$(PY) -m pip install -e '.[$(EXTRA),test]'
	@touch $@

$(LINTER): $(INSTALLED)
	$(PY) -m pip install -e '.[$(EXTRA),dev]'
	@touch $@
