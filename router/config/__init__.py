"""What an operator may say: the schema, where it is read from, how it is checked and printed."""
