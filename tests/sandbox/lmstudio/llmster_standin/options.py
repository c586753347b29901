# SPDX-License-Identifier: GPL-3.0-or-later
"""The flag grammar of lms: what is not declared is refused (argparse would triple the start-up time)."""

from __future__ import annotations


class UsageError(Exception):
    """The command line is not one lms accepts."""


def text(value):
    """Accept anything."""
    return value


def whole(least, most=None):
    """Return a check for a whole number between two bounds."""

    def check(value):
        if not value.isascii() or not value.isdigit() or int(value) < least or (most is not None and int(value) > most):
            raise ValueError(
                "must be a whole number from {}{}".format(least, f" to {most}" if most is not None else "")
            )
        return int(value)

    return check


def gpu(value):
    """Accept off, max, or a share from 0 to 1."""
    if value in ("off", "max"):
        return value
    share = float(value)
    if not 0.0 <= share <= 1.0:
        raise ValueError("must be off, max, or a number from 0 to 1")
    return share


def share(value):
    """Accept a number from 0 to 1."""
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError("must be a number from 0 to 1")
    return number


# Flags every command takes, hidden from its help. None = a switch without value.
EVERYWHERE = {"--log-level": text, "--quiet": None, "--verbose": None}
REMOTE = {"--host": text, "--port": whole(1, 65535)}


def parse(arguments, flags, short=None, positional=0, required=0):
    """Return (positional arguments, {flag: value}). Raises UsageError.

    ``flags`` maps each long flag to the check of its value, or to None for a switch; ``short`` maps -x to a long flag.
    """
    known = dict(EVERYWHERE, **flags)
    words, values, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words.extend(rest)
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, given = _split(word, short or {})
        if name not in known:
            raise UsageError(f"error: unknown option '{word}'")
        values[name] = _value(name, given, known[name], rest)
    if len(words) > positional:
        raise UsageError(f"error: too many arguments. Expected {positional} but got {len(words)}.")
    if len(words) < required:
        raise UsageError("error: missing required argument")
    return words, values


def _split(word, short):
    """Return (long flag, value glued to it or None): --ttl=5 and -c4096 carry theirs."""
    if word.startswith("--"):
        name, mark, given = word.partition("=")
        return name, given if mark else None
    name = short.get(word[:2])
    return (name, word[2:] or None) if name else (word, None)


def _value(name, given, check, rest):
    if check is None:
        if given is not None:
            raise UsageError(f"error: option '{name}' takes no argument")
        return True
    if given is None:
        if not rest:
            raise UsageError(f"error: option '{name} <value>' argument missing")
        given = rest.pop(0)
    try:
        return check(given)
    except ValueError as error:
        raise UsageError(f"error: option '{name}' argument '{given}' is invalid. {error}") from None
