"""The ledger: every number ever issued, and who may issue the next."""
