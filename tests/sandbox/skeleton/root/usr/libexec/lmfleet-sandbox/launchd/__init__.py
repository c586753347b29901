# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for launchd: process 1 of a sandbox Mac."""
