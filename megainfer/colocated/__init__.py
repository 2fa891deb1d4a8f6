"""Both roles in one process, without messages: what disaggregation is compared with."""
