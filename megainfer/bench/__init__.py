"""Measuring a server from outside: requests, arrivals, answers and what they sum up to."""
