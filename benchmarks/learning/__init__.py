"""What `rl_learning.py` trains on: a task whose answers vary in length, and who begins with it."""
