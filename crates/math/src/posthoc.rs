//! Averages of parameters by power functions, and averages of other lengths made from them afterwards.
//!
//! Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3 and appendix C. An average after t steps weighs the parameters at
//! the time τ by the profile
//!
//! p(τ) = (γ + 1) τ^γ / t^(γ+1), 0 ≤ τ ≤ t (their equation 10),
//!
//! so it always looks back over the same share of the training. Its length σ_rel is the profile's standard deviation in units
//! of t. Kept over steps, the average moves by
//!
//! θ̂(t) = β(t) θ̂(t−1) + (1 − β(t)) θ(t), β(t) = (1 − 1/t)^(γ+1) (equation 127),
//!
//! which is exactly the profile's average of parameters that stay as they are from one step to the next. From averages that
//! were saved at several times any other profile is made as the linear combination nearest to it (listing 3).

/// The longest length: that of the plain mean, γ = 0. Longer ones would weigh early parameters the most.
pub const LONGEST: f64 = 0.288_675_134_594_812_9;

/// The share of a profile that may be missed at most.
pub const MOST_ERROR: f64 = 0.05;

/// The exponent γ of a length σ_rel in (0, [`LONGEST`]]: σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)) (equation 12).
pub fn exponent(length: f64) -> f64 {
    let too_long = |gamma: f64| length_of(gamma) > length;
    // The length falls with γ.
    let mut high = 1.0;
    while too_long(high) {
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        *(if too_long(middle) { &mut low } else { &mut high }) = middle;
    }
    f64::midpoint(low, high)
}

/// The length of an exponent.
fn length_of(gamma: f64) -> f64 {
    ((gamma + 1.0) / (gamma + 3.0)).sqrt() / (gamma + 2.0)
}

/// β of the `update`-th update, from 1, of the average of an exponent: what stays of the average before.
pub fn rate(gamma: f64, update: u64) -> f64 {
    (1.0 - 1.0 / update as f64).powf(gamma + 1.0)
}

/// A power function's profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// γ.
    pub gamma: f64,
    /// t: updates until it ends.
    pub end: f64,
}

impl Profile {
    /// ∫ p q dτ (listing 3).
    fn inner(self, other: Self) -> f64 {
        let least = self.end.min(other.end);
        let share = |p: Self| (least / p.end).powf(p.gamma + 1.0);
        let of_exponents = (self.gamma + 1.0) * (other.gamma + 1.0) / (self.gamma + other.gamma + 1.0);
        of_exponents * share(self) * share(other) / least
    }
}

/// A profile as a linear combination of others.
#[derive(Debug, Clone, PartialEq)]
pub struct Combination {
    /// What each of the others is multiplied by.
    pub weights: Vec<f64>,
    /// The share of the profile that is missed: ‖p − Σ w_i p_i‖ / ‖p‖.
    pub error: f64,
}

/// The linear combination of `kept` that is nearest to `wanted`, by least squares.
pub fn combine(kept: &[Profile], wanted: Profile) -> Combination {
    let n = kept.len();
    let gram: Vec<f64> = kept.iter().flat_map(|&p| kept.iter().map(move |&q| p.inner(q))).collect();
    let right: Vec<f64> = kept.iter().map(|&p| p.inner(wanted)).collect();
    let weights = solve(gram.clone(), right.clone());
    let whole = wanted.inner(wanted);
    let with_wanted: f64 = weights.iter().zip(&right).map(|(w, b)| w * b).sum();
    let row = |i: usize| weights.iter().zip(&gram[i * n..]).map(|(w, a)| w * a).sum::<f64>();
    let own: f64 = (0..n).map(|i| weights[i] * row(i)).sum();
    let missed = (whole - 2.0 * with_wanted + own) / whole;
    Combination { weights, error: missed.max(0.0).sqrt() }
}

/// The shortest and the longest length at `end` that `kept` give with an error of at most [`MOST_ERROR`], in steps of a
/// hundredth of a length; none if there is no such length.
pub fn lengths(kept: &[Profile], end: f64) -> Option<[f64; 2]> {
    let all = (0..).map(|i| 0.001 * 1.01_f64.powi(i)).take_while(|&length| length <= LONGEST);
    let is_given = |&length: &f64| combine(kept, Profile { gamma: exponent(length), end }).error <= MOST_ERROR;
    let mut given = all.filter(is_given);
    let first = given.next()?;
    Some([first, given.last().unwrap_or(first)])
}

