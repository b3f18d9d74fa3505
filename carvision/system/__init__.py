"""The machine, the installed versions, and the settings of the process."""
