"""An attention node of several ranks: the first has requests, routes and samples, all compute."""
