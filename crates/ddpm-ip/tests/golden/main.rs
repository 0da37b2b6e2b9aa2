//! The library against what the reference computes.
//!
//! Cases come from `index.json` in the folder named by `GOLDEN_DIR`, or in the repository's `tests/golden`: a case is
//! added by adding files and an entry. A section that is not there holds no cases, but the repository's own has some of
//! each. Tolerances are those that the float32 reference itself supports.

#![expect(clippy::unwrap_used, reason = "a golden file that cannot be read has to fail its test")]

mod bounds;
mod chains;
mod ddim;
mod isa;
mod losses;
mod networks;
mod oracle;
mod preprocess;
mod schedules;
mod support;
mod torch;
mod trajectory;
