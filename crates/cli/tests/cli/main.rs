//! The program from outside: what a user types, sees and finds on the disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

mod evaluating;
mod files;
mod mistakes;
mod pages;
mod reference;
mod regression;
mod reports;
mod runs;
mod support;
