//! Respacing: which T' of the T training timesteps a sampler visits.
//!
//! Even sections are those of Nichol & Dhariwal 2021 (section 4), the integer stride is that of DDIM (Song et al. 2020).
//! Both reproduce the reference index for index, down to the accumulated f64 stride and rounding of halves to even. The
//! uniform and quadratic spacings are those of ermongroup/ddim.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::named_enum;
use crate::schedule::{log_snr, time_of};

named_enum! {
    /// How a plain number of steps is spaced over a process of T timesteps. The first time is 0 and the last T − 1; those
    /// between need not be timesteps, but for the uniform spacing.
    pub enum Spacing as "spacing" {
        /// Evenly, in whole timesteps: [`Respacing::Sections`] of one section.
        #[default]
        Uniform = "uniform",
        /// Squares of evenly spaced roots: more steps where there is less noise. Unlike [`Respacing::Quadratic`] up to
        /// T − 1.
        Quadratic = "quadratic",
        /// Evenly in the logarithm of the signal-to-noise ratio (Lu et al. 2022, arXiv 2206.00927, section 3.4).
        LogSnr = "log-snr",
        /// σ^{1/7} evenly, with σ = √((1 − ᾱ)/ᾱ) (Karras et al. 2022, arXiv 2206.00364, eq. 5, ρ = 7).
        Karras = "karras",
    }
}

/// ρ of [`Spacing::Karras`].
const RHO: f64 = 7.0;

impl Spacing {
    pub(crate) fn check(steps: usize, count: usize) -> Result<(), RespacingError> {
        Respacing::Sections(vec![count]).select(steps).map(drop)
    }

    /// `count` times, ascending, of a process with that ᾱ at its timesteps; what [`Self::check`] lets through.
    pub(crate) fn times(self, alpha_bar: &[f64], count: usize) -> Vec<f64> {
        // Without any signal there is no ratio to noise.
        let last = alpha_bar.iter().rposition(|&a| a > 0.0).unwrap_or(0);
        let [least, most] = [last, 0].map(|t| log_snr(alpha_bar[t]));
        let spread = |time: &dyn Fn(f64) -> f64| {
            let share = |i: usize| i as f64 / (count - 1) as f64;
            (0..count).map(|i| if i + 1 == count { last as f64 } else { time(share(i)) }).collect()
        };
        match self {
            Self::Uniform => {
                select_sections(alpha_bar.len(), &[count]).into_iter().flatten().map(|t| t as f64).collect()
            }
            Self::Quadratic => spread(&|share| last as f64 * share * share),
            Self::LogSnr => spread(&|share| time_of(alpha_bar, most + (least - most) * share)),
            Self::Karras => {
                // σ = e^{−log-SNR/2}.
                let [first, last] = [most, least].map(|log| libm::exp(-0.5 * log / RHO));
                spread(&|share| time_of(alpha_bar, -2.0 * RHO * libm::log(first + (last - first) * share)))
            }
        }
    }
}

/// The most timesteps a process may have: up to here f32, in which the network receives t, holds every integer.
pub const MAX_STEPS: usize = 1 << 24;

/// A choice of timesteps, written as text: `""`, `"250"`, `"10,15,20"`, `"ddim50"`, `"uniform50"` or `"quad50"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Respacing {
    /// Every timestep.
    #[default]
    Full,
    /// The process is cut into as many equal sections as there are numbers, and each number says how many timesteps to
    /// take from its section, evenly spaced from its first to its last. The least noisy section comes first.
    Sections(Vec<usize>),
    /// Exactly this many timesteps, from 0 on with one integer stride.
    Ddim(usize),
    /// From 0 on with the stride ⌊T / n⌋: n timesteps, or a few more where n does not divide T.
    Uniform(usize),
    /// The integer parts of n squares, evenly spaced roots from 0 to √(0.8 T), each once: more steps where there is less
    /// noise (Song et al. 2020, appendix D.2).
    Quadratic(usize),
}

