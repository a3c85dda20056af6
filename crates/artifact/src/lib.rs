//! Artifacts: directory trees packed, unpacked and addressed by digest.
