"""What runs in the microVM: init and agent in one process. Standard library only; of torpor it imports nothing but wire.guest."""
