"""What orders share: lanes, accounts of parties, the fair queue over both, sizes, and the search of Sorted-F."""
