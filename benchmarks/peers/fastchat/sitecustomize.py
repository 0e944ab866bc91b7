"""FastChat's cleaner walks HTML recursively and crashes on real chats: each process of its pool gets more stack."""

import sys

sys.setrecursionlimit(100_000)
