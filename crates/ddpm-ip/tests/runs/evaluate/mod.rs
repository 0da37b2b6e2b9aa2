//! The evaluator on files, from outside.

mod comparing;
mod mistakes;
mod resizing;
mod support;
mod training;
mod weights;
