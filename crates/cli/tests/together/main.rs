//! Several processes that share their work: the same bits as one, and what happens when one of them does not go on.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[cfg(feature = "mpi")]
mod mpi;
mod support;
mod tcp;
