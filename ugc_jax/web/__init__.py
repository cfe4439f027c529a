"""What all web pages of the package share: accounts, sessions, limits, headers, media streams.

    database.py  SQLite or Postgres by URL, with transactions that a kill cannot lose
    accounts.py  accounts with roles, passwords, sessions
    gate.py      who asks (cookie), may they (role), did their page ask (CSRF token, origin)
    limits.py    sizes of bodies, rates of requests
    headers.py   security headers
    streams.py   files of a folder, with byte ranges; nothing outside it
    server.py    an application -> a running server

Imports fastapi, sqlalchemy, argon2 and uvicorn (extra `web`), and errors; nothing of models or
data. Applications (annotate, later serve) import it.
"""
