//! Proves that a backend keeps the contract: one documented function per clause.
