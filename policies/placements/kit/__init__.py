"""What several placement rules are built from."""
