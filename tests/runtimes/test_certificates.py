"""Each role has its own key and certificate, which names it, and its files are its own."""

import pickle
import stat
from pathlib import Path

import pytest

from privtrain.runtimes.certificates import (
    make_credentials,
    read_credentials,
    role_of,
    write_credentials,
)

ROLES = ("party-0", "party-1", "dealer")


def test_each_role_has_its_own_key_under_one_authority() -> None:
    made = make_credentials(ROLES)
    assert tuple(made) == ROLES
    assert [made[role].role for role in ROLES] == list(ROLES)
    assert len({own.key for own in made.values()}) == 3
    assert len({own.certificate for own in made.values()}) == 3
    assert len({own.authority for own in made.values()}) == 1
    assert make_credentials(ROLES)["dealer"].authority != made["dealer"].authority
    assert pickle.loads(pickle.dumps(made["dealer"])) == made["dealer"]


def test_a_key_is_not_printed() -> None:
    own = make_credentials(["dealer"])["dealer"]
    assert "PRIVATE KEY" in own.key
    assert repr(own) == "Credentials(role='dealer')"


def test_certificates_sign_nothing_and_the_authority_names_no_role() -> None:
    from cryptography import x509

    own = make_credentials(["dealer"], days=3)["dealer"]
    certificate = x509.load_pem_x509_certificate(own.certificate.encode())
    authority = x509.load_pem_x509_certificate(own.authority.encode())
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert limits.ca is False
    certificate.verify_directly_issued_by(authority)
    with pytest.raises(x509.ExtensionNotFound):
        authority.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 4


@pytest.mark.parametrize("roles", [[], ["a", "b", "a"]])
def test_roles_are_named_once(roles: list[str]) -> None:
    with pytest.raises(ValueError, match="roles="):
        make_credentials(roles)


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ((("URI", "privtrain:party-1"),), "party-1"),
        ((("URI", "privtrain:a%20bank%20%C3%BC"),), "a bank ü"),
        ((("URI", "privtrain:party-1"), ("URI", "privtrain:dealer")), None),
        ((("DNS", "privtrain:party-1"),), None),
        ((("URI", "other:party-1"),), None),
        ((), None),
    ],
)
def test_a_certificate_names_one_role(names: tuple[tuple[str, str], ...], role: str | None) -> None:
    assert role_of({"subjectAltName": names}) == role


def test_no_certificate_names_none() -> None:
    assert role_of(None) is None
    assert role_of({}) is None


def test_files_are_read_as_they_were_written_and_keys_are_private(tmp_path: Path) -> None:
    made, folder = make_credentials(ROLES), tmp_path / "a" / "keys"
    files = write_credentials(folder, made)
    for role in ROLES:
        assert read_credentials(folder, role) == made[role]
        assert [path.name for path in files[role]] == [
            "authority.pem",
            f"{role}.pem",
            f"{role}.key",
        ]
        assert stat.S_IMODE((folder / f"{role}.key").stat().st_mode) == 0o600
    assert len(list(folder.iterdir())) == 7
    assert not any("PRIVATE" in path.read_text() for path in folder.glob("*.pem"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_credentials(tmp_path, make_credentials(["dealer"]))
    before = (tmp_path / "authority.pem").read_text()
    with pytest.raises(ValueError, match=r"authority.pem is there already"):
        write_credentials(tmp_path, make_credentials(["party-0"]))
    assert (tmp_path / "authority.pem").read_text() == before
    assert not (tmp_path / "party-0.key").exists()


@pytest.mark.parametrize("role", ["", "../dealer", "a/b", ".hidden", "authority"])
def test_a_role_that_is_no_file_name_is_refused(role: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to be a name of letters"):
        write_credentials(tmp_path / "keys", make_credentials([role]))
    assert not (tmp_path / "keys").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write_credentials(tmp_path, make_credentials(["dealer"]))
    (tmp_path / "dealer.key").chmod(0o640)
    with pytest.raises(ValueError, match=r"its mode is 0640: run chmod 600 .*dealer.key"):
        read_credentials(tmp_path, "dealer")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_credentials(tmp_path, make_credentials(["dealer"]))
    with pytest.raises(ValueError, match=r"party-0.pem and party-0.key, as privtrain party keys"):
        read_credentials(tmp_path, "party-0")
