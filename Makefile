# Each target sets up what it needs: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/tested.txt
BIN := $(VENV)/bin
CORES := $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')
BACKBONE := .cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo demo-chat demo-teach test test-device test-serving test-window test-window-short soak quality style docs bench clean

demo: $(VENV)/installed $(BACKBONE)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 \
	    $(BIN)/accelerate launch run_prompt_tuning.py examples/complaints.yaml
	$(BIN)/python examples/show_results.py outputs/complaints

demo-chat: $(VENV)/installed $(BACKBONE)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 \
	    $(BIN)/accelerate launch run_prompt_tuning.py examples/bicycle_chats.yaml
	HF_HUB_OFFLINE=1 $(BIN)/python examples/ask.py outputs/bicycle_chats "My front wheel makes a noise when I brake."

demo-teach: $(VENV)/installed $(BACKBONE)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 \
	    $(BIN)/accelerate launch run_prompt_tuning.py examples/teach.yaml
	HF_HUB_OFFLINE=1 $(BIN)/python examples/compare_teacher.py outputs/teach examples/teaching/system.txt \
	    "I feel lonely in the evenings."

# A file's tests stay together: some share what took long to make.
test: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

# Trains the demo's prompt in each precision on this machine's accelerator, and compares it with the CPU.
test-device: $(VENV)/installed $(BACKBONE)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/sessions/on_device.py

# Prompts are trained, exported and served by llama.cpp and transformers. It needs a C++ compiler, and the first time
# half an hour or more; the servers are kept in the user's cache. PROMPTS=FOLDER keeps the prompts, too.
test-serving: $(VENV)/installed $(BACKBONE)
	$(BIN)/python -m tools.servers
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 PROMPTS=$(PROMPTS) \
	    $(BIN)/python -m pytest --capture no tests/sessions/real_servers.py

# The suite in an environment for each set of versions of constraints/, in the user's cache; docs/window.json and the
# table of docs/reliability.md say what passed. SETS="axolotl newest" runs these; TESTS=FILES runs a part; AGAIN=1 runs
# what failed in the last run.
test-window:
	$(PYTHON) -m tools.window $(SETS) $(if $(TESTS),--tests $(TESTS)) $(if $(AGAIN),--again)

# A part of the suite, at both ends of the window.
test-window-short:
	$(PYTHON) -m tools.window oldest newest --short --limit 15

# The long form of what `test` tries a little: 10,000 drawn calls beside the bare backbone; 30 deaths of a run and what
# each of them left; 10,000 data files, most of them damaged.
soak: $(VENV)/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance --cases 10000 --processes $(CORES)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.sessions.soak_rows --files 10000
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.sessions.soak_interruption --kills 30

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cp run_prompt_tuning.py hf_prompt_tuning/cli/train.py

# The site, in build/site; a warning (a broken link, a docstring that names no argument) is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Speed; with DATA, a folder of the files that benchmarks/README.md names, on its tweets, and learning too.
bench: $(VENV)/installed $(BACKBONE)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py \
	    $(if $(DATA),--data $(DATA))
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/inference.py \
	    $(if $(DATA),--data $(DATA))
	$(if $(DATA),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(CORES)} HF_HUB_OFFLINE=1 \
	    $(BIN)/python benchmarks/raft_folds.py --data $(DATA))

$(VENV)/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	    $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	touch $@

$(BACKBONE): | $(VENV)/installed
	$(BIN)/python examples/get_backbone.py $(dir $@)

clean:
	rm -rf $(VENV) .cache outputs build *.egg-info
