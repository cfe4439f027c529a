"""Fixtures of all tests of annotation."""

import functools

import argon2
import pytest

from ugc_jax.web import accounts


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch):
    """Hashes that take no time; tests/web/test_accounts.py has the real ones."""
    cheap = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(accounts.argon2, "PasswordHasher", cheap)
