//! The kernels against plain loops in f64, through the public tensor functions.

mod attention;
mod bf16;
mod conv;
mod fused;
mod isa;
mod norm;
mod optim;
mod plain;
mod resample;
mod support;
