//! Corrections of exposure bias while sampling: small rules on x_t, x̂_0, ε and t that work with every sampler.
//!
//! A network is trained on noised images and samples from what it made itself. Each rule below changes one thing about
//! a chain to meet that, and needs no training. With α, σ of the step's noise level, λ the scale of the first two rows:
//!
//! | written as | does | source |
//! | --- | --- | --- |
//! | `es:λ` | ε/λ in place of ε, before x̂_0 is formed and clipped, at every call | Ning et al. 2023, arXiv 2308.15321 |
//! | `es-linear:k,b` | the same with λ_i = k·i + b, where i = 0 is the last step, at the data's end | the same |
//! | `es-euler:λ` | `es` for Heun's first call alone | EDM-ES, `--solver heun` |
//! | `es-auto:FILE` | `es` with the λ at which ε has the norms in sampling that it has in training | ours |
//! | `time-shift:w,c` | calls the network at the t_s within t ± w/2 whose 1 − ᾱ is nearest to the variance of x, while t > c | Li et al. 2024, arXiv 2305.15583, algorithm 3 |
//! | `time-shift-released:w,c` | moves the ᾱ that a DDIM step leads to instead, chosen from the variance *before* the step, and leaves t alone | the code released with it |
//! | `shift:Δ` | calls the network at t + Δ: the control that tells whether the two above measure anything | ours |
//! | `dcw:MODE,…` | x += λ_f (x − x̂_0) after each step, by Haar band f | arXiv 2604.16044 |
//! | `ideal-ip:γ` | ε(x/κ, t')/s in place of ε(x, t): what the ideal network trained with input perturbation would answer | [derived below](#ideal-input-perturbation) |
//! | `noise:S` | multiplies what steps add as noise | EDM's `S_noise`, Karras et al. 2022, arXiv 2206.00364 |
//!
//! At its neutral setting (λ = 1, w = 0, Δ = 0, weights 0, γ = 0, S = 1) none changes a bit.
//!
//! # DCW's weights
//!
//! `dcw:low,c`, `dcw:high,c`, `dcw:double,c_low,c_high` and `dcw:pixel,c`. The released code is for variance-exploding
//! networks: its low band has the weight c·σ_t/σ_max, its high band c·(1 − σ_t/σ_max), with t where the step begins. The
//! code behind the published figures of variance-preserving networks is not released, and the paper does not say which
//! σ_t it used. Here the low band and `pixel` have c·√(1 − ᾱ_t), the high band c·(1 − √(1 − ᾱ_t)): ours, without a
//! published default. `,constant` at the end takes c itself.
//!
//! # Ideal input perturbation
//!
//! A network trained on y = √ᾱ_t x_0 + √(1 − ᾱ_t)(ε + γξ) with target ε would, if it were perfect, answer
//! f*(y, t) = ε*(y/κ, t')/s with s = √(1 + γ²), κ² = ᾱ_t + s²(1 − ᾱ_t) and ᾱ_{t'} = ᾱ_t/κ²: y/κ has the distribution of
//! x_{t'}. So any checkpoint can be sampled as if it had been trained so. x̂_0 is formed from x itself. Where t' lies
//! beyond the last timestep, T − 1 takes its place.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::named_enum;
use crate::perturb::noise_scale;
use crate::sampler::{Rule, Stage};
use crate::schedule::{Level, Schedule};
use crate::variance::Prediction;

named_enum! {
    /// What [`Correction::Dcw`] corrects.
    pub enum DcwMode as "DCW mode" {
        /// The low band.
        #[default]
        Low = "low",
        /// The three high bands.
        High = "high",
        /// All bands, each kind with a weight of its own.
        Double = "double",
        /// Pixels: all bands with one weight.
        Pixel = "pixel",
    }
}

