use super::*;
use crate::philox::{Domain, Stream};

/// The test of values in any order; none where there is none.
fn shapiro_wilk(values: &[f64]) -> Option<ShapiroWilk> {
    Normality::new(values.len())?.test(&mut values.to_vec())
}

/// Kind of sample, its size, and what SciPy 1.17's `shapiro` makes of it: W and p.
const SCIPY: [(&str, usize, f64, f64); 27] = [
    ("normal", 3, 0.9186893435646142, 0.44773903159324346),
    ("normal", 4, 0.8841571701295314, 0.3566953621982447),
    ("normal", 5, 0.9141464393762085, 0.4929043312590972),
    ("normal", 11, 0.8239603463153233, 0.019445145005525362),
    ("normal", 12, 0.9250054692044569, 0.3301592125088457),
    ("normal", 20, 0.9619968200694835, 0.5844690191039019),
    ("normal", 50, 0.9804199353714187, 0.5698058118789737),
    ("normal", 500, 0.9971201105093549, 0.5303959512009921),
    ("normal", 5000, 0.9995862916723178, 0.38224450034974056),
    ("uniform", 3, 0.967249322925604, 0.6524549682144367),
    ("uniform", 4, 0.8949673823437893, 0.40649371424941033),
    ("uniform", 5, 0.8976001725177313, 0.396764198298456),
    ("uniform", 11, 0.8763266132734966, 0.09342440680566844),
    ("uniform", 12, 0.8968303283537788, 0.14435655254315705),
    ("uniform", 20, 0.9814218082734798, 0.9511057746258795),
    ("uniform", 50, 0.9139454482096776, 0.0014345964552269766),
    ("uniform", 500, 0.9507409329812838, 7.440060359792605e-12),
    ("uniform", 5000, 0.9558196333692255, 1.857865160189523e-36),
    ("exponential", 3, 0.9090770594790087, 0.41500730980677825),
    ("exponential", 4, 0.8942362512659107, 0.4029973384533057),
    ("exponential", 5, 0.8461054108251549, 0.18251866778745707),
    ("exponential", 11, 0.8642881595595032, 0.06543385814667084),
    ("exponential", 12, 0.8105468806507978, 0.012379297415261949),
    ("exponential", 20, 0.819799963724618, 0.0017316643602961774),
    ("exponential", 50, 0.9270304774469023, 0.004273512801677421),
    ("exponential", 500, 0.7841761670699701, 3.5074523131628065e-25),
    ("exponential", 5000, 0.8216590568088542, 1.9205820510682886e-59),
];

/// A sample that is made elsewhere from the same formula: uniforms of Knuth's MMIX generator, seeded with the size;
/// nearly normal numbers are sums of twelve.
fn sample(kind: &str, n: usize) -> Vec<f64> {
    let mut state = n as u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 * 2.0_f64.powi(-53)
    };
    let draw = |_| match kind {
        "normal" => (0..12).map(|_| uniform()).sum::<f64>() - 6.0,
        "exponential" => -(1.0 - uniform()).ln(),
        _ => uniform(),
    };
    (0..n).map(draw).collect()
}

#[test]
fn samples_have_scipys_statistic_and_probability() {
    for (kind, n, w, p) in SCIPY {
        let got = shapiro_wilk(&sample(kind, n)).unwrap();
        assert!((got.w / w - 1.0).abs() < 1e-6, "{kind}, {n}: {} and {w}", got.w);
        assert!((got.p / p - 1.0).abs() < 1e-4, "{kind}, {n}: {} and {p}", got.p);
    }
}

#[test]
fn scale_shift_and_order_do_not_matter() {
    let values = sample("exponential", 20);
    let expected = shapiro_wilk(&values).unwrap();
    // Squares of the first and last are beyond f64's range.
    for scale in [1e-200, -3.0, 1e200] {
        let moved: Vec<f64> = values.iter().rev().map(|value| scale * (value + 2.0)).collect();
        let got = shapiro_wilk(&moved).unwrap();
        assert!((got.w - expected.w).abs() < 1e-12 && (got.p / expected.p - 1.0).abs() < 1e-9, "{scale}: {got:?}");
    }
}

#[test]
fn probabilities_end_at_zero_and_one() {
    // Far outside what normal draws do; W of three values cannot be less than 3/4.
    for n in [3, 4, 8, 11, 12, 1000] {
        let mut values = vec![0.0; n];
        values[0] = 1.0;
        let outlier = shapiro_wilk(&values).unwrap();
        assert!((0.0..0.01).contains(&outlier.p), "{n}: {outlier:?}");
    }
    // The weights themselves are what fits best.
    for n in 3..200 {
        let upper = Normality::new(n).unwrap().weights;
        let middle = (n % 2 == 1).then_some(0.0);
        let values: Vec<f64> = upper.iter().map(|weight| -weight).chain(middle).chain(upper.iter().copied()).collect();
        let fit = shapiro_wilk(&values).unwrap();
        assert!(fit.w > 1.0 - 1e-14 && fit.w <= 1.0 && fit.p > 1.0 - 1e-6 && fit.p <= 1.0, "{n}: {fit:?}");
    }
}

#[test]
fn what_cannot_be_tested_is_refused() {
    assert!(Normality::new(2).is_none() && Normality::new(5001).is_none());
    assert_eq!(shapiro_wilk(&[]), None);
    assert_eq!(shapiro_wilk(&[2.5; 7]), None);
    for odd in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(shapiro_wilk(&[0.0, odd, 1.0, 2.0]), None, "{odd}");
    }
    assert_eq!(shapiro_wilk(&[f64::MIN, 0.0, f64::MAX]), None);
}

#[test]
fn quantiles_lead_back_to_their_probability() {
    assert_eq!(lower_quantile(0.5), 0.0);
    // The textbook's 2.5 %.
    assert!((lower_quantile(0.025) + 1.959963984540054).abs() < 1e-14);
    for p in [0.4999, 0.3, 0.1, 0.01, 1e-4, 1e-10, 1e-100] {
        let back = upper_tail(-lower_quantile(p));
        assert!((back / p - 1.0).abs() < 1e-12, "{p}: {back}");
    }
}

#[test]
fn weights_are_of_length_one() {
    for n in [3, 4, 5, 6, 7, 100, 5000] {
        let weights = Normality::new(n).unwrap().weights;
        assert_eq!(weights.len(), n / 2);
        assert!((2.0 * weights.iter().map(|weight| weight * weight).sum::<f64>() - 1.0).abs() < 1e-14, "{n}");
        assert!(weights.is_sorted_by(|a, b| a > b), "{n}");
    }
}

#[test]
fn one_normal_sample_in_twenty_is_below_five_percent() {
    for n in [8, 50] {
        let test = Normality::new(n).unwrap();
        let mut values = vec![0.0_f32; n];
        let below = (0..2000)
            .filter(|&index| {
                Stream::new(5, Domain::Noise, index, 0).fill_normal(&mut values);
                let mut values: Vec<f64> = values.iter().copied().map(f64::from).collect();
                test.test(&mut values).unwrap().p < 0.05
            })
            .count();
        // Three standard deviations are 29.
        assert!((71..=129).contains(&below), "{n}: {below}");
    }
}
