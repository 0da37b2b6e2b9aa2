//! Schedules and input perturbation as numbers.

use crate::errors::config_error;
use ddpm_math::{Mode, NoiseSchedule, Perturbation as Rule, Recipe, Respacing, Schedule as Tables, Strength, Target};
use numpy::{IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use std::fmt::Display;

/// Reads a name that is one of some.
fn named<T: std::str::FromStr<Err: Display>>(py: Python<'_>, name: &str) -> PyResult<T> {
    name.parse().map_err(|e: T::Err| config_error(py, e.to_string()))
}

/// The tables of a diffusion process, each float64 [T'].
///
/// noise_schedule: "linear" or "cosine". steps: T, the timesteps of training. respacing: which are kept, such as "50" or "ddim50";
/// empty: all. Index i is the i-th timestep that is kept, times[i] what it is in the whole process. Computed as the reference
/// computes them (guided-diffusion's gaussian_diffusion.py and respace.py).
///
/// Raises ConfigError for unknown names and impossible numbers.
#[pyclass(module = "ddpm_ip", frozen)]
pub(crate) struct Schedule(Tables);

#[pymethods]
impl Schedule {
    #[new]
    #[pyo3(signature = (noise_schedule = "linear", steps = 1000, respacing = ""))]
    fn new(py: Python<'_>, noise_schedule: &str, steps: usize, respacing: &str) -> PyResult<Self> {
        let kept: Respacing = named(py, respacing)?;
        let tables = Tables::new(named::<NoiseSchedule>(py, noise_schedule)?, steps, &kept);
        tables.map(Self).map_err(|e| config_error(py, e.to_string()))
    }

    /// β: the variance that each step adds.
    #[getter]
    fn betas<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.betas)
    }

    /// ᾱ: the signal's share of the variance; what PyTorch code calls alphas_cumprod.
    #[getter]
    fn alphas_cumprod<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.alpha_bar)
    }

    /// √ᾱ: what x_0 is multiplied by.
    #[getter]
    fn signal<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.sqrt_alpha_bar)
    }

    /// √(1 − ᾱ): what the noise is multiplied by.
    #[getter]
    fn noise<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.sqrt_one_minus_alpha_bar)
    }

    /// The timestep of the whole process that each index is.
    #[getter]
    fn times<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.times)
    }

    /// The variance of q(x_{t-1} | x_t, x_0).
    #[getter]
    fn posterior_variance<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, &self.0.posterior_variance)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __repr__(&self) -> String {
        format!("<ddpm_ip.Schedule of {} of {} timesteps>", self.0.len(), self.0.original_steps())
    }
}

/// Input perturbation: inputs and targets for a network of your own.
///
/// gamma: γ, its strength; published: 0.15 for CIFAR-10, else 0.1. mode: "sampled" draws ξ as the paper does; "equivalent" has it
/// averaged out: the same expected gradient with less variance and half the noise; "target-scaled" is the paper's ablation.
/// strength: how γ varies: "constant", "linear" or "cosine" in t from gamma_start on, up to cutoff·T; "uniform" or "switched"
/// (with that probability) by image; "decay" over decay_steps of training. scaled=False: γ is the deviation of the added noise
/// itself, not in units of the noise level.
///
/// Raises ConfigError for numbers out of their range.
#[pyclass(module = "ddpm_ip", frozen)]
pub(crate) struct Perturbation(Rule);

