//! The program on a GPU, without one: NVIDIA's libraries are those of `crates/cuda/tests/emulator`, which compute on the
//! processor. They are built with g++ before the first test.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

#[allow(dead_code, reason = "shared with the other tests of the program")]
#[path = "../cli/support.rs"]
mod support;

mod chains;
mod failures;
mod machine;
mod missing;
mod planned;
mod together;
mod training;
