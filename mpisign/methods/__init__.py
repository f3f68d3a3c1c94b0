"""What can be compared: the rivals and the votes, one record each."""
