# Everything works on a fresh machine with Python 3.11 or newer and make; the environment goes to .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
FOLDS ?= 0 1 2 3 4
MINUTES ?= 3.4
CT_MINUTES ?= 4
COMPARE_STEPS ?= 200
COMPARE_CT_STEPS ?= 600
COMPARE_SEEDS ?= 0,1
PROMPT_STEPS ?= 100
PROMPT_SEEDS ?= 0 1
SLICE_STEPS ?= 400
SLICE_TASK_STEPS ?= 150
SLICE_PAIR_STEPS ?= 800
SLICE_LORA_STEPS ?= 1500
SHOTS ?= 1,4,16
DRAWS ?= 2
QUERIES ?= 12
SLURM_PACKAGES := munge slurmctld slurmd slurm-client
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-cluster lint format base real compare transfer learning-curves random-start prompts slices clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## the main job on generated phantoms: about four minutes after installation
	rm -rf runs/demo
	$(BIN)/adaptmedseg demo --out runs/demo

test: $(VENV)/installed-dev  ## the tests that need minutes, not more
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-slow: $(VENV)/installed-dev  ## the released model size and other slow checks
	$(BIN)/pytest -m slow

test-cluster: $(VENV)/installed-dev  ## jobs on a real Slurm that is started on this machine; as root, Debian or Ubuntu
	@if ! command -v slurmctld > /dev/null; then \
		if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
				$(SLURM_PACKAGES) > /dev/null || echo "$(SLURM_PACKAGES): could not be installed"; \
		else \
			echo "Slurm is missing, and installed by this as root on Debian and Ubuntu alone ($(SLURM_PACKAGES))"; \
		fi; \
	fi
	$(BIN)/pytest -m cluster -rs

lint: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

base: $(VENV)/installed  ## train the small base anew on CT phantoms: hours on two cores
	rm -rf runs/base
	$(BIN)/python -m adaptmedseg.phantoms --out runs/base/phantoms --count 600 --modality CT --seed 1000 --workers 2
	$(BIN)/adaptmedseg prepare runs/base/phantoms --out runs/base/prepared --name ct_phantoms --label 1+2=prostate \
		--test-fraction 0 --val-fraction 0.04 --workers 2
	$(BIN)/adaptmedseg train base_small --data runs/base/prepared --out runs/base/run
	$(BIN)/python -m adaptmedseg.checkpoints.ship runs/base/run

# Real volumes: the base trained on with head-and-neck CT, with phantoms among it lest it forget the pelvis, then adapted
# to prostate MRI, five folds, a U-Net beside it.
real: $(VENV)/installed
	rm -rf runs/real
	$(BIN)/adaptmedseg prepare $(DATA)/openkbp-ct --out runs/real/openkbp --name openkbp --modality CT \
		--label 1=brainstem --label "2=spinal cord" --label "3=right parotid gland" --label "4=left parotid gland" \
		--label 5=esophagus --label 6=larynx --label 7=mandible --test-fraction 0.3 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/promise12/training_data.zip --out runs/real/promise12 --name promise12 \
		--modality "T2 MRI" --label 1=prostate --folds 5
	$(BIN)/python -m adaptmedseg.phantoms --out runs/real/phantoms --count 48 --modality CT --seed 9000 --workers 2
	$(BIN)/adaptmedseg prepare runs/real/phantoms --out runs/real/rehearsal --name ct_phantoms --label 1+2=prostate \
		--test-fraction 0 --val-fraction 0 --workers 2
	$(BIN)/adaptmedseg train openkbp --data runs/real/openkbp --data runs/real/rehearsal --out runs/real/ct_base \
		budget.minutes=$(CT_MINUTES)
	for fold in $(FOLDS); do \
		$(BIN)/adaptmedseg train prostate --base runs/real/ct_base --data runs/real/promise12 --fold $$fold \
			--out runs/real/adapted$$fold budget.minutes=$(MINUTES) && \
		$(BIN)/adaptmedseg train unet --data runs/real/promise12 --fold $$fold \
			--out runs/real/unet$$fold budget.minutes=$(MINUTES) && \
		$(BIN)/adaptmedseg evaluate --model base=runs/real/ct_base --model U-Net=runs/real/unet$$fold \
			--model adapted=runs/real/adapted$$fold --data runs/real/promise12 --fold $$fold --out runs/real/report \
			--append || exit 1; \
	done
	$(BIN)/adaptmedseg evaluate --model base=runs/real/ct_base --model adapted=runs/real/adapted$(firstword $(FOLDS)) \
		--data runs/real/openkbp --out runs/real/report --append
	$(BIN)/adaptmedseg report runs/real/report --title "From head-and-neck CT to prostate MRI" --base base --adapted adapted \
		--run adapted=runs/real/adapted$(firstword $(FOLDS)) --run U-Net=runs/real/unet$(firstword $(FOLDS)) --run "CT base=runs/real/ct_base"

