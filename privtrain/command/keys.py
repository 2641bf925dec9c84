"""`privtrain party keys`: keys and certificates of the parties of one study."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privtrain.runtimes.sockets import Transport

WORDS = ["party", "keys"]
"""How the command begins; a study file of this name is given as ./keys."""


@dataclass(frozen=True, kw_only=True)
class KeysArgs:
    """Make an authority for one study, and a key and a certificate for each of its roles.

    Example: privtrain party keys --out keys --roles party-0 party-1 dealer

    Each host gets three files, over a way that nobody else can read or change: the authority's
    certificate, its own certificate, and its own key. Then: privtrain party --keys FOLDER ...
    The authority's key is forgotten: for another party, make new keys for all of them.
    """

    out: Path
    """Folder for the files; must not hold any of them."""
    roles: tuple[str, ...]
    """Names of all parties: party-0, party-1, ... of those with rows, and roles such as dealer."""
    days: int = 365
    """For how many days the certificates are valid."""


def run_keys(args: KeysArgs) -> int:
    """Makes the files and says which of them goes to whom.

    Args:
        args: The command's arguments.

    Returns:
        0; everything else is an error.

    Raises:
        ValueError: If a role is no file name or there twice, or a file is there already.
    """
    from privtrain.core.validate import check_count
    from privtrain.runtimes.certificates import make_credentials, write_credentials

    check_count(days=args.days)
    files = write_credentials(args.out, make_credentials(args.roles, days=args.days))
    for role, paths in files.items():
        print(f"{role}: {' '.join(str(path) for path in paths)}")
    print(
        f"Each host gets the files of its own role only, and no other host its *.key; then remove "
        f"them here. They are valid for {args.days} days."
    )
    return 0


def transport_of(keys: Path | None, role: str, *, launched: bool = False) -> "Transport":
    """How a party's links are protected; standard error says what is and what is not.

    Args:
        keys: Folder with the role's files, or None.
        role: Name of the party.
        launched: Whether the parties meet in a launcher's store, which takes no keys.

    Raises:
        ValueError: If a file is missing or wrong, or others may read the private key.
    """
    from privtrain.runtimes.certificates import read_credentials
    from privtrain.runtimes.sockets import TLS, Plain

    secured = TLS(read_credentials(keys, role)) if keys is not None else None
    said = (
        "connections are neither encrypted nor authenticated; make keys with privtrain party keys, "
        "and give them to every party with --keys"
        if secured is None
        else "links are encrypted and authenticated by mutual TLS 1.3, the rendezvous "
        f"{'of torchrun is not' if launched else 'too'}; channels that an engine opens by itself, "
        "as CrypTen does, are not"
    )
    print(f"{role}: {said}", file=sys.stderr, flush=True)
    return secured or Plain()
