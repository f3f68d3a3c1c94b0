"""What can be compared: the rivals and the votes, one record each.

From outside use `table` (METHODS, ready), `method` (Method, Ready, Terms, Standard), `rivals` (REFERENCES) and `means`.
"""
