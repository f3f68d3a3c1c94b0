"""What can be compared: the rivals and the votes, one record each.

From outside use `table` (METHODS, ready), `method` (Method, Ready, Terms, Truth), `rivals` (REFERENCES) and `means`.
"""
