//! The mathematics of denoising diffusion with input perturbation, without tensors: numbers in, numbers out, no I/O.
//!
//! Everything that decides *what* is computed lives here and is tested here to the last digit; the crates above decide
//! where and how fast. Start reading at [`perturb`], the reason this project exists.
//!
//! ```
//! use ddpm_math::{Mode, NoiseSchedule, Perturbation, Prediction, Reading, Respacing, Schedule, Variance};
//!
//! let schedule = Schedule::new(NoiseSchedule::Cosine, 1000, &Respacing::Full)?;
//! let perturbation = Perturbation { mode: Mode::Equivalent, gamma: 0.1, ..Perturbation::default() };
//! let mix = perturbation.mix(perturbation.gamma);
//!
//! // A pixel as the network sees it at timestep 300, and what the network should answer.
//! let (x_start, eps, t) = (0.5, -1.0, 300);
//! let noise = mix.noise * eps;
//! let x_t = schedule.sqrt_alpha_bar[t] * x_start + schedule.sqrt_one_minus_alpha_bar[t] * noise;
//! let target = mix.target * eps;
//! assert!(noise < -1.0 && target > -1.0);
//!
//! // All of the noise in x_t leads back to the clean pixel.
//! let reading = Reading::<f64>::new(&schedule, Prediction::Epsilon, Variance::FixedSmall, t);
//! let moments = reading.moments(x_t, noise, 0.0, None);
//! assert!((moments.x_start - x_start).abs() < 1e-12);
//! # Ok::<(), ddpm_math::ScheduleError>(())
//! ```
//!
//! # Notation
//!
//! One spelling per symbol, throughout the workspace:
//!
//! | name | symbol | meaning |
//! | --- | --- | --- |
//! | `beta` | β_t | variance added by step t of the forward process |
//! | `alpha_bar` | ᾱ_t = Π_{i≤t} (1 − β_i) | share of the signal's variance that is left after step t |
//! | `sqrt_one_minus_alpha_bar` | β̄_t = √(1 − ᾱ_t) | standard deviation of the noise in x_t |
//! | `x_start` | x_0 | an image, scaled to [−1, 1] |
//! | `eps` | ε ~ N(0, I) | the noise the network learns to predict |
//! | `xi` | ξ ~ N(0, I) | the extra noise of input perturbation, independent of ε |
//! | `gamma` | γ ≥ 0 | perturbation strength: the standard deviation of γξ in units of β̄_t |
//! | `s` | √(1 + γ²) | how much larger the perturbed noise ε + γξ is |
//! | `c` | γ² / (1 + γ²) | the constant between the sampled and the equivalent loss |
//! | `t` | 0 ≤ t < T | a timestep; t = 0 is the least noisy one, as in code (papers count from 1) |
//! | `T` | | timesteps of the process that the network is trained on |
//! | `T'` | | timesteps that sampling keeps of it ([`respace`]) |
//!
//! Unless a name says otherwise, all quantities are without unit, logarithms are natural, and likelihoods are in nats.
//!
//! # Map
//!
//! | module | holds | source |
//! | --- | --- | --- |
//! | [`perturb`] | input perturbation and its equivalent loss | Ning et al. 2023, arXiv 2301.11706 |
//! | [`recipe`] | the same for networks of any kind: v, flow matching, EDM, scores | see there |
//! | [`beta`] | the named noise schedules | Ho et al. 2020, arXiv 2006.11239; Nichol & Dhariwal 2021, arXiv 2102.09672 |
//! | [`respace`] | choosing T' of T timesteps | Nichol & Dhariwal 2021; Song et al. 2020, arXiv 2010.02502 |
//! | [`schedule`] | every per-timestep table | Ho et al. 2020 |
//! | [`variance`] | what the network's outputs mean and how they are scored | Nichol & Dhariwal 2021 |
//! | [`gaussian`] | KL divergence and the decoder's likelihood | Ho et al. 2020 |
//! | [`step`] | coefficients of one reverse step | Ho et al. 2020; Song et al. 2020 |
//! | [`reverse`] | p(x_{t−1} \| x_t) from a network's output, and sampling steps pixel by pixel | Ho et al. 2020; Song et al. 2020 |
//! | [`sampler`] | which network calls a sampler makes, and how each step mixes its results | see there |
//! | [`correct`] | corrections of exposure bias while sampling | see there |
//! | [`guidance`] | answers led away from weaker ones | Ho & Salimans 2022; Karras et al. 2024 |
//! | [`loss`] | training losses, their derivatives, and terms of the likelihood | Ho et al. 2020; Nichol & Dhariwal 2021 |
//! | [`timestep`] | which t to train on | Nichol & Dhariwal 2021 |
//! | [`posthoc`] | averages of parameters by power functions, and others made from them | Karras et al. 2024 |
//! | [`haar`] | bands of an image, and a correction of samples by band | arXiv 2604.16044 |
//! | [`normality`] | whether numbers are normal draws | Royston 1995 |
//! | [`jackknife`] | how far a statistic may be off | Efron 1982 |
//! | [`philox`] | counter-based randomness | Salmon et al. 2011 |

mod name;
mod real;

pub mod beta;
pub mod correct;
pub mod gaussian;
pub mod guidance;
pub mod haar;
pub mod jackknife;
pub mod loss;
pub mod normality;
pub mod perturb;
pub mod philox;
pub mod posthoc;
pub mod recipe;
pub mod respace;
pub mod reverse;
pub mod sampler;
pub mod schedule;
pub mod step;
pub mod timestep;
pub mod variance;

pub use beta::{NoiseSchedule, betas};
pub use correct::{CORRECTION_FORMS, Call, Correction, CorrectionError, Corrections, DcwMode};
pub use guidance::Guidance;
pub use haar::{Bands, haar_correct, haar_energy};
pub use jackknife::{jackknife_error, jackknife_groups, mean_and_error};
pub use loss::{BoundTerms, Graded, ImageBound, ImageLoss, Terms, cross_entropy, prior_bound};
pub use name::UnknownName;
pub use normality::{Normality, ShapiroWilk};
pub use perturb::{Mix, Mode, Perturbation, PerturbationError, Strength, loss_constant, noise_scale, rotate};
pub use philox::{Domain, Stream, philox4x32_10_lanes};
pub use real::Real;
pub use recipe::{Recipe, Target};
pub use respace::{Respacing, RespacingError, Spacing};
pub use reverse::{Moments, Pixel, Reading, ReverseStep, Stepped};
pub use sampler::{Churn, Mixture, Rule, Stage, Update};
pub use schedule::{Level, Schedule, ScheduleError};
pub use step::DdimStep;
pub use timestep::{TimeSampler, TimeSamplerError, TimeSamplerKind, TimeSamplerState};
pub use variance::{LossKind, Prediction, Variance};
