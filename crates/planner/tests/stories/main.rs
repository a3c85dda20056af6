//! The planner's stories: what happens, step by step, when people, nodes and proxies do what they do.

// What can't be parsed here is a mistake of the story.
#![allow(clippy::unwrap_used)]

mod addresses;
mod aftercare;
mod canary;
mod deploying;
mod ending;
mod exclusive;
mod files;
mod handoff;
mod invariants;
mod jobs;
mod leading;
mod mixed_versions;
mod nodes;
mod placing;
mod properties;
mod releases;
mod runs;
mod scene;
mod strategies;
