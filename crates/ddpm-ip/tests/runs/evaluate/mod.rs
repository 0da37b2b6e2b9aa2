//! The evaluator on files, from outside.

mod comparing;
mod mistakes;
mod support;
mod training;
mod weights;