/// One correction.
#[derive(Debug, Clone, PartialEq)]
pub enum Correction {
    /// `es` and `es-linear`.
    EpsilonScaling {
        /// k.
        slope: f64,
        /// b.
        base: f64,
    },
    /// `es-euler`.
    EpsilonScalingEuler(f64),
    /// `es-auto`: the file that holds the norms in training. It is resolved to [`Self::EpsilonScaling`] before a chain runs.
    EpsilonScalingAuto(String),
    /// `time-shift`, and `time-shift-released`.
    TimeShift {
        /// w, in timesteps.
        window: f64,
        /// No shift where t is not above.
        cutoff: f64,
        /// Whether the step's end moves, as in the released code, instead of the network's time.
        released: bool,
    },
    /// `shift`.
    Shift(f64),
    /// `dcw`.
    Dcw {
        /// Which bands.
        mode: DcwMode,
        /// c of the low band, or of all pixels.
        low: f64,
        /// c of the high bands.
        high: f64,
        /// Whether c holds at all times.
        constant: bool,
    },
    /// `ideal-ip`.
    IdealIp(f64),
    /// `noise`.
    Noise(f64),
}

/// How each correction is written.
pub const CORRECTION_FORMS: [&str; 10] = [
    "es:λ",
    "es-linear:k,b",
    "es-euler:λ",
    "es-auto:bias.json",
    "time-shift:window,cutoff",
    "time-shift-released:window,cutoff",
    "shift:Δ",
    "dcw:low|high|double|pixel,c[,c_high][,constant]",
    "ideal-ip:γ",
    "noise:S",
];

/// Why corrections cannot be read or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorrectionError {
    /// No such correction.
    #[error("there is no correction {0:?}: write one of {forms}", forms = CORRECTION_FORMS.join(", "))]
    Unknown(String),
    /// Numbers that are missing, too many or none.
    #[error("cannot read the correction {given:?}: write it as {form}")]
    Malformed {
        /// What was written.
        given: String,
        /// What can be written.
        form: &'static str,
    },
    /// A number out of its range.
    #[error("the correction {given:?} does not work: {reason}")]
    Value {
        /// What was written.
        given: String,
        /// Which number, and its range.
        reason: &'static str,
    },
    /// Two of a kind.
    #[error("the corrections {first:?} and {second:?} are of one kind: use one of them")]
    Twice {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// A correction that would do nothing, or nothing that its source means.
    #[error("the correction {given:?} does not apply here: {reason}")]
    NotHere {
        /// What was written.
        given: String,
        /// Why.
        reason: String,
    },
}

impl Correction {
    /// Corrections of one kind exclude each other.
    fn kind(&self) -> u8 {
        match self {
            Self::EpsilonScaling { .. } | Self::EpsilonScalingEuler(_) | Self::EpsilonScalingAuto(_) => 0,
            Self::TimeShift { .. } => 1,
            Self::Shift(_) => 2,
            Self::Dcw { .. } => 3,
            Self::IdealIp(_) => 4,
            Self::Noise(_) => 5,
        }
    }
}

impl fmt::Display for Correction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EpsilonScaling { slope: 0.0, base } => write!(f, "es:{base}"),
            Self::EpsilonScaling { slope, base } => write!(f, "es-linear:{slope},{base}"),
            Self::EpsilonScalingEuler(lambda) => write!(f, "es-euler:{lambda}"),
            Self::EpsilonScalingAuto(file) => write!(f, "es-auto:{file}"),
            Self::TimeShift { window, cutoff, released } => {
                write!(f, "time-shift{}:{window},{cutoff}", if *released { "-released" } else { "" })
            }
            Self::Shift(delta) => write!(f, "shift:{delta}"),
            Self::Dcw { mode, low, high, constant } => {
                let values = match mode {
                    DcwMode::Low | DcwMode::Pixel => low.to_string(),
                    DcwMode::High => high.to_string(),
                    DcwMode::Double => format!("{low},{high}"),
                };
                write!(f, "dcw:{mode},{values}{}", if *constant { ",constant" } else { "" })
            }
            Self::IdealIp(gamma) => write!(f, "ideal-ip:{gamma}"),
            Self::Noise(scale) => write!(f, "noise:{scale}"),
        }
    }
}

impl FromStr for Correction {
    type Err = CorrectionError;

