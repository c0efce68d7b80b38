"""The one error that is the user's to mend, and how an error of many processes is told once."""

from typing import TypeVar

AnyError = TypeVar("AnyError", bound=Exception)
EVERYWHERE = "every process raises this"


class UserError(Exception):
    """A value, path or file that cannot be used; raised before any work starts.

    The message names the value, what is accepted and what to do. The command line prints it and exits with 2. It is not
    a `ValueError`: a parser of the command line would catch one and dress it up.
    """


def everywhere(error: AnyError) -> AnyError:
    """Note on an error that all processes raise it, in these or similar words, so that one of them prints it."""
    error.add_note(EVERYWHERE)
    return error
