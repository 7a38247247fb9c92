# make demo: install, then train a small ResNeXt on handwritten digits
# make test: install, then run the tests
# make lint: check style;  make slow: the long drills

PYTHON ?= python3

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

.venv/tested: .venv/installed tests/requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@

demo: .venv/installed
	.venv/bin/python main.py -dataset digits -depth 11 -cardinality 4 -baseWidth 8 -save checkpoints/digits

test: .venv/tested
	.venv/bin/python -m pytest -q -n 3 --dist loadfile

slow: .venv/tested
	.venv/bin/python -m pytest -q -m slow -rP -n 2 --dist loadfile -o timeout=3600

lint: .venv/tested
	.venv/bin/python -m pip install --quiet --disable-pip-version-check 'ruff>=0.17,<0.18'
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.PHONY: demo test slow lint
