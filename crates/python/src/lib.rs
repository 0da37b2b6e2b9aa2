//! The Python module `ddpm_ip`: the library's networks, runs, comparisons and schedules, and the program's commands. What numbers it
//! gives are the program's, bit for bit. Its types stand in `ddpm_ip.pyi`.

mod arguments;
mod commands;
mod errors;
mod model;
mod progress;
mod run;
mod schedule;
mod work;

use pyo3::prelude::*;

/// Train, sample, measure and evaluate diffusion models with input perturbation (DDPM-IP, arXiv 2301.11706).
///
///     import ddpm_ip
///     run = ddpm_ip.train("digits", gamma=0.1, steps=1000)
///     images = run.model().sample(100, sampler="unipc", steps=20)       # uint8 [100, 8, 8, 1]
///     ddpm_ip.evaluate("digits", images, metrics=["fid"])["fid"]
///
/// Arrays of images are uint8 [N, H, W, C]; inputs and outputs of networks are float32 [N, C, H, W], images in [-1, 1]. Long work
/// releases the GIL, reports to the logger "ddpm_ip", and stops at Ctrl-C.
#[pymodule]
fn ddpm_ip(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    module.add_class::<model::Model>()?;
    module.add_class::<run::Run>()?;
    module.add_class::<schedule::Schedule>()?;
    module.add_class::<schedule::Perturbation>()?;
    module.add_class::<schedule::Mix>()?;
    module.add_function(wrap_pyfunction!(model::load, module)?)?;
    module.add_function(wrap_pyfunction!(run::train, module)?)?;
    module.add_function(wrap_pyfunction!(commands::compare, module)?)?;
    module.add_function(wrap_pyfunction!(commands::bias, module)?)?;
    module.add_function(wrap_pyfunction!(commands::command, module)?)?;
    module.add_function(wrap_pyfunction!(commands::presets, module)?)?;
    module.add_function(wrap_pyfunction!(commands::devices, module)?)?;
    module.add_function(wrap_pyfunction!(commands::main, module)?)
}
