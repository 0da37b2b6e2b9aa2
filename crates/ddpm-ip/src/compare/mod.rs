//! Variants of a training compared: trained where they are missing, sampled, measured, and shown on a page.

mod job;
mod page;
mod plan;

pub use job::{Job, Point, run};
pub use plan::{Member, Plan, Sampling, Variant};
