# make serve   serves the embedded bundle    make test   runs every test
# Both set up .venv by themselves, with plain pip; a second start finds it ready.

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROTOS := protos/realce/v1/classifier.proto
IMAGE ?= realce
TARGET ?= cpu
OVERLAY ?= cpu
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test lint types protos protos-check train image kustomize clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: .venv/serve  ## serve the embedded bundle; ARGS="--grpc 0.0.0.0:50051" for more
	@exec $(BIN)/realce serve $(ARGS)

test: .venv/dev  ## run every test; ARGS="-k scheduler" for some
	@exec $(BIN)/python -m pytest $(ARGS)

train: .venv/train  ## train; ARGS="reviews.csv --out bundle"
	@exec $(BIN)/realce-train fit $(ARGS)

lint: .venv/dev  ## style and import rules
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-cache

types: .venv/dev  ## static types
	@$(BIN)/mypy

protos: .venv/dev  ## generate the protocol's code anew
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. \
	  --proto_path="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

protos-check: .venv/dev  ## is the generated code what the protocol says?
	@$(BIN)/python -m pytest --quiet tests/test_protos.py

image:  ## build the container image; TARGET=gpu or training for the others
	docker build --file deploy/Dockerfile --target $(TARGET) --tag $(IMAGE):$(TARGET) .

kustomize:  ## render the manifests of an overlay; OVERLAY=gpu or training for the others
	@kubectl kustomize deploy/kubernetes/overlays/$(OVERLAY)

clean:  ## remove what was set up
	rm -rf .venv

# pip comes last into a new environment: without it the environment is not whole.
.venv/bin/pip:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec $$python -m venv .venv; \
	  fi; \
	done; \
	echo "Realce needs Python 3.11 or later and found none; name one: make serve PYTHON=/path/to/python3" >&2; \
	exit 1

.venv/serve: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Setting up .venv for serving"
	@$(PIP) --editable '.[cpu]'
	@touch $@

.venv/train: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Setting up .venv for training; torch is large"
	@$(PIP) --editable '.[cpu,train,tune]'
	@touch .venv/serve $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Setting up .venv for training and tests; torch is large"
	@$(PIP) --editable '.[cpu,train,dev]'
	@touch .venv/serve .venv/train $@