# All strategies on real volumes: a base of head-and-neck CT learns prostate, left atrium, ventricles and hippocampus on MRI.
# A budget of steps, so that a busy machine changes nothing: about an hour and ten minutes on two idle cores. Stopped and
# started again it goes on where it was.
compare: $(VENV)/installed runs/compare/ct_base
	$(BIN)/adaptmedseg compare --base runs/compare/ct_base --old runs/compare/openkbp \
		--data runs/compare/promise12 --data runs/compare/left_atrium --data runs/compare/acdc --data runs/compare/hippocampus \
		--seeds $(COMPARE_SEEDS) --steps $(COMPARE_STEPS) --reference gated \
		--out runs/compare/strategies

# One kind of prompt a step, drawn from six, against all six: the same steps, prostate on MRI, asked in all ways afterwards.
EVEN := prompts.text=0.16666667 prompts.text_box=0.16666667 prompts.text_points=0.16666667 \
	prompts.box=0.16666667 prompts.points=0.16666666 prompts.box_points=0.16666666
prompts: $(VENV)/installed runs/compare/ct_base
	rm -rf runs/prompts
	for seed in $(PROMPT_SEEDS); do for kinds in 1 6; do \
		$(BIN)/adaptmedseg train prostate --base runs/compare/ct_base --data runs/compare/promise12 --seed $$seed \
			--out runs/prompts/kinds$$kinds-seed$$seed budget.minutes=null budget.steps=$(PROMPT_STEPS) batch_size=1 \
			prompts.kinds=$$kinds $(EVEN) && \
		$(BIN)/adaptmedseg evaluate --model kinds$$kinds-seed$$seed=runs/prompts/kinds$$kinds-seed$$seed \
			--data runs/compare/promise12 --study prompts --out runs/prompts/study --append || exit 1; \
	done; done

# What the comparison says of transfer (docs/transfer.md), against the U-Net from scratch; trains nothing itself.
transfer: compare
	$(BIN)/adaptmedseg transfer runs/compare/strategies $(wildcard runs/compare/curves) --reference unet --out runs/compare/transfer

# Few patients: the gated strategy and the U-Net, the same budget; about 40 minutes on two idle cores.
learning-curves: $(VENV)/installed runs/compare/ct_base
	$(BIN)/adaptmedseg compare gated unet --base runs/compare/ct_base --old runs/compare/openkbp \
		--data runs/compare/promise12 --data runs/compare/left_atrium --data runs/compare/acdc --data runs/compare/hippocampus \
		--seeds $(COMPARE_SEEDS) --steps $(COMPARE_STEPS) --patients 1,2,5 --out runs/compare/curves

# What is the base's own share? The same network from random weights, all of them trained on the same MRI.
random-start: $(VENV)/installed runs/compare/ct_base
	$(BIN)/adaptmedseg compare full --base fresh:small --old runs/compare/openkbp \
		--data runs/compare/promise12 --data runs/compare/left_atrium --data runs/compare/acdc --data runs/compare/hippocampus \
		--seeds $(COMPARE_SEEDS) --steps $(COMPARE_STEPS) --out runs/compare/random

runs/compare/ct_base:
	rm -rf runs/compare
	$(BIN)/adaptmedseg prepare $(DATA)/openkbp-ct --out runs/compare/openkbp --name openkbp --modality CT \
		--label 1=brainstem --label "2=spinal cord" --label "3=right parotid gland" --label "4=left parotid gland" \
		--label 5=esophagus --label 6=larynx --label 7=mandible --test-fraction 0.3 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/promise12/training_data.zip --out runs/compare/promise12 --name promise12 \
		--modality "T2 MRI" --label 1=prostate --test-fraction 0.4 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/left-atrium-mr --out runs/compare/left_atrium --name left_atrium \
		--modality "LGE MRI" --label "1=left atrium" --test-fraction 0.375 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/acdc-mr --out runs/compare/acdc --name acdc --modality "cine MRI" \
		--label "1=right ventricle" --label 2=myocardium --label "3=left ventricle" --patient-pattern "patient\d+" \
		--test-fraction 0.4 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/hippocampus-mr --out runs/compare/hippocampus --name hippocampus --modality "T1 MRI" \
		--label "1=anterior hippocampus" --label "2=posterior hippocampus" --test-fraction 0.2 --val-fraction 0
	$(BIN)/python -m adaptmedseg.phantoms --out runs/compare/phantoms --count 48 --modality CT --seed 9000 --workers 2
	$(BIN)/adaptmedseg prepare runs/compare/phantoms --out runs/compare/rehearsal --name ct_phantoms --label 1+2=prostate \
		--test-fraction 0 --val-fraction 0 --workers 2
	$(BIN)/adaptmedseg train openkbp --data runs/compare/openkbp --data runs/compare/rehearsal --out runs/compare/ct_base \
		budget.minutes=null budget.steps=$(COMPARE_CT_STEPS)