    fn from_str(text: &str) -> Result<Self, CorrectionError> {
        let text = text.trim();
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let form = CORRECTION_FORMS.iter().find(|form| form.split(':').next() == Some(name));
        let form = *form.ok_or_else(|| CorrectionError::Unknown(text.into()))?;
        let malformed = || CorrectionError::Malformed { given: text.into(), form };
        let check = |ok: bool, reason| {
            if ok { Ok(()) } else { Err(CorrectionError::Value { given: text.into(), reason }) }
        };
        let mut words: Vec<&str> = rest.split(',').map(str::trim).collect();
        let numbers = |wanted: usize, words: &[&str]| -> Result<[f64; 2], CorrectionError> {
            if words.len() != wanted {
                return Err(malformed());
            }
            let mut found = [0.0; 2];
            for (found, word) in found.iter_mut().zip(words) {
                *found = word.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(malformed)?;
            }
            Ok(found)
        };
        let positive = |lambda: f64| check(lambda > 0.0, "λ must be above 0");
        Ok(match name {
            "es" | "es-euler" => {
                let [lambda, _] = numbers(1, &words)?;
                positive(lambda)?;
                if name == "es" {
                    Self::EpsilonScaling { slope: 0.0, base: lambda }
                } else {
                    Self::EpsilonScalingEuler(lambda)
                }
            }
            "es-linear" => {
                let [slope, base] = numbers(2, &words)?;
                positive(base)?;
                Self::EpsilonScaling { slope, base }
            }
            "es-auto" if rest.is_empty() || rest.contains(';') => return Err(malformed()),
            "es-auto" => Self::EpsilonScalingAuto(rest.into()),
            "time-shift" | "time-shift-released" => {
                let [window, cutoff] = numbers(2, &words)?;
                check((0.0..=1e6).contains(&window), "the window is a number of timesteps")?;
                check(cutoff >= 0.0, "the cutoff is a timestep")?;
                Self::TimeShift { window, cutoff, released: name != "time-shift" }
            }
            "shift" => Self::Shift(numbers(1, &words)?[0]),
            "dcw" => {
                let mode: DcwMode = words.remove(0).parse().map_err(|_| malformed())?;
                let constant = words.last() == Some(&"constant");
                if constant {
                    words.pop();
                }
                let [a, b] = numbers(if mode == DcwMode::Double { 2 } else { 1 }, &words)?;
                let [low, high] = match mode {
                    DcwMode::Low => [a, 0.0],
                    DcwMode::High => [0.0, a],
                    DcwMode::Double => [a, b],
                    DcwMode::Pixel => [a, a],
                };
                Self::Dcw { mode, low, high, constant }
            }
            "ideal-ip" => {
                let [gamma, _] = numbers(1, &words)?;
                check(gamma >= 0.0, "γ must be 0 or more")?;
                Self::IdealIp(gamma)
            }
            _ => {
                let [scale, _] = numbers(1, &words)?;
                check(scale >= 0.0, "S must be 0 or more")?;
                Self::Noise(scale)
            }
        })
    }
}

/// Corrections that act together, at most one of each kind; written with `;` between them. Their order does not matter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Corrections(Vec<Correction>);

impl FromStr for Corrections {
    type Err = CorrectionError;

    fn from_str(text: &str) -> Result<Self, CorrectionError> {
        let written = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        Self::new(written.map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl TryFrom<String> for Corrections {
    type Error = CorrectionError;

    fn try_from(text: String) -> Result<Self, CorrectionError> {
        text.parse()
    }
}

impl From<Corrections> for String {
    fn from(corrections: Corrections) -> Self {
        corrections.to_string()
    }
}

impl fmt::Display for Corrections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("; "))
    }
}

/// How a stage's network call is made and read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// 1/κ: what x is multiplied by on its way to the network.
    pub input: f64,
    /// t as the network is told.
    pub time: f64,
    /// What the network's ε is divided by.
    pub eps: f64,
    /// The noise level of what the network sees.
    pub level: Level,
}

impl Call {
    /// Whether the answer is to be read as it is.
    pub fn is_plain(&self) -> bool {
        self.input == 1.0 && self.eps == 1.0
    }
}

impl Corrections {
    /// Some corrections.
    ///
    /// # Errors
    /// Two of a kind.
    pub fn new(corrections: Vec<Correction>) -> Result<Self, CorrectionError> {
        for (i, second) in corrections.iter().enumerate() {
            if let Some(first) = corrections[..i].iter().find(|first| first.kind() == second.kind()) {
                return Err(CorrectionError::Twice { first: first.to_string(), second: second.to_string() });
            }
        }
        Ok(Self(corrections))
    }

