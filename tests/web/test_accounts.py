"""ugc_jax.web.accounts: names, passwords, roles, sessions."""

import pytest
import sqlalchemy as sa

from ugc_jax.errors import UserError
from ugc_jax.web import accounts
from ugc_jax.web.accounts import Accounts
from ugc_jax.web.database import Database

PASSWORD = "correct horse battery"


@pytest.fixture
def database(tmp_path):
    made = Database(str(tmp_path / "accounts.sqlite"), accounts.METADATA)
    yield made
    made.close()


def test_a_password_is_kept_as_argon2id_and_a_token_as_a_hash(database, tmp_path):
    people = Accounts(database, ("owner",))
    account = people.add("anna", PASSWORD, "owner")
    token = people.log_in(account)
    with database.read() as connection:
        (row,) = connection.execute(sa.text("SELECT * FROM accounts"))
        (session,) = connection.execute(sa.text("SELECT * FROM sessions"))
    assert row.password.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert token not in str(session)
    assert people.check("anna", PASSWORD) == account
    for name, password in (("anna", PASSWORD + "x"), ("anna", ""), ("bert", PASSWORD)):
        assert people.check(name, password) is None


@pytest.mark.parametrize(
    ("name", "password", "role", "words"),
    [
        ("", PASSWORD, "owner", "not a name"),
        ("<b>", PASSWORD, "owner", "not a name"),
        ("x" * 65, PASSWORD, "owner", "not a name"),
        ("-x", PASSWORD, "owner", "not a name"),
        ("bert", "short", "owner", "has 5 characters; use at least 10"),
        ("bert", PASSWORD, "king", "role 'king': unknown; roles are owner, annotator"),
        ("anna", PASSWORD, "owner", "account anna: exists already"),
    ],
)
def test_accounts_that_cannot_be(database, name, password, role, words):
    people = Accounts(database, ("owner", "annotator"))
    people.add("anna", PASSWORD, "owner")
    with pytest.raises(UserError, match=words):
        people.add(name, password, role)
    assert [one.name for one in people.all()] == ["anna"]


def test_sessions_end(database):
    now = 1000.0
    people = Accounts(database, ("owner", "annotator"), lambda: now)
    anna = people.add("anna", PASSWORD, "owner")
    token, other = people.log_in(anna), people.log_in(anna)
    assert token != other
    assert people.who(token) == anna
    people.log_out(token)
    assert (people.who(token), people.who(other)) == (None, anna)
    now += accounts.SESSION_SECONDS
    assert people.who(other) is None
    for change in ({"role": "annotator"}, {"password": PASSWORD + "2"}, {"active": False}):
        token = people.log_in(anna)
        people.change("anna", **change)
        assert people.who(token) is None
    assert people.all()[0] == accounts.Account("anna", "annotator", False)
    assert people.check("anna", PASSWORD + "2") is None  # closed
    people.change("anna", active=True)
    assert people.check("anna", PASSWORD + "2").role == "annotator"
    with pytest.raises(UserError, match="none of this name"):
        people.change("bert", active=False)
