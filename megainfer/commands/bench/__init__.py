"""`megainfer bench`: of a server (`serve`), and of an engine without one (`latency`,
`throughput`)."""
