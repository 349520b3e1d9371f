"""Django's database engine of the embedded default: PostgreSQL that starts when it is first connected to."""
