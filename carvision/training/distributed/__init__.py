"""Several processes that train one network: launching, collectives, FSDP and TPUs."""
