//! Data sets in their makers' form become npz files and PNGs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

mod batches;
mod emoji;
mod files;
mod lsun;
mod outputs;
mod support;
