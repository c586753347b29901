# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sandbox Mac pretends to be: read by launchd and by the stand-ins for macOS commands."""
