"""What a user can be told: what cannot be used, and what went wrong while it ran."""


class BundleError(ValueError):
    """A bundle or a request that cannot be used: the message says why, and what is accepted. Exit code 2."""


class EngineFailure(RuntimeError):
    """An engine that failed, or made nothing of use: the message says what to do. Exit code 1."""