# The 2D path on real slices and pictures: a small SAM of cardiac MRI learns other tasks from support sets alone; LoRA
# finds infrared targets; several organs an image are trained at once or one by one; one, two or three structures are learned.
SLICE_SETS := left_atrium retina abdomen hippocampus
ORGANS := liver,spleen,aorta,left kidney
slices: $(VENV)/installed runs/slices/sets
	$(BIN)/adaptmedseg train sam_small --data runs/slices/acdc --out runs/slices/base \
		budget.minutes=null budget.steps=$(SLICE_STEPS) --resume
	for set in $(SLICE_SETS); do \
		names=$$(test $$set = abdomen && echo "--structures=$(ORGANS)"); \
		$(BIN)/adaptmedseg evaluate-slices --model sam=runs/slices/base --data runs/slices/$$set --shots $(SHOTS) \
			--draws $(DRAWS) --limit $(QUERIES) --unet --out runs/slices/supports --append $${names:+"$$names"} || exit 1; \
	done
	$(BIN)/adaptmedseg train 2d/qv_lora --base runs/slices/base --data runs/slices/infrared --out runs/slices/lora \
		budget.minutes=null budget.steps=$(SLICE_LORA_STEPS) --resume structures_per_image=1 optimiser.lr=0.0003
	for ask in "oracle point" "oracle box"; do \
		$(BIN)/adaptmedseg evaluate-slices --model none=runs/slices/base --model "q/v LoRA=runs/slices/lora" \
			--data runs/slices/infrared --ask "$$ask" --out runs/slices/sirst --append || exit 1; \
	done
	for several in 1 2; do \
		$(BIN)/adaptmedseg train 2d/cotraining --base runs/slices/base --data runs/slices/abdomen \
			--out runs/slices/together$$several structures_per_image=$$several optimiser.lr=0.002 \
			budget.minutes=null budget.steps=$(SLICE_PAIR_STEPS) --resume 'data.structures=[liver,spleen,aorta,left kidney]' || exit 1; \
	done
	$(BIN)/adaptmedseg evaluate-slices --model "single prompt=runs/slices/together1" \
		--model "co-training=runs/slices/together2" --model none=runs/slices/base --data runs/slices/abdomen \
		--structures "$(ORGANS)" --ask "oracle box" --out runs/slices/cotraining --append
	number=0; for names in "left ventricle" "left ventricle,myocardium" "left ventricle,myocardium,right ventricle"; do \
		number=$$((number + 1)); \
		$(BIN)/adaptmedseg train sam_small --data runs/slices/acdc --out runs/slices/tasks$$number \
			budget.minutes=null budget.steps=$(SLICE_TASK_STEPS) --resume "data.structures=[$$names]" || exit 1; \
	done
	$(BIN)/adaptmedseg evaluate-slices --model one=runs/slices/tasks1 --model two=runs/slices/tasks2 --model three=runs/slices/tasks3 \
		$(foreach set,$(SLICE_SETS),--data runs/slices/$(set)) --ask "oracle box" --out runs/slices/diversity --append

runs/slices/sets:
	rm -rf runs/slices
	$(BIN)/adaptmedseg prepare $(DATA)/acdc-mr --out runs/slices/volumes/acdc --name acdc --modality "cine MRI" \
		--label "1=right ventricle" --label 2=myocardium --label "3=left ventricle" --patient-pattern "patient\d+" \
		--test-fraction 0.3 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/left-atrium-mr --out runs/slices/volumes/left_atrium --name left_atrium \
		--modality "LGE MRI" --label "1=left atrium" --test-fraction 0.5 --val-fraction 0
	$(BIN)/adaptmedseg prepare $(DATA)/hippocampus-mr --out runs/slices/volumes/hippocampus --name hippocampus \
		--modality "T1 MRI" --label "1=anterior hippocampus" --label "2=posterior hippocampus" \
		--test-fraction 0.4 --val-fraction 0
	$(BIN)/adaptmedseg slices runs/slices/volumes/acdc --out runs/slices/acdc
	$(BIN)/adaptmedseg slices runs/slices/volumes/left_atrium --out runs/slices/left_atrium --every 8 --least 100 --spacing 1.25
	$(BIN)/adaptmedseg slices runs/slices/volumes/hippocampus --out runs/slices/hippocampus --axis sagittal --middle 1
	$(BIN)/adaptmedseg slices $(DATA)/stare --out runs/slices/retina --structures vessel --mask-ending .ah \
		--modality photograph --test-fraction 0.4 --val-fraction 0
	$(BIN)/adaptmedseg slices $(DATA)/btcv-ct-slices --out runs/slices/abdomen --modality CT \
		--patient-pattern "ABD_(\d+)" --test-fraction 0.34 --val-fraction 0
	$(BIN)/adaptmedseg slices $(DATA)/sirst --out runs/slices/infrared --structures target --mask-ending _pixels0 \
		--modality infrared --test-fraction 0.4 --val-fraction 0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
