//! The kernels against plain loops in f64, through the public functions.

mod attention;
mod bf16;
mod conv;
mod convert;
mod dropout;
mod elementwise;
mod isa;
mod norm;
mod optim;
mod plain;
mod pool;
mod resample;
mod run;
mod support;
