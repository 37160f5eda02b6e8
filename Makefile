# The same targets for a newcomer and for CI. Everything lives in .venv and .tools, made on first use.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= $(BIN)/python
BUF := .tools/node_modules/.bin/buf
PROTOS = $(shell cd proto && find graft -name '*.proto' | sort)
SERVICE_PROTOS = $(shell cd proto && find graft -name '*_service.proto' | sort)
CODE := sdk services tests bench examples

IMAGES ?= ghcr.io/graft-dev
TAG ?= 0.1.0
ACCELERATOR ?= cpu
IMAGE_registry := services/registry
IMAGE_trainer := services/trainer
IMAGE_worker := services/trainer/run
IMAGE_inference := services/inference

.PHONY: help install reinstall demo test test-again chaos soak test-gpu test-k8s bench-gpu lint format proto check-proto docs bench lock promtool images k8s-golden clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## Make the virtual environment (CPU)

$(VENV)/.installed: requirements/cpu.lock requirements/dev.lock requirements/install.sh pyproject.toml
	requirements/install.sh "$(PYTHON)" "$(VENV)"
	touch $@

reinstall:  ## Install again into the virtual environment
	rm -f $(VENV)/.installed
	$(MAKE) install

demo: install  ## Train two adapters, serve both, swap one under load (2 to 4 minutes)
	$(BIN)/python -m examples.demo

# Whole files go to the processes, for the fixtures of their modules.
test: install  ## Run all tests, with the real engine and the real trainer
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-again: install  ## Say of up to three tests that failed in the last `make test` whether they fail alone, too
	$(BIN)/python -m tests.support.again

chaos: install  ## Stock vLLM and ours, side by side, under bad adapters; writes out/chaos.json (5 minutes)
	GRAFT_TEST_COMPILED=1 $(BIN)/python -m pytest -q tests/faults/chaos -m 'not soak' --timeout 900

soak: install  ## The long forms of random and slow tests (about an hour)
	GRAFT_TEST_COMPILED=1 $(BIN)/python -m pytest -m soak --timeout 3600

# A GPU host may have no network and bring its own Python with torch for CUDA: make test-gpu GPU_PYTHON=python3
test-gpu:  ## What must hold on a CUDA device, on random weights; fails where there is none
	PYTHONPATH=sdk:. $(GPU_PYTHON) -m pytest -m gpu tests/gpu --timeout 900

# GRAFT_TEST_K8S_IMAGES=HOST/PATH, _TAG, _CONTEXT, _OVERLAY, _NAMESPACE, _TIMEOUT_S and _KEEP=1: see docs/operations.md
test-k8s: install  ## The demo's path on the cluster that KUBECONFIG names, in a namespace that is removed after
	$(BIN)/python -m pytest -m k8s tests/k8s --timeout 7200

lint: install $(BUF)  ## ruff, mypy --strict, buf lint
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BUF) lint

format: install  ## Let ruff mend what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

$(BUF):
	npm install --no-save --no-audit --no-fund --prefix .tools @bufbuild/buf@1.75.0

proto: install  ## Generate the stubs in sdk/graft from proto/
	rm -rf build/stubs && mkdir -p build/stubs
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/stubs --mypy_out=quiet:build/stubs $(PROTOS)
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=build/stubs --mypy_grpc_out=quiet:build/stubs $(SERVICE_PROTOS)
	cd build/stubs && find . -name '*_pb2*' -exec cp --parents {} ../../sdk \;
	find sdk/graft -name '*_pb2*.py*' -not -path '*/__pycache__/*' | while read -r file; do [ -e "build/stubs/$${file#sdk/}" ] || rm "$$file"; done
	find sdk/graft -type d -name v1 -exec touch {}/__init__.py {}/../__init__.py \;

check-proto: proto  ## Fail when the committed stubs are not what proto/ says
	@test -z "$$(git status --porcelain proto 'sdk/graft/*_pb2*')" || { git status --porcelain proto 'sdk/graft/*_pb2*'; echo "The stubs differ from proto/: run 'make proto' and commit."; exit 1; }

docs: install  ## Write docs/methods.md again from the code
	$(BIN)/python -m services.trainer.methods.table

bench: install  ## Ours beside its peers, in one run; writes out/bench/*.json
	$(BIN)/python -m bench

promtool: .tools/promtool  ## What checks the alert rules, from Debian's package prometheus

.tools/promtool:
	mkdir -p .tools/prometheus
	cd .tools/prometheus && apt-get download prometheus && dpkg -x prometheus_*.deb .
	cp .tools/prometheus/usr/bin/promtool $@

bench-gpu:  ## Training on a CUDA device beside its peers; writes out/bench/gpu-*.json
	PYTHONPATH=sdk:. $(GPU_PYTHON) -m bench.gpu

lock: install  ## Write requirements/*.lock again from what is installed
	$(BIN)/python requirements/lock.py
	$(BIN)/python requirements/images.py

images: image-registry image-trainer image-worker image-inference  ## Build every image: IMAGES=... TAG=... ACCELERATOR=cpu|gpu

image-%:
	docker build -f $(IMAGE_$*)/Dockerfile --build-arg ACCELERATOR=$(ACCELERATOR) $(if $(PIP_INDEX_URL),--build-arg PIP_INDEX_URL=$(PIP_INDEX_URL)) -t $(IMAGES)/$*:$(TAG) .

k8s-golden: install  ## Write again what deploy/k8s renders to, for review
	$(BIN)/python -m tests.support.k8s.golden

clean:  ## Remove what was made here, except the virtual environment
	rm -rf out build .graft .mypy_cache .ruff_cache .pytest_cache
