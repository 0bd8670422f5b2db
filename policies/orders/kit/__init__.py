"""What several orders are built from: lanes, accounts, sizes."""
