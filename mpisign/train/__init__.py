"""The command that trains a classifier by vote, or by a rival."""