    /// The file of `es-auto`, if that is among them.
    pub fn auto(&self) -> Option<&str> {
        self.0.iter().find_map(|c| match c {
            Correction::EpsilonScalingAuto(file) => Some(file.as_str()),
            _ => None,
        })
    }

    /// The same with `es:λ` in place of any other scaling of ε.
    #[must_use]
    pub fn with_scale(&self, lambda: f64) -> Self {
        let scaling = Correction::EpsilonScaling { slope: 0.0, base: lambda };
        let others = self.0.iter().filter(|c| c.kind() != scaling.kind()).cloned();
        Self(others.chain([scaling.clone()]).collect())
    }

    /// Checks that each does what its source means with this sampler, network and schedule, on images of that side.
    ///
    /// # Errors
    /// [`CorrectionError::NotHere`] with the reason; a λ that is not above 0 at some step.
    pub fn check(
        &self,
        rule: Rule,
        prediction: Prediction,
        schedule: &Schedule,
        image_size: usize,
    ) -> Result<(), CorrectionError> {
        for correction in &self.0 {
            let given = correction.to_string();
            let steps = schedule.len();
            // Whether any timestep but the last few is above a cutoff.
            let above = |but: usize, cutoff| schedule.times[..steps.saturating_sub(but)].iter().any(|&t| t > cutoff);
            let reason = match *correction {
                Correction::EpsilonScaling { slope, base } if slope * (steps - 1) as f64 + base <= 0.0 => {
                    return Err(CorrectionError::Value { given, reason: "λ is not above 0 at the first step" });
                }
                Correction::EpsilonScalingEuler(_) if !matches!(rule, Rule::Heun(_)) => {
                    "only the heun sampler calls the network twice a step; use es"
                }
                Correction::TimeShift { released: true, .. } if !matches!(rule, Rule::Ddim { .. }) => {
                    "it moves the end of a DDIM step; use the ddim sampler, or time-shift"
                }
                Correction::TimeShift { cutoff, released: false, .. } if !above(1, cutoff) => {
                    "no step after the first begins above the cutoff"
                }
                Correction::TimeShift { cutoff, released: true, .. } if !above(2, cutoff) => {
                    "no step after the first ends above the cutoff"
                }
                Correction::Dcw { mode, .. } if mode != DcwMode::Pixel && !image_size.is_multiple_of(2) => {
                    "Haar bands need images of an even side; use dcw:pixel"
                }
                Correction::IdealIp(_) if prediction == Prediction::PreviousX => {
                    "a network with --prediction previous-x cannot be called at another noise level"
                }
                Correction::Noise(_) if !rule.is_stochastic() => {
                    "this sampler adds no noise; use ddpm, ddim with eta, dpm-solver++-sde or heun with churn"
                }
                _ => continue,
            };
            return Err(CorrectionError::NotHere { given, reason: reason.into() });
        }
        Ok(())
    }

    /// How a stage's network call is made and read, but for what depends on the image.
    pub fn call(&self, schedule: &Schedule, stage: &Stage) -> Call {
        let mut call = Call { input: 1.0, time: stage.level.time, eps: 1.0, level: stage.level };
        for correction in &self.0 {
            match *correction {
                Correction::EpsilonScaling { slope, base } => call.eps *= slope * stage.index as f64 + base,
                // Heun's second call is made elsewhere than where its step begins.
                Correction::EpsilonScalingEuler(lambda) if stage.called_at == stage.index => call.eps *= lambda,
                Correction::Shift(delta) => call.time += delta,
                Correction::IdealIp(gamma) if gamma > 0.0 => {
                    let (s, alpha_bar) = (noise_scale(gamma), stage.level.alpha_bar);
                    let kappa_squared = alpha_bar + s * s * (1.0 - alpha_bar);
                    call.level = schedule.level_of(alpha_bar / kappa_squared);
                    call.time += call.level.time - stage.level.time;
                    call.input = 1.0 / kappa_squared.sqrt();
                    call.eps *= s;
                }
                _ => {}
            }
        }
        call.time = call.time.clamp(0.0, (schedule.original_steps() - 1) as f64);
        call
    }

