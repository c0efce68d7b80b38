"""The one error that is the user's to mend."""


class UserError(Exception):
    """A value, path or file that cannot be used; raised before any work starts.

    The message names the value, what is accepted and what to do. The command line prints it and exits with 2. It is not
    a `ValueError`: a parser of the command line would catch one and dress it up.
    """
