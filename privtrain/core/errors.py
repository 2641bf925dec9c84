"""The errors of privtrain.

```text
PrivtrainError
├── PrivacyError               a promise would be broken
│   ├── BudgetExceededError    not one release fits the budget, or one was not paid for
│   └── UnsoundReleaseError    the combination promises what it cannot keep
├── ProtocolError              parties did not follow the protocol
│   ├── TamperedShareError     a share was altered on its way
│   └── PartyLostError         a party died, froze or became unreachable
├── DataError                  a data set cannot be used as it is
└── UnsupportedError           a sound combination that is not available, or a missing package
    └── NotApplicableError     an attack says nothing about this run, for one of few reasons
```

Wrong arguments raise `ValueError` with the argument's name, its value and its bound.
"""

from enum import StrEnum


class PrivtrainError(Exception):
    """Root of all errors that privtrain raises on purpose, wrong arguments aside."""


class PrivacyError(PrivtrainError):
    """A privacy promise would be broken."""


class BudgetExceededError(PrivacyError):
    """Not one release fits the budget, or a release was made without being paid for."""


class UnsoundReleaseError(PrivacyError):
    """The combination promises something that it cannot keep."""


class ProtocolError(PrivtrainError):
    """The parties did not follow the protocol."""


class TamperedShareError(ProtocolError):
    """A share was altered between its owner and its reader."""


class PartyLostError(ProtocolError):
    """A party died, froze or became unreachable.

    Args:
        message: What happened.
        party: The name of the lost party, or of the first one.
        failed: Whether it is there, and its own code, such as a model or a loss, raised an error:
            no exchange goes on without it.
    """

    def __init__(self, message: str, party: str = "", *, failed: bool = False) -> None:
        super().__init__(message)
        self.party = party
        self.failed = failed


# Also a ValueError: to the caller, a table that cannot be used is a wrong argument.
class DataError(PrivtrainError, ValueError):
    """A data set or a file cannot be used as it is."""


class UnsupportedError(PrivtrainError):
    """A sound request that is not available here, or needs a package that is missing."""


class Reason(StrEnum):
    """Why an attack says nothing about a run: all reasons that there are."""

    NO_SHADOWS = "no shadow models"
    NO_MESSAGES = "no such messages"
    NO_TENSORS = "messages not kept"
    NOT_KEPT = "not kept for audits"
    NO_WEIGHTS = "no weights to read"
    OTHER_MODEL = "a model of another kind"
    NO_CLASSES = "no classes"
    NO_CLIENTS = "no clients"
    NO_CANARIES = "no canaries"
    NO_POPULATION = "no population rows"
    NO_REAL_INPUTS = "no real-valued inputs"
    NOBODY = "nobody in that place"
    KNOWS_ALL = "holds all rows"
    OTHER_VIEW = "another observer's"


# Also a ValueError: whoever asks for the one attack gave a wrong argument.
class NotApplicableError(UnsupportedError, ValueError):
    """An attack says nothing about this run, and that is no fault of either.

    Args:
        message: The whole sentence, with what would help.
        reason: Which of the reasons it is.
    """

    def __init__(self, message: str, reason: Reason = Reason.OTHER_VIEW) -> None:
        super().__init__(message)
        self.reason = reason


READS_ROWS = "Unprotected: that this is refused tells of private rows."
"""Ends the message of a refusal that was not decided on public figures alone."""
