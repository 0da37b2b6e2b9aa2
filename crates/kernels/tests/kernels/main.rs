//! The kernels against plain loops in f64, through the public tensor functions.

mod attention;
mod conv;
mod fused;
mod half;
mod isa;
mod norm;
mod optim;
mod plain;
mod pool;
mod resample;
mod support;
