"""What two nodes say to each other: bytes, sessions, messages and the core. No asyncio, clock, os, threads or randomness."""
