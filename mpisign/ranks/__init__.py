"""How ranks start, find their place, agree, keep time and end together."""
