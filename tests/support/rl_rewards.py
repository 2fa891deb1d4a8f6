"""Reward functions that behave as users' do, and worse; the response says how."""

import os
import sys
import time
from pathlib import Path
from typing import Any


def behave(prompt: str, response: str, answer: str) -> Any:
    """What the response names happens; otherwise 1 where it is the answer."""
    print("what a function prints is no reward")
    os.write(1, b"nor what a library of it prints")
    match response:
        case "raise":
            raise LookupError(f"no {answer} in {prompt}")
        case "exit":
            sys.exit(3)
        case "die":
            os._exit(3)
        case "hang":
            time.sleep(3600)
        case "nan":
            return float("nan")
        case "text":
            return "1"
        case "read":
            return len(sys.stdin.read())
    return float(response == answer)


def pid(prompt: str, response: str, answer: str) -> int:
    """Of the process that scores; it stays a while, so that another does the next."""
    time.sleep(float(response))
    return os.getpid()


def hang_at(prompt: str, response: str, answer: str) -> float:
    """Hangs for an hour, having written its process's id into the pipe that the response names."""
    Path(response).write_text(str(os.getpid()))
    time.sleep(3600)
    return 0.0


NO_FUNCTION = 1
if "RL_REWARDS_BREAK" in os.environ and Path(os.environ["RL_REWARDS_BREAK"]).exists():
    raise ImportError("broken by now")


def letters(prompt: str, response: str, answer: str) -> float:
    """A reward that any policy can raise: the share of characters that are letters."""
    return sum(character.isalpha() for character in response) / max(len(response), 1)


def unlucky(prompt: str, response: str, answer: str) -> float:
    """None for most answers."""
    if len(response) % 3:
        raise ValueError("no luck")
    return 1.0
