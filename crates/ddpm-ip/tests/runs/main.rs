//! Runs as a user has them: training, stopping, resuming, sampling, and what goes wrong on the way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

mod bias;
mod checkpoints;
mod conditions;
mod conversions;
mod data;
mod diffusers;
mod evaluate;
mod guidance;
mod networks;
mod penalty;
mod perturbation;
mod posthoc;
mod precision;
mod predicting;
mod ranks;
mod regression;
mod samplers;
mod sampling;
mod support;
mod training;
