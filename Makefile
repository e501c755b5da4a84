# make demo: install, run the pipeline on the built-in task, two stages at once, print its table.
# make test: install the test tools, then lint, formatting, types and tests.
# make test-transformers: transformers' own common tests on the student, beside plain models; ALL=1 for all families.
#                         They come out of its sdist, from the package index.
# make ablation: the variants with several seeds, compared on test data; make sweep: settings, on validation data.
#                JOBS=2 trains two models at once; on two cores, with OMP_NUM_THREADS=1.
# make bench: measure time, disk and memory, and print them next to their targets; takes minutes.
# make gpu: run what needs a GPU; PARTS="label train" for some of it, OUT=FOLDER for its results.
#           It needs torch and transformers, no .venv and no network: before, on a machine that has one,
# make gpu-pack: writes the packages that may be missing, ENCODER=FOLDER and DATA="FOLDER FOLDER", to PACK=gpu-pack.

PYTHON ?= python3
JOBS ?= 1
PACK ?= gpu-pack
OUT ?= gpu-results
SHELL := bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo all-stages test test-transformers stage-one all-teachers ablation ablation-parameters all-variants sweep \
	all-settings bench gpu gpu-pack

demo: .venv/installed
	@dvc status --quiet || $(MAKE) --no-print-directory all-stages || dvc repro
	@echo
	@cat artifacts/report/accuracy.md
	@echo
	@echo "The report: $(CURDIR)/artifacts/report/report.html"

# What `dvc repro` does, with two stages at once where they do not wait for each other. The models are small: one
# thread each is quickest, and the numbers are the same on any number of cores. Where something fails, a plain
# `dvc repro` follows, which says what.
all-stages: export OMP_NUM_THREADS := 1
all-stages:
	@echo "Four teachers, their soft labels, a student and its baseline: four to nine minutes on two cores."
	@dvc repro --quiet prepare
	@set -o pipefail; { echo student-pretrain; echo teacher-silver; \
		dvc stage list --name-only | sed -n 's/^teacher-label\(@.*\)/teacher-finetune\1 &/p'; } | \
		$(call side-by-side,2,.,--quiet)
	@set -o pipefail; printf '%s\n' student-distill student-baseline | $(call side-by-side,2,.,--quiet)
	@dvc repro --quiet

# Bars side by side need a line each: tqdm takes its number from the environment, where xargs can number what it
# starts. A line of results takes the place of the bar on whose line the cursor is.
side-by-side = xargs -P $(1) -L 1 $(slot) dvc --wait-for-lock --cd $(2) repro --single-item $(3) $(in-place)
ifneq ($(shell xargs --process-slot-var=X true < /dev/null 2> /dev/null && test -t 2 && echo yes),)
slot = --process-slot-var=TQDM_POSITION
in-place = | sed -u 's/^/\r\x1b[K/'
endif

test: .venv/installed-test
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -m '' --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-transformers: .venv/installed-test
	python tests/common/run_common.py $(if $(ALL),--all)

# DVC runs one stage at a time, but several of it may run at once, each with a stage of its own.
ifeq ($(JOBS),1)
each = dvc --cd $(1) repro --single-item $(2)
else
each = set -o pipefail; dvc --cd $(1) stage list --name-only | grep '^$(2)@' | \
	$(call side-by-side,$(JOBS),$(1))
endif
up-to-date = dvc --cd $(1) status --quiet --with-deps $(2)

stage-one: .venv/installed
	@$(call up-to-date,.,teacher-label teacher-silver) || $(MAKE) --no-print-directory all-teachers

all-teachers:
	dvc repro prepare
	$(call each,.,teacher-finetune)
	$(call each,.,teacher-label)
	dvc repro --single-item teacher-silver

# DVC reads four keys of section ablation, and knows no defaults: say so before the teachers train.
ablation-parameters: .venv/installed
	@dvc --cd ablation stage list --name-only > /dev/null || \
		{ echo "error: add or mend the keys of section ablation in params.yaml, as docs/ablation.md shows" >&2; exit 1; }

ablation: ablation-parameters stage-one
	@$(call up-to-date,ablation,compare) || $(MAKE) --no-print-directory all-variants
	@echo
	@cat ablation/artifacts/test.md

all-variants:
	dvc --cd ablation repro plan
	$(call each,ablation,pretrain)
	$(call each,ablation,train)
	dvc --cd ablation repro compare

sweep: ablation-parameters stage-one
	@$(call up-to-date,ablation,compare-sweep) || $(MAKE) --no-print-directory all-settings
	@echo
	@cat ablation/artifacts/sweep.md

all-settings:
	dvc --cd ablation repro plan
	set -o pipefail; dvc --cd ablation stage list --name-only | sed -n 's/^train-sweep@.*-/pretrain@/p' | sort -u | \
		$(call side-by-side,$(JOBS),ablation)
	$(call each,ablation,train-sweep)
	dvc --cd ablation repro compare-sweep

bench: .venv/installed-test
	@set -e; for script in $(filter-out %/measure.py,$(wildcard tests/benchmarks/*.py)); do \
		PYTHONPATH=.:tests python $$script; \
	done

gpu-pack: .venv/installed-test
	python tests/gpu/pack.py $(PACK) $(if $(ENCODER),--encoder $(ENCODER)) $(DATA:%=--data %)

gpu:
	$(PYTHON) tests/gpu/run.py --pack $(PACK) --to $(OUT) $(if $(TINY),--tiny) $(PARTS)

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv, which takes some minutes the first time"
	$(PYTHON) -m venv .venv
	pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