/// Why a respacing cannot be read or carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespacingError {
    /// The text is none of the forms.
    #[error(
        "cannot read the respacing {text:?}: write a number of steps such as 250, one number per section such as \
         10,15,20, or ddim50; leave it empty to keep every step"
    )]
    Malformed {
        /// What was written.
        text: String,
    },
    /// A number of the text is larger than any process.
    #[error("the respacing {text:?} asks for more steps than a process can have: use numbers up to {MAX_STEPS}")]
    CountTooLarge {
        /// What was written.
        text: String,
    },
    /// The process itself is empty or too long.
    #[error("a diffusion process of {steps} steps is not possible: use 1 to {MAX_STEPS} diffusion steps")]
    StepsOutOfRange {
        /// T.
        steps: usize,
    },
    /// There are no sections, all of them are to be left out, or a stride is to give 0 steps.
    #[error("the respacing keeps no timestep at all: ask for at least one step")]
    NothingKept,
    /// A section has fewer timesteps than are to be taken from it.
    #[error(
        "cannot take {wanted} timesteps from section {section} of {sections}, which holds {size} of the {steps} \
         diffusion steps: ask for at most {size} there"
    )]
    SectionTooSmall {
        /// How many timesteps were asked for.
        wanted: usize,
        /// Which section, counted from 1.
        section: usize,
        /// How many sections there are.
        sections: usize,
        /// How many timesteps the section holds.
        size: usize,
        /// T.
        steps: usize,
    },
    /// No integer stride hits the number of steps.
    #[error("no integer stride takes exactly {wanted} of {steps} timesteps: {}", advise(*.steps, *.below, *.above))]
    NoStride {
        /// How many timesteps were asked for.
        wanted: usize,
        /// T.
        steps: usize,
        /// The nearest smaller number that is possible, and its stride.
        below: Option<(usize, usize)>,
        /// The nearest larger number that is possible, and its stride.
        above: Option<(usize, usize)>,
    },
}

fn advise(steps: usize, below: Option<(usize, usize)>, above: Option<(usize, usize)>) -> String {
    let near: Vec<String> =
        [below, above].into_iter().flatten().map(|(count, stride)| format!("ddim{count} (stride {stride})")).collect();
    if near.is_empty() {
        return format!("a process of {steps} steps has no strides, leave the respacing empty");
    }
    format!("use {}, or evenly spaced steps without \"ddim\"", near.join(" or "))
}

impl Respacing {
    /// The timesteps to keep of a process of `steps` timesteps: indices below `steps`, ascending, each once.
    ///
    /// The list is never empty.
    ///
    /// # Errors
    ///
    /// A [`RespacingError`] says why the choice cannot be made.
    pub fn select(&self, steps: usize) -> Result<Vec<usize>, RespacingError> {
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(RespacingError::StepsOutOfRange { steps });
        }
        match self {
            Self::Full => Ok((0..steps).collect()),
            Self::Sections(counts) => select_sections(steps, counts),
            Self::Ddim(count) => select_stride(steps, *count),
            Self::Uniform(0) | Self::Quadratic(0) => Err(RespacingError::NothingKept),
            Self::Uniform(count) if *count > steps => {
                Err(RespacingError::SectionTooSmall { wanted: *count, section: 1, sections: 1, size: steps, steps })
            }
            Self::Uniform(count) => Ok((0..steps).step_by(steps / count).collect()),
            Self::Quadratic(count) => Ok(select_squares(steps, *count)),
        }
    }
}

fn select_squares(steps: usize, wanted: usize) -> Vec<usize> {
    let last = (steps as f64 * 0.8).sqrt();
    let between = last / wanted.saturating_sub(1).max(1) as f64;
    // As numpy's linspace: multiples of the distance, and the end itself.
    let root = |i: usize| if i > 0 && i + 1 == wanted { last } else { i as f64 * between };
    let mut selected: Vec<usize> = (0..wanted).map(|i| (root(i) * root(i)) as usize).collect();
    selected.dedup();
    selected
}

