//! An NVIDIA GPU: each step is a call of cuDNN or cuBLASLt, or a kernel of our own, in a stream.
//!
//! What a plan's steps call is chosen once ([`Program`]). The first run starts them one by one; from the second on each half
//! of the plan is one recorded graph, started at once. All plans of a GPU run in one block of memory.

mod call;
mod limits;
mod program;
mod session;
mod steps;
mod update;

pub(crate) use limits::limits;
pub(crate) use program::{OnChip, Program};
pub(crate) use session::Session;
pub use update::{AVERAGES, accumulate};
pub(crate) use update::{squares, sum_squares, update};
