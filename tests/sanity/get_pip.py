# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test runs in each new virtual environment to install pip, from the package index alone.

It otherwise downloads a script of this name and options from its makers' server. This one starts from the pip that
comes with Python.
"""

from __future__ import annotations

import runpy
import subprocess
import sys

subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
sys.argv = ["pip", "install", *(option for option in sys.argv[1:] if option not in ("--no-setuptools", "--no-wheel"))]
runpy.run_module("pip", run_name="__main__")
