"""A nested configuration as one mapping. Imports nothing, so that comparing runs takes no time to start."""


def flat_config(config: dict, prefix: str = "") -> dict:
    """{"data.root": ...} of a nested configuration."""
    values = {}
    for key, value in config.items():
        values |= (
            flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        )
    return values
