# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for LM Studio's headless daemon and CLI; Python 3.9, standard library only."""
