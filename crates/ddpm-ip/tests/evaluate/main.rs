//! The evaluator on files, from outside.

#![allow(clippy::unwrap_used)]

mod comparing;
mod mistakes;
mod support;
mod training;
mod weights;