fn select_sections(steps: usize, counts: &[usize]) -> Result<Vec<usize>, RespacingError> {
    if counts.iter().all(|&count| count == 0) {
        return Err(RespacingError::NothingKept);
    }
    let sections = counts.len();
    let mut selected = Vec::new();
    let mut start = 0;
    for (section, &wanted) in counts.iter().enumerate() {
        // What does not divide goes to the first sections, one timestep each.
        let size = steps / sections + usize::from(section < steps % sections);
        if wanted > size {
            return Err(RespacingError::SectionTooSmall { wanted, section: section + 1, sections, size, steps });
        }
        let stride = if wanted <= 1 { 1.0 } else { (size - 1) as f64 / (wanted - 1) as f64 };
        // Adding up strides rather than multiplying decides which way some near-halves round.
        let mut position = 0.0_f64;
        for _ in 0..wanted {
            selected.push(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    selected.dedup();
    Ok(selected)
}

fn select_stride(steps: usize, wanted: usize) -> Result<Vec<usize>, RespacingError> {
    if wanted == 0 {
        return Err(RespacingError::NothingKept);
    }
    // Stride 1 is the smallest, T − 1 the largest that the reference tries: one step alone is not a stride.
    let strides = 1..steps;
    let count_of = |stride: usize| steps.div_ceil(stride);
    // The smallest stride that takes no more than is wanted.
    let stride = steps.div_ceil(wanted);
    if strides.contains(&stride) && count_of(stride) == wanted {
        return Ok((0..steps).step_by(stride).collect());
    }
    // Several strides may take equally many; the smallest is the one that `count` alone selects.
    let nearest =
        |stride: usize| strides.contains(&stride).then(|| (count_of(stride), steps.div_ceil(count_of(stride))));
    let below = if wanted > steps { nearest(1) } else { nearest(stride) };
    let above = if wanted > steps { None } else { nearest(stride - 1) };
    Err(RespacingError::NoStride { wanted, steps, below, above })
}

impl FromStr for Respacing {
    type Err = RespacingError;

    fn from_str(text: &str) -> Result<Self, RespacingError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Self::Full);
        }
        let count = |number: &str| read_count(number.trim(), text);
        for (name, make) in
            [("ddim", Self::Ddim as fn(usize) -> Self), ("uniform", Self::Uniform), ("quad", Self::Quadratic)]
        {
            if let Some(number) = trimmed.strip_prefix(name) {
                return Ok(make(count(number)?));
            }
        }
        Ok(Self::Sections(trimmed.split(',').map(count).collect::<Result<_, _>>()?))
    }
}

fn read_count(number: &str, text: &str) -> Result<usize, RespacingError> {
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RespacingError::Malformed { text: text.to_owned() });
    }
    match number.parse() {
        Ok(count) if count <= MAX_STEPS => Ok(count),
        _ => Err(RespacingError::CountTooLarge { text: text.to_owned() }),
    }
}

impl TryFrom<String> for Respacing {
    type Error = RespacingError;

    fn try_from(text: String) -> Result<Self, RespacingError> {
        text.parse()
    }
}

impl From<Respacing> for String {
    fn from(respacing: Respacing) -> Self {
        respacing.to_string()
    }
}

