"""The one database of the trust service: SQLite behind SQLAlchemy Core, in terms of what the services keep.

`database` owns connections, durability and failure; `schema` the tables; each other module one concern. Services call
these modules; nothing outside this package writes SQL.
"""
