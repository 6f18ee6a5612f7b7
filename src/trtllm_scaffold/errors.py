"""The errors a user may meet: what is wrong, where it was read, what to do, and the exit code."""

from __future__ import annotations


class ScaffoldError(Exception):
    """Base of every error that the command line prints as one line, without a traceback.

    Args:
        message: What is wrong. Quotes both values where two disagree.
        where: The file, key or option it was read from.
        hint: What the user can do about it.
    """

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"(read from {self.where})")
        if self.hint:
            parts.append(f"-> {self.hint}")
        return " ".join(parts)


class CheckFailed(ScaffoldError):
    """A check or a proof failed: the port is wrong, or is not proven."""

    kind = "check_failed"
    exit_code = 1


class UsageError(ScaffoldError):
    """The command line asks for something that makes no sense."""

    kind = "usage"
    exit_code = 2


class InputError(ScaffoldError):
    """An input is unreadable, inconsistent or hostile."""

    kind = "input"
    exit_code = 3


class Refused(ScaffoldError):
    """The model cannot be expressed: names the axis, the evidence, and what works instead."""

    kind = "refused"
    exit_code = 4

    def __init__(self, axis: str, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(f"{axis}: {message}", where=where, hint=hint)
        self.axis = axis


class EnvironmentProblem(ScaffoldError):
    """Something this machine lacks: a package, git, the network."""

    kind = "environment"
    exit_code = 5


class UpdateConflict(ScaffoldError):
    """An update left conflicts, or would delete files that their owner edited."""

    kind = "conflict"
    exit_code = 6
