"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A value, path or file that cannot be used; raised before any work starts.

    The message names the value, what is accepted and what to do. The command line prints it and exits with 2.
    """
