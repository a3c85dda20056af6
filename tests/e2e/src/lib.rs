//! User stories against the real binary and real components.
