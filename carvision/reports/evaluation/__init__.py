"""The report on an evaluation: tables, pictures and files."""