impl fmt::Display for Respacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => Ok(()),
            Self::Ddim(count) => write!(f, "ddim{count}"),
            Self::Uniform(count) => write!(f, "uniform{count}"),
            Self::Quadratic(count) => write!(f, "quad{count}"),
            // "0" keeps a list without sections from reading back as "keep everything".
            Self::Sections(counts) if counts.is_empty() => f.write_str("0"),
            Self::Sections(counts) => {
                f.write_str(&counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn select(text: &str, steps: usize) -> Vec<usize> {
        text.parse::<Respacing>().unwrap().select(steps).unwrap()
    }

    fn complaint(text: &str, steps: usize) -> String {
        match text.parse::<Respacing>() {
            Ok(respacing) => respacing.select(steps).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn selections_equal_the_references() {
        assert_eq!(select("", 4), [0, 1, 2, 3]);
        assert_eq!(select("4", 4), [0, 1, 2, 3]);
        assert_eq!(select("1", 4), [0]);
        assert_eq!(select("2", 1000), [0, 999]);
        // Strides of 2.5: the halves 2.5 and 7.5 go to the even neighbours.
        assert_eq!(select("5", 11), [0, 2, 5, 8, 10]);
        // 10 = 4 + 3 + 3.
        assert_eq!(select("2,1,3", 10), [0, 3, 4, 7, 8, 9]);
        assert_eq!(select("0,2", 10), [5, 9]);
        assert_eq!(select("ddim4", 10), [0, 3, 6, 9]);
        assert_eq!(select("ddim10", 10), select("", 10));
        assert_eq!(select("ddim2", 10), [0, 5]);
        assert_eq!(select(" 2, 1 ,3 ", 10), select("2,1,3", 10));
    }

    #[test]
    fn spacings_of_ddim_equal_that_codes() {
        assert_eq!(select("uniform10", 1000), (0..1000).step_by(100).collect::<Vec<_>>());
        // 1000 // 15 = 66 takes 16 steps.
        assert_eq!(select("uniform15", 1000).len(), 16);
        assert_eq!(select("uniform1", 4), [0]);
        // [int(s) for s in numpy.linspace(0, numpy.sqrt(800), 10) ** 2]
        assert_eq!(select("quad10", 1000), [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]);
        // Small squares fall together: numpy gives 0 twice here.
        assert_eq!(select("quad6", 10), [0, 1, 2, 5, 8]);
        assert_eq!(select("quad1", 10), [0]);
        assert!(complaint("uniform11", 10).contains("at most 10"));
    }

    #[test]
    fn complaints_say_what_is_wrong_and_what_to_do() {
        assert_eq!(
            complaint("ddim37", 1000),
            "no integer stride takes exactly 37 of 1000 timesteps: use ddim36 (stride 28) or ddim38 (stride 27), or evenly spaced steps without \"ddim\""
        );
        assert_eq!(
            complaint("ddim12", 10),
            "no integer stride takes exactly 12 of 10 timesteps: use ddim10 (stride 1), or evenly spaced steps \
             without \"ddim\""
        );
        assert!(complaint("ddim1", 10).contains("use ddim2 (stride 5)"));
        assert!(complaint("ddim1", 1).contains("leave the respacing empty"));
        assert_eq!(
            complaint("10,400,20", 1000),
            "cannot take 400 timesteps from section 2 of 3, which holds 333 of the 1000 diffusion steps: ask for at \
             most 333 there"
        );
        for nothing in ["0", "0,0", "ddim0"] {
            assert!(complaint(nothing, 10).contains("at least one step"));
        }
        for garbage in ["fast", "10,,20", ",", "-5", "+5", "1e3", "ddim", "ddim-1", "ddim5,5", "2.5", "１０", "\0"] {
            assert!(complaint(garbage, 10).starts_with("cannot read the respacing"), "{garbage}");
        }
        assert!(complaint("99999999999999999999999", 10).contains("use numbers up to 16777216"));
        assert!(complaint("ddim16777217", 10).contains("use numbers up to 16777216"));
        assert!(complaint("", 0).contains("use 1 to 16777216"));
        assert!(complaint("", usize::MAX).contains("use 1 to 16777216"));
    }

    #[test]
    fn sizes_given_in_code_are_checked_too() {
        for respacing in [
            Respacing::Sections(vec![]),
            Respacing::Sections(vec![usize::MAX, usize::MAX]),
            Respacing::Sections(vec![1; 100]),
            Respacing::Ddim(usize::MAX),
            Respacing::Ddim(0),
        ] {
            assert!(respacing.select(10).is_err(), "{respacing:?}");
        }
    }

    #[test]
    fn the_long_form_of_the_reference_agrees_for_every_stride() {
        // The reference tries every stride in turn; here it is computed.
        for steps in 1..60 {
            for wanted in 1..70 {
                let tried = (1..steps).find(|stride| (0..steps).step_by(*stride).len() == wanted);
                let expected = tried.map(|stride| (0..steps).step_by(stride).collect::<Vec<_>>());
                assert_eq!(Respacing::Ddim(wanted).select(steps).ok(), expected, "ddim{wanted} of {steps}");
            }
        }
    }

    proptest! {
        #[test]
        fn selections_are_sorted_unique_and_complete(steps in 1_usize..5000, counts in prop::collection::vec(0_usize..300, 1..6)) {
            if let Ok(selected) = Respacing::Sections(counts.clone()).select(steps) {
                prop_assert!(selected.is_sorted_by(|a, b| a < b));
                prop_assert!(selected.iter().all(|&t| t < steps));
                prop_assert_eq!(selected.len(), counts.iter().sum::<usize>());
            }
        }

        #[test]
        fn suggested_strides_work_and_enclose_the_wish(steps in 1_usize..3000, wanted in 1_usize..3500) {
            if let Err(RespacingError::NoStride { below, above, .. }) = Respacing::Ddim(wanted).select(steps) {
                for (count, stride) in below.into_iter().chain(above) {
                    prop_assert_eq!(Respacing::Ddim(count).select(steps), Ok((0..steps).step_by(stride).collect()));
                }
                prop_assert!(below.is_none_or(|(count, _)| count < wanted));
                prop_assert!(above.is_none_or(|(count, _)| count > wanted));
            }
        }

        #[test]
        fn no_text_panics_and_what_is_read_is_written_back(text in "(ddim)?[0-9, a-z-]{0,12}", steps in 0_usize..2000) {
            if let Ok(respacing) = text.parse::<Respacing>() {
                prop_assert_eq!(respacing.to_string().parse::<Respacing>(), Ok(respacing.clone()));
                let json = serde_json::to_value(&respacing).unwrap();
                prop_assert_eq!(&json, &serde_json::Value::from(respacing.to_string()));
                prop_assert_eq!(serde_json::from_value::<Respacing>(json).unwrap(), respacing.clone());
                let _ = respacing.select(steps);
            }
        }
    }
}
