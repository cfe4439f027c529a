"""Who sends a request, whether they may, and whether a page of ours made them send it.

The cookie holds a random token, for a visitor and for a session; which account a session has is
known to the database alone. A session always gets a new token, so one that was planted before the
login is worth nothing (session fixation). The CSRF token is a hash of the cookie's: a page of ours
knows it, a page elsewhere does not.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response

from ugc_jax.web.accounts import Account, Accounts, new_token
from ugc_jax.web.limits import Rate

SAFE = ("GET", "HEAD", "OPTIONS")
_TOKEN_LENGTHS = range(20, 100)


class Visit(NamedTuple):
    """token: of the cookie. account: None unless logged in. csrf: that forms have to send."""

    token: str
    account: Account | None
    csrf: str


class Gate:
    """The checks of an application, as dependencies of its routes."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        local: Account | None = None,
        secure: bool = False,
        rate: Rate | None = None,
        login_rate: Rate | None = None,
        name_rate: Rate | None = None,
    ):
        """local: who every visitor is, of a server that only this machine reaches, as long as there
        is no account; None: a login is needed. secure: whether the server is reached by https.
        rate: of requests of an account, or of an address without one. login_rate: of logins of an
        address, where a team may sit. name_rate: of logins for a name.
        """
        self.accounts, self.local, self.secure = accounts, local, secure
        self.cookie = "__Host-ugc_jax" if secure else "ugc_jax"
        self._rate = rate or Rate(50, 200)
        self._login_rate = login_rate or Rate(1, 60)
        self._name_rate = name_rate or Rate(1 / 6, 10)

    def visit(self, request: Request) -> Visit:
        """Return who sends a request. HTTPException 429 if they send too many."""
        if (found := getattr(request.state, "visit", None)) is not None:
            return found
        if self.local is not None and self.accounts.all():
            self.local = None  # another process may have added the first account
        token, account = request.cookies.get(self.cookie, ""), self.local
        if len(token) not in _TOKEN_LENGTHS:
            token = new_token()
        elif self.local is None:
            account = self.accounts.who(token)
        known = account is not None and self.local is None
        self._limit(self._rate, f"account {account.name}" if known else _address(request))
        request.state.visit = visit = Visit(token, account, csrf_token(token))
        return visit

    def page(self, request: Request, response: Response):
        """Give the visitor the cookie; for answers with a form."""
        visit = self.visit(request)
        if request.cookies.get(self.cookie) != visit.token:
            self._set(response, visit.token)

    async def guard(self, request: Request):
        """Refuse (403) a request that changes something unless a page of this server sends it."""
        if request.method in SAFE:
            return
        origin = request.headers.get("origin")
        if origin is not None and _place(origin) != request.headers.get("host"):
            raise HTTPException(403, "the request comes from a page of another site")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "the request comes from a page of another site")
        cookie = request.cookies.get(self.cookie, "")
        sent = request.headers.get("x-csrf-token")
        kind = request.headers.get("content-type", "").partition(";")[0]
        if sent is None and kind == "application/x-www-form-urlencoded":
            sent = (await request.form(max_files=0)).get("csrf")
        if not cookie or sent != csrf_token(cookie):
            raise HTTPException(403, "the page is too old; load it again, then repeat")

    def require(self, *roles: str) -> Callable[[Request], Account]:
        """Return the dependency that gives the account if it has one of the roles.

        HTTPException 401 without an account, 403 with another role.
        """

        def account(request: Request) -> Account:
            found = self.visit(request).account
            if found is None:
                raise HTTPException(401, "log in first")
            if found.role not in roles:
                raise HTTPException(403, f"this is for the role {' or '.join(roles)}")
            return found

        return account

    def log_in(self, request: Request, name: str, password: str) -> tuple[str, Account] | None:
        """Return (the token of a new session, its account); None for a wrong name or password.

        HTTPException 429 after too many tries.
        """
        self._limit(self._login_rate, _address(request))
        self._limit(self._name_rate, f"name {name[:64]}")
        account = self.accounts.check(name, password)
        return None if account is None else (self.accounts.log_in(account), account)

    def welcome(self, response: Response, token: str):
        """Set the cookie of a session that `log_in` began."""
        self._set(response, token)

    def log_out(self, request: Request, response: Response):
        """End the session; the visitor gets a new token."""
        self.accounts.log_out(self.visit(request).token)
        self._set(response, new_token())

    def _set(self, response: Response, token: str):
        response.set_cookie(
            self.cookie, token, path="/", httponly=True, samesite="strict", secure=self.secure
        )

    @staticmethod
    def _limit(rate: Rate, key: str):
        if wait := rate.wait(key):
            seconds = str(math.ceil(wait))
            raise HTTPException(
                429, f"too many requests; wait {seconds} s", {"Retry-After": seconds}
            )


def csrf_token(token: str) -> str:
    """Return the token of forms that belongs to a cookie's token."""
    return hashlib.sha256(b"csrf " + token.encode("utf-8", "replace")).hexdigest()


def _place(origin: str) -> str | None:
    """Return host and port of an origin; None if it has none or is malformed."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _address(request: Request) -> str:
    return f"address {request.client.host if request.client else ''}"
