# SPDX-License-Identifier: GPL-3.0-or-later
# `make help` lists what there is. Targets are thin: what they run stands in tools/ and tests/.
MAKEFLAGS += --no-print-directory --silent
.DEFAULT_GOAL := help

# PYTHON=/path/to/python3 chooses the interpreter of a new .venv.
export PYTHON

.PHONY: help
help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: ## what a controller needs, in .venv; enough for real Macs
	tools/setup.sh controller
	echo 'Ready. Put it on the PATH of this shell: . .venv/bin/activate'

.PHONY: demo
demo: ## two sandbox Macs become one LLM service, on this machine (root)
	python3 tools/demo.py --check
	tools/setup.sh sandbox
	.venv/bin/python tools/demo.py

.PHONY: demo-down
demo-down: ## take the demo away
	python3 tools/demo.py --down

.PHONY: test
test: ## everything: lint, sanity, all tests, also those on sandbox Macs (root)
	tools/test.sh

.PHONY: lint
lint: ## style and documentation, of Python, YAML and Ansible content
	tools/setup.sh dev
	tools/lint.sh

.PHONY: format
format: ## bring the Python files into the style that lint asks for
	tools/setup.sh dev
	.venv/bin/ruff check --fix --quiet . || true
	.venv/bin/ruff format .

.PHONY: sanity
sanity: ## ansible-test sanity, on a copy of the checkout
	tools/setup.sh dev
	.venv/bin/python tests/sanity/run.py

.PHONY: unit
unit: ## the tests that need no sandbox
	tools/setup.sh dev
	.venv/bin/pytest tests/unit

.PHONY: bench
bench: ## the cost of an unchanged run on ten sandbox Macs (root)
	tools/setup.sh sandbox
	.venv/bin/python tests/bench/bench_unchanged.py

.PHONY: bench-gateway
bench-gateway: ## what 500 deployments cost a gateway, with the real LiteLLM
	tools/setup.sh dev
	.venv/bin/python tests/bench/bench_gateway.py

.PHONY: bench-guard
bench-guard: ## a slow backend with the queue guard and without, and what the guard costs
	tools/setup.sh dev
	.venv/bin/python tests/bench/bench_guard.py --plot docs/queue-guard.png
	.venv/bin/python tests/bench/bench_guard.py --flapping 600 --load 0.45
	.venv/bin/python tests/bench/bench_guard.py --poll 200

.PHONY: bench-rollout
bench-rollout: ## changes and killed runs on six sandbox Macs under load (root; hours, see its --help for less)
	tools/setup.sh sandbox dev
	.venv/bin/python tests/bench/bench_rollout.py

.PHONY: build
build: ## the collection as an archive, in build/
	tools/setup.sh controller
	.venv/bin/ansible-galaxy collection build --force --output-path build

.PHONY: lock
lock: ## choose the newest allowed version of everything that is installed, and pin it
	tools/setup.sh controller
	tools/lock.sh

.PHONY: clean
clean: ## remove what the targets made in this folder; downloads too
	rm -rf .ansible .cache .venv build .pytest_cache .ruff_cache