#[pymethods]
impl Perturbation {
    #[new]
    #[pyo3(signature = (gamma = 0.1, mode = "sampled", *, strength = "constant", gamma_start = 0.0, cutoff = 1.0,
        decay_steps = 0, probability = 0.8, scaled = true))]
    #[expect(clippy::too_many_arguments, reason = "keywords of Python")]
    fn new(
        py: Python<'_>,
        gamma: f64,
        mode: &str,
        strength: &str,
        gamma_start: f64,
        cutoff: f64,
        decay_steps: u64,
        probability: f64,
        scaled: bool,
    ) -> PyResult<Self> {
        let (mode, strength) = (named::<Mode>(py, mode)?, named::<Strength>(py, strength)?);
        let rule = Rule { mode, gamma, gamma_start, strength, cutoff, decay_steps, probability, scaled };
        rule.validate().map_err(|e| config_error(py, e.to_string()))?;
        Ok(Self(rule))
    }

    /// γ.
    #[getter]
    fn gamma(&self) -> f64 {
        self.0.gamma
    }

    /// The form.
    #[getter]
    fn mode(&self) -> &'static str {
        self.0.mode.name()
    }

    /// The coefficients at timesteps t of a Schedule, a number or an array of whole numbers.
    ///
    /// predicts: "epsilon", "x-start" or "v". schedule: 1000 linear steps if not given. train_step: steps of training behind, for
    /// "decay". u: uniform draws in [0, 1) of the shape of t, for "uniform" and "switched". Returns a Mix, its values float64 of
    /// t's shape.
    #[pyo3(signature = (t, *, schedule = None, predicts = "epsilon", train_step = 0, u = None))]
    fn mix(
        &self,
        py: Python<'_>,
        t: &Bound<'_, PyAny>,
        schedule: Option<&Schedule>,
        predicts: &str,
        train_step: u64,
        u: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Mix> {
        let usual;
        let tables = if let Some(schedule) = schedule {
            &schedule.0
        } else {
            usual = Schedule::new(py, "linear", 1000, "")?;
            &usual.0
        };
        let target: Target = named(py, predicts)?;
        let (t, shape) = numbers(t)?;
        let draws = match u {
            Some(u) => numbers(u)?.0,
            None if matches!(self.0.strength, Strength::Uniform | Strength::Switched) => {
                let message =
                    format!("strength {:?} is drawn for each image: give u in [0, 1)", self.0.strength.name());
                return Err(config_error(py, message));
            }
            None => vec![0.0; t.len()],
        };
        if draws.len() != t.len() {
            return Err(config_error(py, format!("u has {} values, t has {}", draws.len(), t.len())));
        }
        let recipes = t.iter().zip(&draws).map(|(&t, &u)| {
            if !(t >= 0.0 && t.fract() == 0.0 && (t as usize) < tables.len()) {
                return Err(config_error(py, format!("t = {t} is not a timestep from 0 to {}", tables.len() - 1)));
            }
            let i = t as usize;
            let level = [tables.sqrt_alpha_bar[i], tables.sqrt_one_minus_alpha_bar[i]];
            Ok(self.0.recipe(target, level, self.0.gamma_for(i, tables, train_step, u)))
        });
        Mix::new(py, &recipes.collect::<PyResult<Vec<_>>>()?, &shape)
    }

    /// The coefficients where x_0 is multiplied by `signal` and the noise by `noise`: 1 - t and t for a flow, 1 and σ for EDM.
    ///
    /// predicts: "epsilon", "x-start" (also EDM's denoiser), "v", "velocity" (of a flow, noise - x_0) or "score". The strength is
    /// gamma itself, whatever `strength` says, in units of `noise`. Returns a Mix, its values float64 of the arguments' shape.
    #[pyo3(signature = (signal, noise, predicts = "epsilon"))]
    fn mix_at(
        &self,
        py: Python<'_>,
        signal: &Bound<'_, PyAny>,
        noise: &Bound<'_, PyAny>,
        predicts: &str,
    ) -> PyResult<Mix> {
        let target: Target = named(py, predicts)?;
        let ((signal, shape), (noise, of_noise)) = (numbers(signal)?, numbers(noise)?);
        if shape != of_noise {
            return Err(config_error(
                py,
                format!("signal has shape {shape:?}, noise {of_noise:?}: give both the same shape"),
            ));
        }
        let recipes: Vec<Recipe> = signal
            .iter()
            .zip(&noise)
            .map(|(&a, &b)| {
                let gamma = if self.0.scaled { self.0.gamma } else { self.0.gamma / b };
                self.0.recipe(target, [a, b], gamma)
            })
            .collect();
        Mix::new(py, &recipes, &shape)
    }

    fn __repr__(&self) -> String {
        format!("<ddpm_ip.Perturbation gamma={} mode={:?}>", self.0.gamma, self.0.mode.name())
    }
}

/// Coefficients, each a float64 array of the shape that was asked for (an array without dimensions for a number).
///
/// The network sees x_start·x_0 + noise·ε + xi·ξ and is to predict target_x_start·x_0 + target_noise·ε, with ε, ξ ~ N(0, 1)
/// independent. constant is what the mean squared error must be raised by to compare with "sampled"; it has no gradient.
#[pyclass(module = "ddpm_ip", frozen, get_all)]
pub(crate) struct Mix {
    /// Of x_0 in the input.
    x_start: Py<PyArrayDyn<f64>>,
    /// Of ε in the input.
    noise: Py<PyArrayDyn<f64>>,
    /// Of ξ in the input; where it is 0, ξ need not be drawn.
    xi: Py<PyArrayDyn<f64>>,
    /// Of x_0 in the target.
    target_x_start: Py<PyArrayDyn<f64>>,
    /// Of ε in the target.
    target_noise: Py<PyArrayDyn<f64>>,
    /// Between this loss and that of "sampled".
    constant: Py<PyArrayDyn<f64>>,
}

impl Mix {
    fn new(py: Python<'_>, recipes: &[Recipe], shape: &[usize]) -> PyResult<Self> {
        let each = |of: &dyn Fn(&Recipe) -> f64| {
            let values: Vec<f64> = recipes.iter().map(of).collect();
            Ok::<_, PyErr>(values.into_pyarray(py).reshape(shape)?.unbind())
        };
        Ok(Self {
            x_start: each(&|r| r.input[0])?,
            noise: each(&|r| r.input[1])?,
            xi: each(&|r| r.input[2])?,
            target_x_start: each(&|r| r.target[0])?,
            target_noise: each(&|r| r.target[1])?,
            constant: each(&|r| r.constant)?,
        })
    }
}

#[pymethods]
impl Mix {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = |array: &Py<PyArrayDyn<f64>>| array.bind(py).str().map(|text| text.to_string());
        Ok(format!(
            "Mix(x_start={}, noise={}, xi={}, target_x_start={}, target_noise={}, constant={})",
            text(&self.x_start)?,
            text(&self.noise)?,
            text(&self.xi)?,
            text(&self.target_x_start)?,
            text(&self.target_noise)?,
            text(&self.constant)?
        ))
    }
}

/// Finite numbers of any shape, in one row, and the shape.
fn numbers(value: &Bound<'_, PyAny>) -> PyResult<(Vec<f64>, Vec<usize>)> {
    let array = value.py().import("numpy")?.call_method1("ascontiguousarray", (value, "float64"))?;
    // ascontiguousarray gives a number a dimension.
    let shape: Vec<usize> = match value.getattr("shape") {
        Ok(shape) => shape.extract()?,
        Err(_) if value.extract::<f64>().is_ok() => Vec::new(),
        Err(_) => array.getattr("shape")?.extract()?,
    };
    let array: Bound<'_, PyArrayDyn<f64>> = array.cast_into()?;
    debug_assert_eq!(array.len(), shape.iter().product::<usize>());
    let values = array.to_vec()?;
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => Err(config_error(value.py(), format!("{v} is not a finite number"))),
        None => Ok((values, shape)),
    }
}