    /// From how many of a schedule's levels on the time of `ideal-ip` lies beyond the last timestep.
    pub fn levels_beyond(&self, schedule: &Schedule) -> usize {
        let Some(s) =
            self.0.iter().find_map(|c| if let Correction::IdealIp(g) = c { Some(noise_scale(*g)) } else { None })
        else {
            return 0;
        };
        let last = schedule.full_alpha_bar.last().copied().unwrap_or(1.0);
        let beyond = |a: f64| a / (a + s * s * (1.0 - a)) < last;
        if s > 1.0 { schedule.alpha_bar.iter().filter(|&&a| beyond(a)).count() } else { 0 }
    }

    /// By how much `time-shift` moves the network's time for an image of that variance (of its values, unbiased).
    pub fn time_shift(&self, schedule: &Schedule, stage: &Stage, variance: f64) -> f64 {
        match self.window(false) {
            Some([window, cutoff]) if stage.step > 0 && stage.level.time > cutoff => {
                nearest(schedule, stage.level.time, window, variance) - stage.level.time
            }
            _ => 0.0,
        }
    }

    /// The ᾱ that `time-shift-released` leads an image of that variance to; none where it leaves the step alone.
    pub fn shifted_end(&self, schedule: &Schedule, stage: &Stage, variance: f64) -> Option<f64> {
        let [window, cutoff] = self.window(true)?;
        let time = *schedule.times.get(stage.index.checked_sub(1)?)?;
        let found = (stage.step > 0 && time > cutoff).then(|| nearest(schedule, time, window, variance))?;
        (found != time).then(|| schedule.level_at(found).alpha_bar)
    }

    /// Whether the network is given another x, or told another time, than the chain's.
    pub fn move_calls(&self) -> bool {
        self.window(false).is_some()
            || self.0.iter().any(|c| matches!(c, Correction::Shift(_) | Correction::IdealIp(_)))
    }

    /// Whether the variance of each image is looked at.
    pub fn wants_variance(&self) -> bool {
        self.window(false).or(self.window(true)).is_some()
    }

    fn window(&self, wanted: bool) -> Option<[f64; 2]> {
        self.0.iter().find_map(|c| match *c {
            Correction::TimeShift { window, cutoff, released } if released == wanted => Some([window, cutoff]),
            _ => None,
        })
    }

    /// What a step's noise is multiplied by.
    pub fn noise(&self) -> f64 {
        self.0.iter().find_map(|c| if let Correction::Noise(scale) = c { Some(*scale) } else { None }).unwrap_or(1.0)
    }

    /// The weights of the low and of the high bands after a step that left this level; none where both are 0.
    pub fn dcw(&self, level: Level) -> Option<[f64; 2]> {
        self.0.iter().find_map(|c| match *c {
            Correction::Dcw { mode, low, high, constant } => {
                let sigma = level.sigma();
                let weights = match mode {
                    _ if constant => [1.0, 1.0],
                    DcwMode::Pixel => [sigma, sigma],
                    _ => [sigma, 1.0 - sigma],
                };
                let bands = [low * weights[0], high * weights[1]];
                (bands != [0.0, 0.0]).then_some(bands)
            }
            _ => None,
        })
    }

    /// Whether DCW treats all bands alike.
    pub fn dcw_on_pixels(&self) -> bool {
        self.0.iter().any(|c| matches!(c, Correction::Dcw { mode: DcwMode::Pixel, .. }))
    }
}

/// The time whose 1 − ᾱ is nearest to a variance, of those within half a window that are whole timesteps away.
fn nearest(schedule: &Schedule, time: f64, window: f64, variance: f64) -> f64 {
    let half = (window / 2.0).floor() as i64;
    let last = (schedule.original_steps() - 1) as f64;
    let candidates = (-half..=half).map(|offset| time + offset as f64).filter(|t| (0.0..=last).contains(t));
    let distance = |t: f64| (variance - (1.0 - schedule.level_at(t).alpha_bar)).abs();
    candidates.min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(time)
}

#[cfg(test)]
#[path = "correct_tests.rs"]
mod tests;