/// x of A x = b by elimination with row pivots.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for column in 0..n {
        let largest = |&i: &usize, &j: &usize| a[i * n + column].abs().total_cmp(&a[j * n + column].abs());
        let pivot = (column..n).max_by(largest).unwrap_or(column);
        (0..n).for_each(|k| a.swap(column * n + k, pivot * n + k));
        b.swap(column, pivot);
        for row in column + 1..n {
            let factor = a[row * n + column] / a[column * n + column];
            for k in column..n {
                a[row * n + k] -= factor * a[column * n + k];
            }
            b[row] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| a[row * n + k] * b[k]).sum();
        b[row] = (b[row] - known) / a[row * n + row];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an average of these lengths is after each of `steps` steps of parameters `of`.
    fn kept(lengths: &[f64], steps: u64, of: impl Fn(u64) -> f64) -> Vec<Vec<f64>> {
        let keep = |&length: &f64| {
            let (gamma, mut average) = (exponent(length), f64::NAN);
            let step = |t| {
                let beta = rate(gamma, t);
                average = if t == 1 { of(1) } else { beta * average + (1.0 - beta) * of(t) };
                average
            };
            (1..=steps).map(step).collect()
        };
        lengths.iter().map(keep).collect()
    }

    #[test]
    fn exponents_are_those_of_the_paper() {
        // γ of their networks: 16.97 at 0.05 and 6.94 at 0.10 (section 3.1).
        assert!((exponent(0.05) - 16.97).abs() < 0.005, "{}", exponent(0.05));
        assert!((exponent(0.10) - 6.94).abs() < 0.005, "{}", exponent(0.10));
        assert!(exponent(LONGEST) < 1e-9);
        for length in [0.001, 0.02, 0.13, 0.28] {
            assert!((length_of(exponent(length)) / length - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn the_first_update_takes_the_parameters_and_a_plain_mean_is_one() {
        assert_eq!(rate(exponent(0.05), 1), 0.0);
        let mean = &kept(&[LONGEST], 100, |t| (t * t) as f64)[0];
        assert!((mean[99] - (1..=100).map(|t| (t * t) as f64).sum::<f64>() / 100.0).abs() < 1e-6);
    }

    #[test]
    fn averages_of_a_straight_line_have_the_closed_form() {
        // The parameters of a step stand for its whole length, so the line is read in the middle of steps.
        for length in [0.05, 0.1, 0.2] {
            let gamma = exponent(length);
            let average = &kept(&[length], 10_000, |t| 3.0 + 0.5 * (t as f64 - 0.5))[0];
            for t in [1000, 10_000] {
                let expected = 3.0 + 0.5 * (gamma + 1.0) / (gamma + 2.0) * t as f64;
                assert!((average[t - 1] / expected - 1.0).abs() < 2e-6 * (1000.0 / t as f64).powi(2) + 1e-9);
            }
        }
    }

    #[test]
    fn profiles_have_the_length_and_the_products_that_sums_give() {
        let (p, q) = (Profile { gamma: exponent(0.07), end: 60.0 }, Profile { gamma: 2.5, end: 100.0 });
        let at = |p: Profile, tau: f64| {
            if tau > p.end { 0.0 } else { (p.gamma + 1.0) * tau.powf(p.gamma) / p.end.powf(p.gamma + 1.0) }
        };
        let n = 1_000_000;
        let integral = |f: &dyn Fn(f64) -> f64| {
            (0..n).map(|i| f((f64::from(i) + 0.5) * 100.0 / f64::from(n))).sum::<f64>() * 100.0 / f64::from(n)
        };
        for (a, b) in [(p, q), (q, p), (p, p), (q, q)] {
            let expected = integral(&|tau| at(a, tau) * at(b, tau));
            assert!((a.inner(b) / expected - 1.0).abs() < 1e-4, "{} for {expected}", a.inner(b));
        }
        let mean = integral(&|tau| tau * at(p, tau));
        let deviation = integral(&|tau| (tau - mean).powi(2) * at(p, tau)).sqrt();
        assert!((deviation / 60.0 - 0.07).abs() < 1e-5);
    }

    #[test]
    fn other_lengths_are_made_from_two_kept_ones() {
        // A path of parameters that no power function describes.
        let of = |t: u64| (t as f64 / 150.0).sin() + (t as f64 / 40.0).cos() + (t as f64 / 700.0).powi(2);
        let steps = 2000;
        let two = kept(&[0.05, 0.1], steps, of);
        let saved: Vec<(Profile, f64)> = (1..=64_u64)
            .flat_map(|i| [(i * steps / 64, 0), (i * steps / 64, 1)])
            .map(|(t, which)| {
                let gamma = exponent([0.05, 0.1][which]);
                (Profile { gamma, end: t as f64 }, two[which][t as usize - 1])
            })
            .collect();
        let profiles: Vec<Profile> = saved.iter().map(|(p, _)| *p).collect();
        for (length, off) in [(0.03, 0.01), (0.07, 1e-3), (0.15, 1e-3), (0.25, 0.02)] {
            for end in [steps, steps * 3 / 4] {
                let direct = kept(&[length], end, of)[0][end as usize - 1];
                let usable = profiles.iter().filter(|p| p.end <= end as f64).count();
                let made = combine(&profiles[..usable], Profile { gamma: exponent(length), end: end as f64 });
                let value: f64 = made.weights.iter().zip(&saved).map(|(w, (_, v))| w * v).sum();
                assert!((value - direct).abs() < off, "length {length} at {end}: {value}, kept {direct}");
                assert!(made.error < 0.03 && (made.weights.iter().sum::<f64>() - 1.0).abs() < 0.005);
            }
        }
        // What is kept is itself.
        let own = combine(&profiles, profiles[100]);
        assert!(own.error < 1e-5 && (own.weights[100] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_few_averages_give_is_known() {
        let at = |ends: &[f64]| -> Vec<Profile> {
            let both = |&end: &f64| [0.05, 0.1].map(|length| Profile { gamma: exponent(length), end });
            ends.iter().flat_map(both).collect()
        };
        let [short, long] = lengths(&at(&[500.0, 1000.0]), 1000.0).unwrap();
        assert!((0.03..0.05).contains(&short) && (0.1..0.15).contains(&long), "{short} to {long}");
        let many: Vec<f64> = (1..=64).map(|i| 1000.0 * f64::from(i) / 64.0).collect();
        let [shortest, longest] = lengths(&at(&many), 1000.0).unwrap();
        assert!(shortest < 0.012 && longest > 0.26, "{shortest} to {longest}");
        assert!(lengths(&at(&[10.0]), 1000.0).is_none());
    }
}
