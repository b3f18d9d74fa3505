"""Files and folders: written whole or not at all, locked, recognised as ours, logged and downloaded."""
