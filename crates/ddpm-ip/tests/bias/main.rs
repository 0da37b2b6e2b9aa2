//! Instruments for exposure bias on data whose exact score is known: they read zero where there is no bias, and its size where
//! there is one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

mod closed;
mod corrections;
mod exact;
mod expected;
mod guidance;
mod planted;
mod unbiased;
