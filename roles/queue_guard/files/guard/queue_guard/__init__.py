# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue guard: pauses a deployment whose queue grows too long, and takes it back."""
