# make serve   serves the embedded bundle    make test   runs every test
# Both set up .venv by themselves, with plain pip; a second start finds it ready.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
IMAGE ?= realce
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve test lint types protos image kustomize train clean

help:  ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: .venv/serve  ## serve the embedded bundle; ARGS="--grpc 0.0.0.0:50051" for more
	@exec $(BIN)/realce serve $(ARGS)

test: .venv/dev  ## run every test; ARGS="-k scheduler" for some
	@$(BIN)/python -m pytest $(ARGS)

train: .venv/dev  ## train; ARGS="reviews.csv --out bundle"
	@exec $(BIN)/realce-train fit $(ARGS)

lint: .venv/dev  ## style and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: .venv/dev  ## static types
	@$(BIN)/mypy

protos: .venv/dev  ## generate the protocol's code anew
	@$(BIN)/python -m grpc_tools.protoc -I. -I$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  --python_out=. --pyi_out=. --grpc_python_out=. protos/realce/v1/classifier.proto

image:  ## build the container image; TARGET=gpu for the other
	docker build --file deploy/Dockerfile --target $(or $(TARGET),cpu) --tag $(IMAGE):$(or $(TARGET),cpu) .

kustomize:  ## render the manifests of an overlay; OVERLAY=gpu for another
	@kubectl kustomize deploy/kubernetes/overlays/$(or $(OVERLAY),cpu)

clean:  ## remove what was set up
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Realce needs Python 3.11 or later; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/serve: .venv/bin/python pyproject.toml constraints.txt
	@echo "Setting up .venv for serving"
	@$(PIP) --editable '.[cpu]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Setting up .venv for training and tests"
	@$(PIP) --editable '.[cpu,train,dev]'
	@touch $@ .venv/serve
