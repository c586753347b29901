# SPDX-License-Identifier: GPL-3.0-or-later
"""Sandbox Macs: hosts made of Linux namespaces that look like Apple-silicon Macs to whoever logs in over ssh."""
